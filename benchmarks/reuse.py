"""Reuse of prompts: a new process on a prompt seen before, and conversations in turn.

    python benchmarks/reuse.py MODEL [--tokens 2000] [--rounds 5] [--json]

1. restart: a new process asks a prompt of `--tokens` tokens that another process has read. Time from request to first
   token, against the same prompt with the cache off in the same round; the order alternates.
2. turns: three conversations of 1,000 tokens in turn, ten turns each, and a fork from the middle: tokens computed
   against tokens that are new (counted, not timed).
3. shared: 64 conversations with one system prompt of 1,000 tokens: bytes in memory and on disk against the bytes of the
   unique tokens.

The state folder is a temporary one.
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

WORDS = (
    "river",
    "stone",
    "house",
    "garden",
    "winter",
    "letter",
    "market",
    "doctor",
    "window",
    "silver",
    "bridge",
    "travel",
)
CHILD = """
import json, sys, edgellm
model = edgellm.load(sys.argv[1], ctx=int(sys.argv[3]) + 64)
tokens = json.loads(sys.stdin.read())
done = model.generate(tokens, max_tokens=8, temperature=0, ignore_eos=True, cache=sys.argv[2] == "on")
model.close()
print(json.dumps({"ttft_ms": done.timings.ttft_ms, "cache": done.to_dict()["cache"], "tokens": done.tokens}))
"""


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def ask(model: str, tokens: list[int], *, cache: bool) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, model, "on" if cache else "off", str(len(tokens))]
    done = subprocess.run(command, input=json.dumps(tokens), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def restart(model: str, count: int, rounds: int) -> dict[str, Any]:
    import edgellm

    rng = random.Random(7)
    with edgellm.load(model, cache=edgellm.CacheParams(memory=0, disk=0)) as opened:
        prompts = [opened.encode(words(rng, 2 * count))[:count] for _ in range(rounds)]
    ratios, cold, warm, computed = [], [], [], []
    for i, prompt in enumerate(prompts):
        print(f"restart: round {i + 1} of {rounds}", file=sys.stderr)
        ask(model, prompt, cache=True)
        pair = {on: ask(model, prompt, cache=on) for on in ((True, False) if i % 2 else (False, True))}
        if pair[True]["tokens"] != pair[False]["tokens"]:
            raise SystemExit("the cached answer differs from the fresh one")
        cold.append(pair[False]["ttft_ms"])
        warm.append(pair[True]["ttft_ms"])
        ratios.append(cold[-1] / warm[-1])
        computed.append(pair[True]["cache"]["computed"])
    return {
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cold_ms": statistics.median(cold),
        "warm_ms": statistics.median(warm),
        "computed_tokens": max(computed),
    }


def turns(model: str) -> dict[str, Any]:
    import edgellm

    rng = random.Random(11)
    with edgellm.load(model) as opened:
        chats = [opened.chat(words(rng, 900)) for _ in range(3)]
        new = computed = 0
        for turn in range(10):
            for chat in chats:
                before = chat._said[-1][1] if chat._said else []
                done = chat.send(words(rng, 10), temperature=0, max_tokens=12)
                new += done.usage.prompt_tokens - len(before)
                computed += done.cache.computed
                if turn == 5 and chat is chats[0]:
                    twin = chat.fork()
        before = twin._said[-1][1]
        forked = twin.send("and now for something else", temperature=0, max_tokens=4)
        return {
            "new_tokens": new,
            "computed_tokens": computed,
            "most_extra_per_turn": 11,
            "fork_new": forked.usage.prompt_tokens - len(before),
            "fork_computed": forked.cache.computed,
        }


def shared(model: str) -> dict[str, Any]:
    import edgellm

    rng = random.Random(13)
    with edgellm.load(model) as opened:
        system = opened.encode(words(rng, 2000))[:1000]
        known = opened._engine._reuse._known
        assert known is not None
        assert known.store is not None
        before = known.memory.nbytes, known.store.stats().nbytes
        unique = len(system)
        for _ in range(64):
            prompt = system + opened.encode(words(rng, 20), bos=False)
            done = opened.generate(prompt, max_tokens=4, temperature=0, ignore_eos=True)
            unique += done.usage.prompt_tokens + 3 - len(system)
        known.store.flush(120)
        bytes_unique = unique * opened.info.kv_bytes_per_token
        return {
            "memory": (known.memory.nbytes - before[0]) / bytes_unique,
            "disk": (known.store.stats().nbytes - before[1]) / bytes_unique,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from edgellm import hub

    model = str(Path(hub.resolve(options.model)).resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGELLM_HOME"] = folder
        report: dict[str, Any] = {"model": model, "restart": restart(model, options.tokens, options.rounds)}
        import edgellm

        if edgellm.inspect(model).chat_template is not None:
            report["turns"] = turns(model)
        report["shared"] = shared(model)
    if options.json:
        print(json.dumps(report))
        return
    for name, figures in report.items():
        print(name, figures)


if __name__ == "__main__":
    main()
