"""Two installations of edgellm, as before and after a change, measured in turn on one model.

    python benchmarks/commits.py OLD_PYTHON NEW_PYTHON MODEL [--rounds 10] [--tokens 512] [--answer 64] [--json]

Each round asks every installation, in alternating order, in a process that stays (a new one for `restart`):

prefill   tokens per second of a prompt of `--tokens` random tokens, none of them known
decode    tokens per second of `--answer` greedy tokens behind it
together  tokens per second of four such answers at once
restart   milliseconds from a new process's request to its first token: a known prompt whose last 16 tokens are others

Printed is how many times as fast the new one is: the median of the ratios of the rounds, and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORKER = """
import json, sys, time, edgellm
from edgellm import GenerateParams
model = edgellm.load(sys.argv[1], ctx=int(sys.argv[2]))
for line in sys.stdin:
    job = json.loads(line)
    plain = {"speculate": False} if hasattr(GenerateParams(), "speculate") else {}
    params = GenerateParams(max_tokens=job["answer"], temperature=0, ignore_eos=True, cache=job["cache"], **plain)
    started = time.perf_counter()
    streams = [model.stream(prompt, params) for prompt in job["prompts"]]
    ends = [[chunk for chunk in stream][-1].completion for stream in streams]
    seconds = time.perf_counter() - started
    timings = ends[0].timings
    print(json.dumps({
        "prefill": timings.prefill_tokens_per_second, "decode": timings.decode_tokens_per_second,
        "together": sum(len(end.tokens) for end in ends) / seconds, "ttft_ms": timings.ttft_ms,
    }), flush=True)
"""


class Installation:
    """An interpreter that has edgellm, and a process in it that keeps the model."""

    def __init__(self, python: str, model: str, ctx: int, home: Path) -> None:
        self._command = [python, "-c", WORKER, model, str(ctx)]
        self._environment = {**os.environ, "EDGELLM_HOME": str(home), "PYTHONSAFEPATH": "1"}
        self._process = self._start()

    def ask(self, prompts: list[list[int]], answer: int) -> dict[str, Any]:
        """The figures of a job in the process that stays, whose prompts it neither knows nor keeps."""
        return self._tell(self._process, prompts, answer, cache=False)

    def restart(self, prompt: list[int], answer: int) -> float:
        """Milliseconds to the first token of `prompt` in a new process."""
        with self._start() as process:
            figures = self._tell(process, [prompt], answer, cache=True)
            assert process.stdin
            process.stdin.close()
        return float(figures["ttft_ms"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )

    def _tell(
        self, process: subprocess.Popen[str], prompts: list[list[int]], answer: int, cache: bool
    ) -> dict[str, Any]:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({"prompts": prompts, "answer": answer, "cache": cache}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            sys.exit(f"{self._command[0]} ended")
        figures: dict[str, Any] = json.loads(line)
        return figures


def measure(both: list[Installation], rounds: int, tokens: int, answer: int) -> dict[str, list[float]]:
    """How many times as fast the second is, by figure: one ratio a round."""
    draw = random.Random(0)
    ratios: dict[str, list[float]] = {"prefill": [], "decode": [], "together": [], "restart": []}

    def prompt(count: int) -> list[int]:
        return [draw.randrange(1000, 30000) for _ in range(count)]

    known = prompt(tokens)
    for each in both:  # also warms up
        each.restart(known, 1)
        each.ask([prompt(tokens)], answer)
    for number in range(rounds):
        alone, several = prompt(tokens), [prompt(32) for _ in range(4)]
        other = known[:-16] + prompt(16)
        found: dict[Installation, dict[str, float]] = {}
        for each in both if number % 2 else both[::-1]:
            one = each.ask([alone], answer)
            found[each] = {
                "prefill": one["prefill"],
                "decode": one["decode"],
                "together": each.ask(several, answer)["together"],
                "restart": 1 / each.restart(other, 1),
            }
        old, new = (found[each] for each in both)
        for name, values in ratios.items():
            values.append(new[name] / old[name])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        both = []
        for name in ("old", "new"):
            home = Path(folder) / name
            home.mkdir()
            both.append(Installation(getattr(asked, name), asked.model, asked.tokens + asked.answer + 256, home))
        try:
            ratios = measure(both, asked.rounds, asked.tokens, asked.answer)
        finally:
            for each in both:
                each.close()
    if asked.json:
        print(json.dumps(ratios))
        return
    for name, values in ratios.items():
        low, high = min(values), max(values)
        print(f"{name:9} {statistics.median(values):.3f}  ({low:.3f}-{high:.3f}, {len(values)} rounds)")


if __name__ == "__main__":
    main()
