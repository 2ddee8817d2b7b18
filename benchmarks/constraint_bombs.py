"""Forms of answers that were written to cost too much: what each costs, and what it costs others.

    python benchmarks/constraint_bombs.py MODEL [--backend B] [--only WORDS] [--tokens 200] [--others] [--rounds 5]

Each bomb of tests/constrain/bombs.py in a process of its own, behind an answer with a form of the same model: what
became of it, the seconds of wall clock until it was refused or its first mask was there, the longest time between two
tokens of a random answer of --tokens tokens, and how many MB the process grew by. A row beyond a second or 200 MB ends
with "!", and the exit code is 1.

--others: instead, how fast a free answer is decoded while bombs are sent to the same engine, one every second, as a
multiple of the speed without them: median and range of interleaved rounds of all bombs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import edgellm
from edgellm.errors import EdgeLLMError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from constrain.bombs import BOMBS, explode

SECONDS, MEGABYTES = 1.0, 200.0


def one(model: edgellm.Model, name: str, tokens: int) -> bool:
    """Prints what a bomb costs; whether it keeps within the limits."""
    constraints = model._engine._constraints
    explode(constraints, model.info.stop_ids, lambda: {"regex": "[a-z]+ [0-9]{3}"}, 20)
    cost = explode(constraints, model.info.stop_ids, BOMBS[name], tokens)
    good = max(cost.first, cost.longest) <= SECONDS and cost.megabytes <= MEGABYTES
    print(
        f"{name:45} {cost.first:6.3f} s {cost.longest * 1e3:7.1f} ms {cost.megabytes:6.1f} MB {cost.tokens:4} tokens "
        f"{cost.outcome[:80]}{'' if good else ' !'}"
    )
    return good


def speed(model: edgellm.Model, bombs: bool) -> float:
    """Tokens per second of free answers in ten seconds, with a bomb in each of them or without."""
    stop = threading.Event()

    def send() -> None:
        for make in BOMBS.values():
            started = time.monotonic()
            with suppress(EdgeLLMError):
                model.generate("A", max_tokens=8, temperature=1.5, cache=False, **make())
            if stop.wait(max(0.0, started + 1 - time.monotonic())):
                return
        stop.set()

    sender = threading.Thread(target=send) if bombs else None
    tokens = spent = 0.0
    if sender:
        sender.start()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        done = model.generate("A story.", max_tokens=100, ignore_eos=True, cache=False, speculate=False)
        tokens, spent = tokens + 99, spent + done.timings.decode_ms / 1e3
    stop.set()
    if sender:
        sender.join()
    return tokens / spent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--only", default="")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bomb", help=argparse.SUPPRESS)  # the one of this process
    given = parser.parse_args()
    if given.bomb:
        with edgellm.load(given.model, backend=given.backend, ctx=512) as model:
            return int(not one(model, given.bomb, given.tokens))
    if given.others:
        with edgellm.load(given.model, backend=given.backend, ctx=1024, threads=1) as model:
            speed(model, False)
            ratios = []
            for round_ in range(given.rounds):
                rates = {bombs: speed(model, bombs) for bombs in ((True, False), (False, True))[round_ % 2]}
                ratios.append(rates[True] / rates[False])
        print(f"free answers beside bombs: {median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}) times as fast")
        return int(median(ratios) < 0.9)
    bad = 0
    for name in BOMBS:
        if given.only in name:
            command = [sys.executable, __file__, given.model, "--backend", given.backend, "--bomb", name]
            done = subprocess.run([*command, "--tokens", str(given.tokens)], stdout=subprocess.PIPE, text=True)
            print(done.stdout.strip() or f"{name}: ended with {done.returncode} !", flush=True)
            bad += done.returncode != 0
    print(f"{bad} of {len(BOMBS)} beyond a second or 200 MB")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
