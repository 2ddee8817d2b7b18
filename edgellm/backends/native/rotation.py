"""What rotates q and k in each layer: frequencies and magnitudes, with the scaling of the context worked in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Hyper, Rope
from edgellm.architectures.rope import frequencies
from edgellm.errors import InvalidModelFile


@dataclass(frozen=True, slots=True)
class Rotation:
    """frequencies: radians per position of each pair, (dim/2,) float64. magnitude: what cos and sin are multiplied
    with."""

    frequencies: NDArray[np.float64]
    magnitude: float


def rotations(hyper: Hyper, n_ctx: int) -> tuple[list[int], list[Rotation]]:
    """For each layer which of the rotations it has, counted from 1, 0 for none; and the rotations.

    Raises InvalidModelFile for numbers that give none.
    """
    ropes = [hyper.rotation(layer) for layer in range(hyper.n_layer)]
    different = [rope for rope in dict.fromkeys(ropes) if rope is not None]
    which = [different.index(rope) + 1 if rope is not None else 0 for rope in ropes]
    return which, [_rotation(rope, n_ctx) for rope in different]


def is_long(hyper: Hyper, n_ctx: int) -> bool:
    """Whether a context of `n_ctx` tokens has longrope's factors for long ones: all of its texts do, as in llama.cpp,
    which looks at the context that it is opened with."""
    return hyper.rope is not None and hyper.rope.scaling == "longrope" and n_ctx > hyper.rope.original


def _rotation(rope: Rope, n_ctx: int) -> Rotation:
    long = rope.scaling == "longrope" and n_ctx > rope.original
    with np.errstate(all="ignore"):
        found = frequencies(rope, long=long)
    if not np.isfinite(found).all():
        raise InvalidModelFile(
            f"a rotary embedding of θ = {rope.base:g} whose frequencies are no numbers: {rope}"[:400]
        )
    return Rotation(found, rope.magnitude)
