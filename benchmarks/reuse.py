"""Reuse of prompts: by a new process, by conversations in turn; and what it costs when there is none.

    python benchmarks/reuse.py MODEL [--only NAME…] [--tokens 2000] [--rounds 5] [--llama-server PROGRAM] [--json]

1. restart: a new process asks a prompt of `--tokens` tokens that another process has read. Time from request to first
   token, against the same prompt with the cache off in the same round; the order alternates. Beside it llama-cpp-python
   (a new process), and llama-server started anew, if `--llama-server` names it. A known prompt's first token needs no
   more than the logits that were kept; so the same for one whose last 16 tokens are others ("other end"), for which the
   state is loaded.
2. turns: three conversations of 1,000 tokens in turn, ten turns each, and a fork from the middle: tokens computed
   against tokens that are new (counted, not timed).
3. shared: 64 conversations with one system prompt of 1,000 tokens: bytes in memory and on disk against the bytes of the
   unique tokens.
4. same: 50 prompts that begin like others, greedily: the answer with reuse against the answer without.
5. unseen: prompts never seen before, with the cache on and off in turn: how many times faster it is off.
6. flat: resident memory along `--requests` short requests with a small budget, and after closing (megabytes).

The state folder is a temporary one. `benchmarks/shapes.py` makes the model of a billion weights.
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
import time
import urllib.error
import urllib.request
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


LLAMA = """
import json, sys, time
from edgellm.backends.llamacpp import library
library.load_library()
from llama_cpp import Llama
llama = Llama(sys.argv[1], n_ctx=int(sys.argv[2]) + 64, n_threads=2, flash_attn=False, verbose=False)
tokens = json.loads(sys.stdin.read())
started = time.perf_counter()
llama.create_completion(tokens, max_tokens=1, temperature=0)
print(json.dumps({"ttft_ms": 1e3 * (time.perf_counter() - started)}))
"""
PORT = 18093


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def ask(model: str, tokens: list[int], *, cache: bool) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, model, "on" if cache else "off", str(len(tokens))]
    done = subprocess.run(command, input=json.dumps(tokens), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def ask_llama(model: str, tokens: list[int]) -> float:
    command = [sys.executable, "-c", LLAMA, model, str(len(tokens))]
    done = subprocess.run(command, input=json.dumps(tokens), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["ttft_ms"])


def ask_server(program: str, model: str, tokens: list[int]) -> float:
    """Start the server, ask once, end it: milliseconds from the request to its first token."""
    command = [program, "-m", model, "-c", str(len(tokens) + 64), "-t", "2", "-fa", "off", "--port", str(PORT)]
    server = subprocess.Popen([*command, "--no-webui"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        body = json.dumps({"prompt": tokens, "n_predict": 1, "temperature": 0, "cache_prompt": True}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/completion", body, {"Content-Type": "application/json"}
        )
        started = time.perf_counter()
        urllib.request.urlopen(request).read()
        return 1e3 * (time.perf_counter() - started)
    finally:
        server.kill()
        server.wait()


def restart(model: str, count: int, rounds: int, server: str | None) -> dict[str, Any]:
    import edgellm

    rng = random.Random(7)
    with edgellm.load(model, cache=edgellm.CacheParams(memory=0, disk=0)) as opened:
        prompts = [opened.encode(words(rng, 2 * count))[:count] for _ in range(rounds)]
    ratios, others, cold, warm, computed = [], [], [], [], []
    gguf = not os.path.isdir(model)  # llama.cpp opens no ONNX folder
    peers: dict[str, list[float]] = {name: [] for name in ("llama-cpp-python",) if gguf}
    peers |= {name: [] for name in ("llama-server",) if gguf and server}
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
        others.append(cold[-1] / ask(model, [*prompt[:-16], *prompt[:16]], cache=True)["ttft_ms"])
        if gguf:
            peers["llama-cpp-python"].append(ask_llama(model, prompt) / warm[-1])
        if gguf and server:
            ask_server(server, model, prompt)
            peers["llama-server"].append(ask_server(server, model, prompt) / warm[-1])
    return {
        "beside": {name: [statistics.median(r), min(r), max(r)] for name, r in peers.items()},
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "other_end_ratio_median": statistics.median(others),
        "other_end_ratio_range": [min(others), max(others)],
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
                known = chat._answers()
                before = known[-1].tokens if known else []
                done = chat.send(words(rng, 10), temperature=0, max_tokens=12)
                new += done.usage.prompt_tokens - len(before)
                computed += done.cache.computed
                if turn == 5 and chat is chats[0]:
                    twin = chat.fork()
        before = twin._answers()[-1].tokens
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
        known = opened._engine.reuse._known
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


def same(model: str) -> dict[str, Any]:
    """Prompts of 60 tokens that share their first 40 with one that was read before."""
    import edgellm

    rng, equal, reused = random.Random(17), 0, 0
    with edgellm.load(model) as opened:
        for _ in range(50):
            begin = words(rng, 40)
            opened.generate(opened.encode(begin + " " + words(rng, 20)), max_tokens=1)
            prompt = opened.encode(begin + " " + words(rng, 20))
            cached = opened.generate(prompt, max_tokens=16, temperature=0, ignore_eos=True)
            fresh = opened.generate(prompt, max_tokens=16, temperature=0, ignore_eos=True, cache=False)
            equal += cached.tokens == fresh.tokens
            reused += cached.usage.cached_tokens >= 24
    return {"prompts": 50, "reused": reused, "equal": equal}


def unseen(model: str, rounds: int) -> dict[str, Any]:
    """Four prompts of 200 tokens and 16 answered, one after the other, with the cache and without."""
    import edgellm

    rng, ratios = random.Random(19), []
    with edgellm.load(model) as opened:
        for i in range(rounds + 1):
            taken = {}
            for cache in (True, False) if i % 2 else (False, True):
                prompts = [[rng.randrange(300, 20000) for _ in range(200)] for _ in range(4)]
                started = time.perf_counter()
                for prompt in prompts:
                    opened.generate(prompt, max_tokens=16, temperature=0, ignore_eos=True, cache=cache)
                taken[cache] = time.perf_counter() - started
            if i:
                ratios.append(taken[False] / taken[True])
    return {"speed_of_off": [statistics.median(ratios), min(ratios), max(ratios)]}


def flat(model: str, requests: int) -> dict[str, Any]:
    import psutil

    import edgellm

    rng, process, resident = random.Random(23), psutil.Process(), {}
    resident["before"] = process.memory_info().rss
    opened = edgellm.load(model, cache=edgellm.CacheParams(memory=16 << 20, disk=16 << 20))
    top = opened.info.n_vocab
    for number in range(1, requests + 1):
        opened.generate([rng.randrange(3, top) for _ in range(12)], max_tokens=3)
        if number % (requests // 5) == 0:
            resident[f"after {number}"] = process.memory_info().rss
    opened.close()
    resident["closed"] = process.memory_info().rss
    return {name: round(value / 1e6, 1) for name, value in resident.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["restart", "turns", "shared", "same", "unseen", "flat"])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--llama-server")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from edgellm import hub

    model = str(Path(hub.resolve(options.model)).resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGELLM_HOME"] = folder
        import edgellm

        report: dict[str, Any] = {"model": model}
        runs = {
            "restart": lambda: restart(model, options.tokens, options.rounds, options.llama_server),
            "turns": lambda: turns(model),
            "shared": lambda: shared(model),
            "same": lambda: same(model),
            "unseen": lambda: unseen(model, options.rounds),
            "flat": lambda: flat(model, options.requests),
        }
        if edgellm.inspect(model).chat_template is None:
            del runs["turns"]
        for name in options.only or runs:
            report[name] = runs[name]()
            print(name, report[name], file=sys.stderr)
    if options.json:
        print(json.dumps(report))
        return
    for name, figures in report.items():
        print(name, figures)


if __name__ == "__main__":
    main()
