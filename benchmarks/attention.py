"""Attention over pages by itself, beside reading as many bytes.

python benchmarks/attention.py [--depths 512 2048 8192] [--heads 32 --kv-heads 8 --size 64] [--kv int16] [--json FILE]

One thread. One token behind so many others, in layers that no cache holds: GB/s of keys, values and scales beside plain
memory. A prompt of so many tokens in one layer: TOPS. All in turn, in every round; what counts are the ratios within a
round, their median and range. Times are those of the processor. Needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from kernels import Limits, spread

from edgellm import _native

MEMORY = 192 << 20  # bytes of pages that no cache holds
ALL = 2**63  # a window that sees everything


def timed(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


class Text:
    """`depth` tokens in a cache of so many layers, each with random queries, keys and values."""

    def __init__(self, options: argparse.Namespace, depth: int, layers: int, tokens: int) -> None:
        rng = np.random.default_rng(0)
        pages = _native.KvPages(layers, options.kv_heads, options.size, options.kv, depth // 32 + tokens // 32 + 2)
        self._set, self._scale, self._layers = options.set, options.size**-0.5, layers
        self._table = _native.KvTable(pages)
        part = (options.kv_heads, options.size)
        query = rng.standard_normal((max(tokens, 32), options.heads, options.size), np.float32)
        self._rows = (query, *rng.standard_normal((2, len(query), *part), np.float32))
        self._out = np.zeros_like(query)
        for start in range(0, depth, 32):
            for layer in range(layers):
                self.attend(layer, min(32, depth - start))
        self.bytes = depth * pages.page_bytes // 32

    def attend(self, layer: int, tokens: int) -> None:
        """Of the next tokens, which become part of the text with the last layer."""
        rows = (each[:tokens] for each in self._rows)
        _native.attend(self._set, self._table, layer, *rows, ALL, self._scale, 0.0, self._out[:tokens])

    def all_but_one(self, tokens: int) -> None:
        for layer in range(self._layers - 1):
            self.attend(layer, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="of a head")
    parser.add_argument("--kv", default="int16", help="int16, int8 or f32")
    parser.add_argument("--set", default=_native.kernel_sets()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    limits, all_found = Limits(), {}
    memory = np.ones(MEMORY, np.uint8)
    print(f"{_native.cpu_name()}, 1 thread, {options.set}, {options.kv}")
    for depth in options.depths:
        layer_bytes = depth * _native.KvPages(1, options.kv_heads, options.size, options.kv, 1).page_bytes // 32
        layers = max(2, MEMORY // layer_bytes)
        one, prompt = Text(options, depth, layers, 1), Text(options, 0, 2, depth)
        read_bytes = one.bytes * (layers - 1) // layers
        operations = 4 * options.heads * options.size * depth * (depth + 1) // 2
        found: dict[str, list[float]] = {"read": [], "one": [], "prompt": []}
        for _ in range(options.rounds):
            found["read"].append(MEMORY / timed(partial(limits.read, memory)) / 1e9)
            found["one"].append(read_bytes / timed(partial(one.all_but_one, 1)) / 1e9)
            found["prompt"].append(operations / timed(partial(prompt.attend, 0, depth)) / 1e12)
        all_found[depth] = found
        share = [a / b for a, b in zip(found["one"], found["read"], strict=True)]
        print(f"{depth} tokens")
        print(f"  one more  {spread(found['one'])} GB/s of {spread(found['read'])}: {spread(share)}")
        print(f"  prompt    {statistics.median(found['prompt']):.3f} TOPS", flush=True)
    if options.json:
        options.json.write_text(json.dumps(all_found))


if __name__ == "__main__":
    main()
