"""Merged: a tensor and what an adapter adds to it, computed when rows are asked for.

    LoRA    base + scaling · left · right
    DoRA    the same, each output's weights scaled to the length that was learned (https://arxiv.org/abs/2402.09353)

left (rows, r), right (r, columns): of a matrix (out, in) they are lora_B and lora_A; of one that lies the other way
round, (in, out), and of embeddings, they are the transposes of lora_A and lora_B. A row has the same bits whatever else
is asked for beside it: products are always of as many rows, the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile
from edgellm.formats.tensor import Tensor, check_finite, chunks, n_rows

from ..numbers import ADAPTED

Floats = NDArray[np.float32]
_STEP = 64  # rows of a product
_ALONE = 1 << 18  # multiplications that OpenBLAS does not hand out to threads, which would wait for one another


class Merged:
    """where: what messages call it. factors: gives left and right. magnitude: gives DoRA's, one number for each output;
    upright: outputs are rows.

    Memory: the factors, beside the rows. Raises InvalidModelFile for numbers that are not finite.
    """

    def __init__(
        self,
        where: str,
        base: Tensor,
        factors: Callable[[], tuple[Floats, Floats]],
        scaling: float,
        magnitude: Callable[[], Floats] | None = None,
        upright: bool = True,
    ) -> None:
        self.shape, self.stored = base.shape, adapted(base)
        self._where, self._base, self._factors, self._scaling = where, base, factors, np.float32(scaling)
        self._magnitude, self._upright = magnitude, upright

    def rows(self, which: slice | NDArray[np.int64]) -> Floats:
        """See Tensor."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = self._made(which)
        check_finite(self._where, found)
        return found

    def _made(self, which: slice | NDArray[np.int64]) -> Floats:
        found = self._sum(which)
        if self._magnitude is None:
            return found
        if not self._upright:
            found *= self._column_factors
            return found
        magnitude = self._magnitude()[np.arange(n_rows(self))[which]]
        for start in range(0, len(found), _STEP):
            part = found[start : start + _STEP]
            lengths = np.sqrt(np.square(part, dtype=np.float64).sum(axis=1)).astype(np.float32)
            part *= _factors_of(magnitude[start : start + _STEP], lengths)[:, None]
        return found

    def _sum(self, which: slice | NDArray[np.int64]) -> Floats:
        found = self._base.rows(which)
        left, right = self._factors()
        index = np.arange(n_rows(self))[which]
        block = index // _STEP
        product = np.empty((_STEP, right.shape[1]), np.float32)
        width = max(1, _ALONE // (_STEP * len(right)))
        order = np.argsort(block, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            if not mine.size:
                continue
            first = block[mine[0]] * _STEP
            part = left[first : first + _STEP]
            if len(part) < _STEP:
                part = np.concatenate([part, np.zeros((_STEP - len(part), part.shape[1]), np.float32)])
            part = np.ascontiguousarray(part)
            for start in range(0, product.shape[1], width):
                product[:, start : start + width] = part @ right[:, start : start + width]
            product *= self._scaling
            at = index[mine] - first
            if np.array_equal(at, np.arange(at[0], at[0] + at.size)) and mine[-1] - mine[0] == mine.size - 1:
                found[mine[0] : mine[-1] + 1] += product[at[0] : at[-1] + 1]  # in a third of the time
            else:
                found[mine] += product[at]
        return found

    @cached_property
    def _column_factors(self) -> Floats:
        """DoRA's factors of a matrix whose outputs are columns: all rows are read once for them."""
        assert self._magnitude is not None
        squares = np.zeros(self.shape[-1])
        for part in chunks(self):
            squares += np.square(self._sum(part), dtype=np.float64).sum(axis=0)
        return _factors_of(self._magnitude(), np.sqrt(squares).astype(np.float32))


class Replaced:
    """A tensor of an adapter in the place of the base's."""

    def __init__(self, base: Tensor, tensor: Tensor) -> None:
        self.shape, self.stored, self._tensor = base.shape, adapted(base), tensor

    def rows(self, which: slice | NDArray[np.int64]) -> Floats:
        """See Tensor."""
        return self._tensor.rows(which)


def adapted(base: Tensor) -> str:
    """The storage type of what is made of a tensor: float32 sums, to be kept like the base's numbers."""
    return base.stored.removesuffix(ADAPTED) + ADAPTED


def _factors_of(magnitude: Floats, lengths: Floats) -> Floats:
    if not lengths.all():
        raise InvalidModelFile("DoRA: an output whose weights are all 0 cannot be scaled; train the adapter again")
    return magnitude / lengths
