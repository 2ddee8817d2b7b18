"""Rotary: the tables of cos and sin that rotate q and k, with every scaling of Rope worked into them.

    angle[p, j] = p · base^(-2j/dim), stretched         cos, sin   (rows, dim/2) float32, times rope.magnitude

longrope has two sets of angles, for contexts up to `original` tokens and beyond. Both then lie in one table, and where
a position is looked up depends on the length so far, as transformers has it:

    rows 0 .. original-1         the short factors        position p
    rows original ..             the long factors         position p + original
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures.rope import Rope, frequencies

_ROWS = 8192  # computed at a time


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
        turns = frequencies(rope, long=long).astype(np.float32)
        for start in range(0, count, _ROWS):
            positions = np.arange(start, min(start + _ROWS, count), dtype=np.float32)
            angles = np.outer(positions, turns).astype(np.float64)
            yield ((np.sin(angles) if sine else np.cos(angles)) * rope.magnitude).astype(np.float32)
