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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidModelFile
from ..formats.joined import Joined, height
from ..formats.tensor import Tensor


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
    return _shared_out(relation.gguf, parts, relation.order, relation.shift)


def to_hf(relation: Relation, sources: Mapping[str, Tensor]) -> list[tuple[Part, Tensor]]:
    """The relation's Hugging Face tensors, computed from the GGUF ones; otherwise like `to_gguf`."""
    parts = [_source(part, sources) for part in relation.gguf]
    if not relation.transposed:
        return _shared_out(relation.hf, parts, relation.inverse, -relation.shift)
    upright = [Part(part.name, part.shape[::-1]) for part in relation.hf]
    made = _shared_out(upright, parts, relation.inverse, -relation.shift)
    return [(part, _Transposed(tensor)) for part, (_, tensor) in zip(relation.hf, made, strict=True)]


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


class _Transposed:
    """A matrix seen the other way round; every call reads the whole of it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape[::-1])
        self.stored = tensor.stored

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        whole = self._tensor.rows(slice(0, height(self._tensor.shape)))
        return np.ascontiguousarray(whole.T[which])


def _shared_out(
    targets: Sequence[Part], sources: Sequence[Tensor], order: NDArray[np.int64] | None, shift: float
) -> list[tuple[Part, Tensor]]:
    """The rows of all sources, in that order, as the targets divide them."""
    found: list[tuple[Part, Tensor]] = []
    ends = np.cumsum([height(source.shape) for source in sources]).tolist()
    whole = [(source, end - height(source.shape), end) for source, end in zip(sources, ends, strict=True)]
    stop = 0
    for part in targets:
        start, stop = stop, stop + height(part.shape)
        if order is None:
            rows = [(s, max(start - at, 0), min(stop, end) - at) for s, at, end in whole if at < stop and start < end]
        else:
            rows = [(source, 0, end - at) for source, at, end in whole]
        found.append((part, Joined(rows, None if order is None else order[start:stop], part.shape, shift)))
    return found
