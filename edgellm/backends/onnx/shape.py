"""How a pass is cut into runs, so that a token gives the same bits in whichever run it is computed.

What ONNX Runtime (1.31, CPU) computes for a token in a run of several depends on the others in two ways; both were
measured with head sizes 16 to 256, several numbers of heads and of threads, and every run of 1 to 139 tokens. All is
in GroupQueryAttention, which works on blocks of queries and keys sized by the L2 cache
(https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cpu/bert/gqa_attention_base.h):

    keys       block = L2 / (32 · head size) tokens, from position 0 on
    queries    min(block, 2 · head size) tokens, from the first of the run on

1. A block with one query alone goes through a kernel for one row: a run of 33 tokens with heads of 16 (blocks of 32
   queries) gives the last of them other bits than a run of 34. Such a run gets one token more, whose row is dropped
   and whose cell the next run writes over. A run of one token is another kernel throughout: the engine makes one only
   to decode, and what is left alone by 2. gets a second token as well.
2. Sums over a head of more than 128 numbers are split where the last block of keys has more than 64 tokens, and not
   below (MLAS keeps panels of 128 · 128 numbers: sgemm.cpp). A run ends where its last block has 64; with more than
   256 numbers also at 32.

One that starts at a multiple of 4 and has at least 8 tokens then gives what any other does. Where attention is our
own, runs are not cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from edgellm.backends.base import PassShape

# Every prompt of a pass is a run of its own: nothing depends on what is beside it, and an answer would only come later.
PASS_SHAPE = PassShape(align=4, shortest=8)
PANEL = 128 * 128  # numbers of a matrix that MLAS works on at once
WIDTHS = (64, 32)  # keys in the last block at which the split changes, for ever larger heads
UNKNOWN_QUERIES, UNKNOWN_KEYS = 16, 64  # divide the blocks for every usual cache and head


def l2_cache() -> int | None:
    """Bytes of the L2 cache as ONNX Runtime asks for them, None where that is not known here."""
    name = "SC_LEVEL2_CACHE_SIZE"
    if name not in getattr(os, "sysconf_names", {}):
        return None
    return max(0, os.sysconf(name))


def cut(start: int, count: int, head_sizes: Iterable[int], l2: int | None) -> list[tuple[int, bool]]:
    """The runs for `count` tokens from position `start` on: how many tokens, and whether one more is to be added."""
    if count == 1:
        return [(1, False)]
    sizes = set(head_sizes)
    stops = {stop for size in sizes for stop in _stops(start, start + count, size, l2)} | {start + count}
    runs: list[tuple[int, bool]] = []
    for stop in sorted(stops):
        tokens, start = stop - start, stop
        runs.append((tokens, tokens == 1 or any(_one_is_left(tokens, size, l2) for size in sizes)))
    return runs


def _stops(start: int, stop: int, size: int, l2: int | None) -> Iterator[int]:
    """Positions between start and stop where a run has to end (see 2)."""
    block = UNKNOWN_KEYS if l2 is None else _keys(size, l2)
    widths = [width for width in WIDTHS if PANEL // (2 * width) < size and (width < block or l2 is None)]
    for first in range(start // block * block, stop, block) if widths else ():
        for end in (first + width for width in widths):
            if start < end < stop:
                yield end


def _one_is_left(tokens: int, size: int, l2: int | None) -> bool:
    """Whether the last block of queries of a run has one (see 1)."""
    queries = UNKNOWN_QUERIES if l2 is None else min(_keys(size, l2), 2 * size)
    return tokens > queries and tokens % queries == 1


def _keys(size: int, l2: int) -> int:
    return max(1, l2 // (32 * size))
