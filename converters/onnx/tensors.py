"""The ways in which ONNX graphs store a weight, as tensors whose rows are decoded when they are asked for.

    Blocks     MatMulNBits, GatherBlockQuantized   w = (q - zero) · scale [+ correction], per block of a row (blocks.py)
    Integers   MatMulInteger, DequantizeLinear     w = (q - zero) · scale, per matrix or per row of it
    Floats     MatMul, Gemm, Gather, norms, biases
    Joined     the rows of several of them: what a graph fused, or keeps apart

Some blocks are GGUF's as well: they move with `raw`, not through numbers. Layouts: the operators' schemas in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
https://github.com/onnx/onnx/blob/main/docs/Operators.md; GGUF's in ggml's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidModelFile, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Initializer
from edgellm.formats.tensor import Blocked, Tensor, n_rows

from ..numbers import decode

Which = slice | NDArray[np.int64]

_STORED = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}


class Store:
    """The initializers of a model, by name."""

    def __init__(self, file: ONNXFile) -> None:
        self.file = file
        self._known = {info.name: info for info in file.graph.initializers}

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def info(self, name: str) -> Initializer:
        """What the graph says of it. Raises InvalidModelFile."""
        if name not in self._known:
            raise InvalidModelFile(
                f"{self.file.path}: a weight needs the initializer {name[:200]!r}, which is not there; export it again"
            )
        return self._known[name]

    def array(self, name: str) -> NDArray[Any]:
        """See ONNXFile."""
        return self.file.array(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """See ONNXFile."""
        return self.file.data(name)

    def release(self, *names: str) -> None:
        """See ONNXFile."""
        for name in names:
            self.file.release(name)

    def error(self, kind: type[EdgeLLMError], name: str, what: str) -> EdgeLLMError:
        """An error about an initializer."""
        info = self.info(name)
        return kind(f"{self.file.path}: {name[:200]!r} ({info.dtype}, shape {info.shape}): {what}")


class Plain:
    """A tensor with numbers only."""

    type: GGMLType | None = None
    exact = True
    shape: tuple[int, ...]
    stored: str

    def raw(self, which: Which) -> NDArray[np.uint8]:
        """See Blocked. Raises Unsupported."""
        raise Unsupported(f"a tensor stored as {self.stored} has no GGUF blocks; read its rows")


class Floats(Plain):
    """A weight of floating-point numbers; transposed: stored (K, N), as MatMul takes it. A scalar has the shape (1,).

    Raises Unsupported for integers.
    """

    def __init__(self, store: Store, name: str, transposed: bool = False) -> None:
        info = store.info(name)
        self._store, self._name, self._transposed = store, name, transposed
        self.shape = info.shape[::-1] if transposed else info.shape or (1,)
        if info.dtype not in _STORED:
            raise store.error(Unsupported, name, f"a weight of this type; {', '.join(_STORED)} are read")
        self.stored = _STORED[info.dtype]

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor. A row of a transposed matrix is a column of the file."""
        whole = self._store.array(self._name)
        part = whole[:, which].T if self._transposed else whole.reshape(n_rows(self), -1)[which]
        values = decode(self.stored, np.ascontiguousarray(part).view(np.uint8))
        self._store.release(self._name)
        return values


class Integers(Plain):
    """An 8-bit matrix with one scale and one zero point, or one of each per row. transposed: as in Floats."""

    stored = "INT8"

    def __init__(self, store: Store, name: str, scale: str, zero: str | None, transposed: bool) -> None:
        info = store.info(name)
        self._store, self._name, self._transposed = store, name, transposed
        if len(info.shape) != 2 or info.dtype not in ("INT8", "UINT8"):
            raise store.error(Unsupported, name, "quantized in a way that is not read: 8-bit matrices are")
        self.shape = info.shape[::-1] if transposed else info.shape
        self._scale = self._per_row(scale)
        self._zero = self._per_row(zero) if zero else np.zeros((1, 1), np.float32)

    def _per_row(self, name: str) -> NDArray[np.float32]:
        """(1, 1) or (N, 1) float32."""
        self._store.info(name)
        values = self._store.array(name).astype(np.float32).reshape(-1, 1)
        if values.shape[0] not in (1, self.shape[0]):
            raise self._store.error(Unsupported, name, f"belongs to a matrix of {self.shape[0]} rows: one each, or one")
        return values

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor."""
        whole = self._store.array(self._name)
        part = (whole[:, which].T if self._transposed else whole[which]).astype(np.float32)
        scale, zero = (v if v.shape[0] == 1 else v[which] for v in (self._scale, self._zero))
        part -= zero
        part *= scale
        self._store.release(self._name)
        return np.ascontiguousarray(part)


class Joined:
    """Rows of several tensors, one after the other; of vectors their elements count as rows.

    parts: (tensor, first row, past the last). order: which of those rows each row is; all in turn without one. shape:
    another one of as many rows.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Blocked, int, int]],
        order: NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(stop - start for _, start, stop in parts)])
        self._order: NDArray[np.int64] = np.arange(self._starts[-1]) if order is None else order
        self.shape = shape or (int(self._starts[-1]), *parts[0][0].shape[1:])
        kinds = {tensor.stored for tensor, _, _ in parts}
        self.stored = kinds.pop() if len(kinds) == 1 else "F32"  # F32 holds every mixture

    @cached_property
    def type(self) -> GGMLType | None:
        """See Blocked."""
        types = {tensor.type for tensor, _, _ in self._parts}
        return types.pop() if len(types) == 1 else None

    @property
    def exact(self) -> bool:
        """See Blocked."""
        return all(tensor.exact for tensor, _, _ in self._parts)

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor."""
        if len(self.shape) == 1:
            pieces = [tensor.rows(slice(0, 1))[0, start:stop] for tensor, start, stop in self._parts]
            return np.concatenate(pieces)[self._order].reshape(1, -1)[which]
        return np.concatenate([tensor.rows(mine) for tensor, mine in self._owners(which)])

    def raw(self, which: Which) -> NDArray[np.uint8]:
        """See Blocked."""
        return np.concatenate([tensor.raw(mine) for tensor, mine in self._owners(which)])

    def _owners(self, which: Which) -> list[tuple[Blocked, Which]]:
        """The tensors that hold these rows, in order, and which of theirs they are."""
        wanted = self._order[which]
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        found: list[tuple[Blocked, Which]] = []
        for run in np.split(np.arange(wanted.size), np.flatnonzero(np.diff(owners)) + 1):
            number = int(owners[run[0]]) if run.size else 0
            tensor, start, _ = self._parts[number]
            mine = wanted[run] - self._starts[number] + start
            together = run.size > 0 and np.array_equal(mine, np.arange(mine[0], mine[0] + mine.size))
            found.append((tensor, slice(int(mine[0]), int(mine[0]) + mine.size) if together else mine))
        return found


class Shifted(Plain):
    """A tensor plus a number."""

    stored = "F32"

    def __init__(self, tensor: Tensor, shift: float) -> None:
        self._tensor, self._shift = tensor, np.float32(shift)
        self.shape = tensor.shape

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor."""
        moved: NDArray[np.float32] = self._tensor.rows(which) + self._shift
        return moved
