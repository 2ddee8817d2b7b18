"""Joined: rows of several tensors, in an order of their own, as one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ggml_types import GGMLType
from .tensor import Tensor, blocked


class Joined:
    """Rows of several tensors, one after the other; of vectors the elements count as rows.

    parts: (tensor, first row, past the last). order: which of those rows each row is; all in turn without one. shape:
    another one of as many rows. shift: what is added to every number.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Tensor, int, int]],
        order: NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
        shift: float = 0.0,
    ) -> None:
        self._parts, self._order, self._shift = tuple(parts), order, np.float32(shift)
        self._starts = np.cumsum([0, *(stop - start for _, start, stop in parts)])
        self.shape = shape or (int(self._starts[-1]), *parts[0][0].shape[1:])
        kinds = {tensor.stored for tensor, _, _ in parts}
        self.stored = kinds.pop() if len(kinds) == 1 else "F32"  # F32 holds every mixture

    @cached_property
    def type(self) -> GGMLType | None:
        """The blocks that all rows are; they move as they are, unless numbers change. None for vectors."""
        types = {tensor.type if blocked(tensor) else None for tensor, _, _ in self._parts}
        return types.pop() if len(types) == 1 and not self._shift and len(self.shape) > 1 else None

    @property
    def exact(self) -> bool:
        """See Blocked."""
        return all(tensor.exact for tensor, _, _ in self._parts if blocked(tensor))

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor."""
        if len(self.shape) == 1:
            return self._take(slice(None)).reshape(1, -1)[which]
        return self._take(which)

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """See Blocked."""
        return self._take(which, raw=True)

    def _take(self, which: slice | NDArray[np.int64], raw: bool = False) -> NDArray[Any]:
        """(n, columns) float32; columns is 1 for vectors. raw: (n, bytes of a row) uint8, the blocks."""
        wanted = (np.arange(self._starts[-1]) if self._order is None else self._order)[which]
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        found: NDArray[Any] | None = None
        for owner in np.unique(owners):
            tensor, start, _ = self._parts[owner]
            mine = owners == owner
            rows = _read(tensor, wanted[mine] - self._starts[owner] + start, raw)
            if found is None:
                found = np.empty((wanted.size, rows.shape[1]), rows.dtype)
            found[mine] = rows
        if found is None:
            return np.empty((0, self._parts[0][0].shape[-1]), np.float32)
        if self._shift:
            found += self._shift
        return found


def _read(tensor: Tensor, which: NDArray[np.int64], raw: bool) -> NDArray[Any]:
    if len(tensor.shape) == 1:
        return tensor.rows(slice(0, 1)).reshape(-1, 1)[which]
    read = tensor.raw if raw and blocked(tensor) else tensor.rows
    if np.array_equal(which, np.arange(which[0], which[0] + which.size)):
        return read(slice(int(which[0]), int(which[0]) + which.size))
    return read(which)


def height(shape: tuple[int, ...]) -> int:
    """Rows of a tensor of this shape, where the elements of a vector count."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])
