"""Rotary: the tables of cos and sin that rotate q and k, with every scaling of Rope worked into them.

    angle[p, j] = p · base^(-2j/dim), stretched         cos, sin   (rows, dim/2) float32, times rope.magnitude

longrope has two sets of angles, for contexts up to `original` tokens and beyond. Both then lie in one table, and where
a position is looked up depends on the length so far, as transformers has it:

    rows 0 .. original-1         the short factors        position p
    rows original ..             the long factors         position p + original
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures.hyper import Hyper
from edgellm.architectures.rope import Rope, llama3_factors

_ROWS = 8192  # computed at a time


def rope_of(hyper: Hyper, layer: int) -> Rope | None:
    """What rotates q and k of a layer; None where nothing does."""
    rope = hyper.rope
    if rope is None or (rope.every and (layer + 1) % rope.every == 0):
        return None
    if rope.local_base is not None and hyper.windowed and hyper.windowed[layer]:
        return Rope(rope.local_base, rope.dim)
    return replace(rope, local_base=None, every=0)


def is_double(rope: Rope, n_ctx: int) -> bool:
    """Whether the table for n_ctx tokens has both halves of longrope."""
    return rope.scaling == "longrope" and n_ctx > rope.original


def rows(rope: Rope, n_ctx: int) -> int:
    """Rows of the table for n_ctx tokens."""
    return n_ctx + (rope.original if is_double(rope, n_ctx) else 0)


def tables(rope: Rope, n_ctx: int, *, sine: bool) -> Iterator[NDArray[np.float32]]:
    """The table of cos or of sin, some rows at a time: (n, dim/2) float32.

    Angles are products of float32, as transformers computes them: beyond some 10,000 positions that is the larger part
    of what two exact computations would differ by.
    """
    parts = [(n_ctx, False)]
    if is_double(rope, n_ctx):
        parts = [(rope.original, False), (n_ctx, True)]
    for count, long in parts:
        frequencies = _frequencies(rope, long=long).astype(np.float32)
        for start in range(0, count, _ROWS):
            positions = np.arange(start, min(start + _ROWS, count), dtype=np.float32)
            angles = np.outer(positions, frequencies).astype(np.float64)
            yield ((np.sin(angles) if sine else np.cos(angles)) * rope.magnitude).astype(np.float32)


def _frequencies(rope: Rope, *, long: bool) -> NDArray[np.float64]:
    """Radians per position of each pair of elements, (dim/2,)."""
    plain: NDArray[np.float64] = rope.base ** -(np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return plain / llama3_factors(rope).astype(np.float64)
    if rope.scaling == "longrope":
        return plain / np.array(rope.long if long else rope.short, np.float64)
    if rope.scaling == "yarn":
        stretched = _yarn_ramp(rope)
        return plain * (stretched / rope.factor + 1.0 - stretched)
    return plain


def _yarn_ramp(rope: Rope) -> NDArray[np.float64]:
    """How far each frequency is stretched, 0 to 1: not above 32 turns within `original`, wholly below one turn.

    YaRN section 3.2, with the bounds rounded outwards as transformers does.
    """

    def pair(turns: float) -> float:
        return rope.dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), rope.dim - 1)
    ramp: NDArray[np.float64] = np.clip((np.arange(rope.dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return ramp
