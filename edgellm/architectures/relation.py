"""Relation: how some tensors of a Hugging Face checkpoint and some tensors of a GGUF file hold the same numbers.

    hf parts      a (4, c)   b (2, c)            gguf parts     x (3, c)   y (3, c)
    hf rows       0 1 2 3    4 5                 gguf rows      0 1 2      3 4 5
                  gguf_row[i] = hf_row[order[i]] + shift

Rows are what both sides share: a column never moves. That is enough for every architecture here: a plain renaming (no
order), rotary permutations and interleaved q, k, v (an order inside one tensor), stacked experts (many parts to one),
fused gate and up (one to two, with an order), norms stored less one (a shift). Rows also are what quantized blocks run
along, so none of it disturbs them. Where all parts have one dimension, their elements count as the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidModelFile
from ..formats.ggml_types import GGMLType
from ..formats.tensor import Tensor, blocked


@dataclass(frozen=True)
class Part:
    """A tensor by name; shape in numpy order, as it is stored on its side."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Relation:
    """The rows of all `hf` parts, one after the other, are the rows of all `gguf` parts, one after the other.

    gguf_row[i] = hf_row[order[i]] + shift; order: a permutation of all rows, None for the same order.
    transposed: every hf part is stored transposed, (in, out) instead of (out, in), as GPT-2's Conv1D does.
    """

    hf: tuple[Part, ...]
    gguf: tuple[Part, ...]
    order: NDArray[np.int64] | None = None
    shift: float = 0.0
    transposed: bool = False

    @cached_property
    def inverse(self) -> NDArray[np.int64] | None:
        """hf_row[i] = gguf_row[inverse[i]] - shift."""
        return None if self.order is None else np.argsort(self.order)


def to_gguf(relation: Relation, sources: Mapping[str, Tensor]) -> list[tuple[Part, Tensor]]:
    """The relation's GGUF tensors, computed from the Hugging Face ones when rows are asked for.

    Memory: the rows asked for, except that a transposed source is read whole each time (small models only).
    Raises InvalidModelFile for a source that is missing or has another shape.
    """
    parts = [_source(part, sources) for part in relation.hf]
    if relation.transposed:
        parts = [_Transposed(part) for part in parts]
    return _slices(relation.gguf, _Rows(parts, relation.order, np.float32(relation.shift)))


def to_hf(relation: Relation, sources: Mapping[str, Tensor]) -> list[tuple[Part, Tensor]]:
    """The relation's Hugging Face tensors, computed from the GGUF ones; otherwise like `to_gguf`."""
    rows = _Rows([_source(part, sources) for part in relation.gguf], relation.inverse, np.float32(-relation.shift))
    if not relation.transposed:
        return _slices(relation.hf, rows)
    upright = [Part(part.name, part.shape[::-1]) for part in relation.hf]
    return [(part, _Transposed(tensor)) for part, (_, tensor) in zip(relation.hf, _slices(upright, rows), strict=True)]


def _source(part: Part, sources: Mapping[str, Tensor]) -> Tensor:
    if part.name not in sources:
        raise InvalidModelFile(f"tensor {part.name!r} is missing; the checkpoint is incomplete: fetch it again")
    tensor = sources[part.name]
    if tuple(tensor.shape) != part.shape:
        raise InvalidModelFile(
            f"tensor {part.name!r} has the shape {tuple(tensor.shape)}, the hyper-parameters say {part.shape}; "
            "the weights and the configuration are not of the same model"
        )
    return tensor


def _height(shape: tuple[int, ...]) -> int:
    """Rows that a part of this shape contributes: the elements of a vector count."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


def _resolve(which: slice | NDArray[np.int64], total: int) -> NDArray[np.int64]:
    return np.arange(total, dtype=np.int64)[which]


class _Transposed:
    """A matrix seen the other way round; every call reads the whole of it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape[::-1])
        self.stored = tensor.stored

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        whole = self._tensor.rows(slice(0, _height(self._tensor.shape)))
        return np.ascontiguousarray(whole.T[which])


class _Rows:
    """The rows of several tensors, one after the other, then reordered and shifted."""

    def __init__(self, parts: list[Tensor], order: NDArray[np.int64] | None, shift: np.float32) -> None:
        self._parts, self._order, self._shift = parts, order, shift
        self.starts = np.cumsum([0, *(_height(part.shape) for part in parts)])
        kinds = {part.stored for part in parts}
        self.stored = kinds.pop() if len(kinds) == 1 else "F32"  # F32 holds every mixture

    @property
    def type(self) -> GGMLType | None:
        """The blocks that all rows are; they move as they are, unless numbers change."""
        types = {part.type if blocked(part) else None for part in self._parts}
        return types.pop() if len(types) == 1 and not self._shift else None

    @property
    def exact(self) -> bool:
        """See Blocked."""
        return all(part.exact for part in self._parts if blocked(part))

    def take(self, which: NDArray[np.int64], raw: bool = False) -> NDArray[Any]:
        """(n, columns) float32; columns is 1 for vectors. raw: (n, bytes of a row) uint8, the blocks."""
        wanted = which if self._order is None else self._order[which]
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        found: NDArray[Any] | None = None
        for owner in np.unique(owners):
            mine = owners == owner
            rows = self._read(self._parts[owner], wanted[mine] - self.starts[owner], raw)
            if found is None:
                found = np.empty((which.size, rows.shape[1]), rows.dtype)
            found[mine] = rows
        if found is None:
            return np.empty((0, self._parts[0].shape[-1]), np.float32)
        if self._shift:
            found += self._shift
        return found

    @staticmethod
    def _read(part: Tensor, which: NDArray[np.int64], raw: bool) -> NDArray[Any]:
        if len(part.shape) == 1:
            return part.rows(slice(0, 1)).reshape(-1, 1)[which]
        read = part.raw if raw and blocked(part) else part.rows
        if which.size and np.array_equal(which, np.arange(which[0], which[0] + which.size)):
            return read(slice(int(which[0]), int(which[0]) + which.size))
        return read(which)


class _Slice:
    """The part of the reordered rows that one target tensor holds."""

    def __init__(self, part: Part, rows: _Rows, start: int) -> None:
        self._rows, self._start = rows, start
        self.shape = part.shape
        self.stored = rows.stored

    @property
    def type(self) -> GGMLType | None:
        """See Blocked; none for vectors."""
        return self._rows.type if len(self.shape) > 1 else None

    @property
    def exact(self) -> bool:
        """See Blocked."""
        return self._rows.exact

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """See Blocked."""
        return self._rows.take(_resolve(which, _height(self.shape)) + self._start, raw=True)

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        height = _height(self.shape)
        if len(self.shape) == 1:
            whole = self._rows.take(np.arange(self._start, self._start + height))
            return whole.reshape(1, -1)[which]
        return self._rows.take(_resolve(which, height) + self._start)


def _slices(parts: tuple[Part, ...] | list[Part], rows: _Rows) -> list[tuple[Part, Tensor]]:
    starts = np.cumsum([0, *(_height(part.shape) for part in parts)])
    return [(part, _Slice(part, rows, int(start))) for part, start in zip(parts, starts, strict=False)]
