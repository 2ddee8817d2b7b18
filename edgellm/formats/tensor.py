"""Tensor: a weight that is read when it is asked for, a few rows at a time.

A tensor of shape (..., columns) is seen as rows: (n_rows, columns). One dimension counts as a single row. Whatever
transforms or stores a model goes through chunks of rows, so its memory does not grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidModelFile
from .ggml_types import GGMLType

CHUNK_BYTES = 32 << 20  # float32 bytes of a chunk of rows


class Tensor(Protocol):
    """shape: in numpy order. stored: the storage type in capitals, as safetensors or ggml name it: F32, BF16, Q4_K."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def stored(self) -> str: ...

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows `which` names, in that order: (n, columns) float32."""
        ...


class Blocked(Tensor, Protocol):
    """A Tensor whose rows also are, or can be written as, blocks of a GGUF type.

    type: None where they cannot. exact: whether the blocks hold the very same weights, not ones with rounded scales.
    """

    @property
    def type(self) -> GGMLType | None: ...

    @property
    def exact(self) -> bool: ...

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The blocks of rows: (n, bytes of a row) uint8. Only where there is a type."""
        ...


def blocked(tensor: Tensor) -> TypeGuard[Blocked]:
    """Whether a tensor has blocks."""
    return getattr(tensor, "type", None) is not None


def n_rows(tensor: Tensor) -> int:
    """Rows of the flattened tensor; 1 for one dimension."""
    return math.prod(tensor.shape[:-1])


def chunks(tensor: Tensor) -> Iterator[slice]:
    """Slices of at most CHUNK_BYTES (but at least one row) that cover all rows in order."""
    total, step = n_rows(tensor), max(1, CHUNK_BYTES // (4 * tensor.shape[-1]))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def check_finite(name: str, rows: NDArray[np.float32]) -> None:
    """Refuse weights that would spoil every answer of the model. Raises InvalidModelFile."""
    finite = np.isfinite(rows)
    if not finite.all():
        bad = rows.size - int(np.count_nonzero(finite))
        raise InvalidModelFile(
            f"tensor {name!r}: {bad} of {rows.size} weights read are NaN, infinite or beyond float32; "
            "the checkpoint is damaged: fetch or train it again"
        )
