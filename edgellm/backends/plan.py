"""SamplingPlan: how one token is chosen from a row of logits, in plain numbers, for backends that choose themselves.

The numbers are used in the order of the fields; what they mean is done in numpy by `edgellm.engine.sampling.choose`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """Lowers the logits of `ids` (n,): first those above 0 are divided by `repeat`, and others multiplied by it, then
    `amounts` (n,) float64 are subtracted; inf forbids. The result is rounded to float32, the largest one at most."""

    ids: NDArray[np.intp]
    amounts: NDArray[np.float64]
    repeat: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SamplingPlan:
    """mask (n_vocab,): False forbids a token; None allows all. temperature: 0 takes the likeliest token, the smallest
    id of equal ones, and nothing else counts. filters: the options that are on, in their order, with their values.
    point: in [0, 1), where in the distribution of what is left, by falling logit, then by id, the token is."""

    shifts: tuple[Shift, ...]
    mask: NDArray[np.bool_] | None
    temperature: float
    filters: tuple[tuple[str, float], ...] = ()
    point: float = 0.0
