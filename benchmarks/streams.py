"""Eight answers at once, beside the same eight sequences in a bare llama.cpp loop, and one after another.

    python benchmarks/streams.py MODEL [--streams 8] [--depth 16 900] [--tokens 64] [--rounds 5] [--join 4000] [--json]

streams: aggregate decode speed while all answers run, as a share of a loop on llama.cpp's C API that feeds one token of
each of the same sequences per pass with the same settings (unified KV cache, flash attention off, greedy), and as a
multiple of one answer after another. Rounds are interleaved, the order alternates.
join: the longest gap between two tokens of a running answer while a prompt of `--join` tokens is read beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np


class BareLoop:
    """One pass feeds one token of every sequence; rows of logits are searched where they lie."""

    def __init__(self, path: str, streams: int, cells: int, threads: int) -> None:
        from edgellm.backends.llamacpp import library

        lib = self._lib = library.load_library()
        loading = library.model_params()
        with library.capture_log():
            model = lib.llama_model_load_from_file(path.encode(), loading)
            params = lib.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = cells, 512, 512, streams
            params.n_threads = params.n_threads_batch = threads
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = lib.GGML_TYPE_F16
            params.kv_unified = True
            self._context = lib.llama_init_from_model(model, params)
        if not model or not self._context:
            raise SystemExit(f"llama.cpp refused {path}")
        self._n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._batch = lib.llama_batch_init(512, 0, 1)

    def _pass(self, tokens: list[int], sequences: list[int], positions: list[int], wanted: list[bool]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, positions[i], 1, wanted[i]
            batch.seq_id[i][0] = sequences[i]
        if self._lib.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")

    def _likeliest(self, row: int) -> int:
        address = self._lib.llama_get_logits_ith(self._context, row)
        return int(
            np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (self._n_vocab,)).argmax()
        )

    def read(self, prompts: list[list[int]]) -> None:
        """Fill the cache with the prompts."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        self._depths, self._first = [len(prompt) for prompt in prompts], []
        for sequence, prompt in enumerate(prompts):
            for at in range(0, len(prompt), 512):
                part = prompt[at : at + 512]
                positions = list(range(at, at + len(part)))
                self._pass(part, [sequence] * len(part), positions, [False] * (len(part) - 1) + [True])
            self._first.append(self._likeliest(-1))

    def decode(self, count: int) -> float:
        """Tokens per second of all sequences together, from the end of their prompts."""
        for sequence, depth in enumerate(self._depths):
            self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), sequence, depth, -1)
        last, depth = list(self._first), list(self._depths)
        every = list(range(len(last)))
        started = time.perf_counter()
        for _ in range(count):
            self._pass(last, every, depth, [True] * len(every))
            last, depth = [self._likeliest(row) for row in every], [at + 1 for at in depth]
        return count * len(every) / (time.perf_counter() - started)


def together(model: Any, prompts: list[list[int]], count: int) -> float:
    """Tokens per second while all answers run: from the last one's first token to the first one's last.

    The prompts are known, so that reading them takes no time.
    """
    arrived: list[list[float]] = [[] for _ in prompts]
    start = threading.Barrier(len(prompts))

    def read(index: int) -> None:
        start.wait()
        options = {"max_tokens": 4 * count, "temperature": 0, "ignore_eos": True, "speculate": False}
        for chunk in model.stream(prompts[index], **options):
            arrived[index] += [time.perf_counter()] * len(chunk.tokens)
            if all(len(times) > count for times in arrived):
                return

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin, end = max(times[0] for times in arrived), min(times[-1] for times in arrived)
    return sum(begin < at <= end for times in arrived for at in times) / (end - begin)


def alone(model: Any, prompts: list[list[int]], count: int) -> float:
    """Tokens per second of the answers one after another, without their prompts."""
    rates = []
    for prompt in prompts[:2]:
        done = model.generate(prompt, max_tokens=count, temperature=0, ignore_eos=True, speculate=False)
        rates.append(done.timings.decode_tokens_per_second)
    return statistics.mean(rates)


def join(model: Any, short: list[list[int]], long: list[int]) -> dict[str, float]:
    """Gaps in milliseconds between tokens of running answers before and while a long prompt is read."""
    stop = threading.Event()
    gaps: list[tuple[float, float]] = []  # (when, how long)

    def read(prompt: list[int]) -> None:
        last = None
        for _ in model.stream(prompt, max_tokens=4000, temperature=0, ignore_eos=True, cache=False):
            now = time.perf_counter()
            if last is not None:
                gaps.append((now, now - last))
            last = now
            if stop.is_set():
                return

    threads = [threading.Thread(target=read, args=(prompt,)) for prompt in short]
    for thread in threads:
        thread.start()
    time.sleep(3)
    joined = time.perf_counter()
    model.generate(long, max_tokens=1, temperature=0, cache=False)
    ended = time.perf_counter()
    stop.set()
    for thread in threads:
        thread.join()
    before = [gap for at, gap in gaps if joined - 2 < at < joined]
    during = [gap for at, gap in gaps if joined < at < ended]
    return {
        "median_before_ms": 1e3 * statistics.median(before),
        "median_during_ms": 1e3 * statistics.median(during),
        "longest_during_ms": 1e3 * max(during),
        "prefill_s": ended - joined,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--depth", type=int, nargs="+", default=[16, 900])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--join", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import edgellm
    from edgellm import hub

    path = str(hub.resolve(options.model))
    rng = random.Random(3)
    report: dict[str, Any] = {"model": path, "depth": {}}
    with edgellm.load(path) as model:
        bare = BareLoop(
            path, options.streams, options.streams * (max(options.depth) + options.tokens + 8), model.threads
        )
        for depth in options.depth:
            rates: dict[str, list[float]] = {"edgellm": [], "bare": [], "alone": []}
            prompts = [[rng.randrange(300, 20000) for _ in range(depth)] for _ in range(options.streams)]
            bare.read(prompts)
            for prompt in prompts:
                model.generate(prompt, max_tokens=1)
            for i in range(options.rounds):
                runs = [
                    ("edgellm", lambda p=prompts: together(model, p, options.tokens)),
                    ("bare", lambda: bare.decode(options.tokens)),
                    ("alone", lambda p=prompts: alone(model, p, options.tokens)),
                ]
                for name, run in runs[i % 3 :] + runs[: i % 3]:
                    rates[name].append(run())
                print(depth, {name: round(values[-1], 1) for name, values in rates.items()}, file=sys.stderr)
            ratios = {
                other: [a / b for a, b in zip(rates["edgellm"], rates[other], strict=True)]
                for other in ("bare", "alone")
            }
            report["depth"][depth] = {
                name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
                for name, values in ratios.items()
            }
        if options.join:
            short = [[rng.randrange(300, 20000) for _ in range(16)] for _ in range(options.streams - 1)]
            report["join"] = join(model, short, [rng.randrange(300, 20000) for _ in range(options.join)])
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
