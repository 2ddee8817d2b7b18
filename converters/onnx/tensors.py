"""The ways in which ONNX graphs store a weight, as tensors whose rows are decoded when they are asked for.

    Blocks     MatMulNBits, GatherBlockQuantized   w = (q - zero) · scale [+ correction], per block of a row (blocks.py)
    Integers   MatMulInteger, DequantizeLinear     w = (q - zero) · scale, per matrix or per row of it
    Floats     MatMul, Gemm, Gather, norms, biases

What a graph fused, or keeps apart, is Joined. Some blocks are GGUF's as well: they move with `raw`, not through
numbers. Layouts: the operators' schemas in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
https://github.com/onnx/onnx/blob/main/docs/Operators.md; GGUF's in ggml's ggml-common.h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Unsupported
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.tensor import n_rows

from ..numbers import decode

Which = slice | NDArray[np.int64]

_STORED = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}


class Floats:
    """A weight of floating-point numbers; transposed: stored (K, N), as MatMul takes it. A scalar has the shape (1,).

    Raises Unsupported for integers.
    """

    def __init__(self, file: ONNXFile, name: str, transposed: bool = False) -> None:
        info = file.info(name)
        self._file, self._name, self._transposed = file, name, transposed
        self.shape = info.shape[::-1] if transposed else info.shape or (1,)
        if info.dtype not in _STORED:
            raise file.error(Unsupported, name, f"a weight of this type; {', '.join(_STORED)} are read")
        self.stored = _STORED[info.dtype]

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor. A row of a transposed matrix is a column of the file."""
        whole = self._file.array(self._name)
        part = whole[:, which].T if self._transposed else whole.reshape(n_rows(self), -1)[which]
        values = decode(self.stored, np.ascontiguousarray(part).view(np.uint8))
        self._file.release(self._name)
        return values


class Integers:
    """An 8-bit matrix with one scale and one zero point, or one of each per row. transposed: as in Floats."""

    stored = "INT8"

    def __init__(self, file: ONNXFile, name: str, scale: str, zero: str | None, transposed: bool) -> None:
        info = file.info(name)
        self._file, self._name, self._transposed = file, name, transposed
        if len(info.shape) != 2 or info.dtype not in ("INT8", "UINT8"):
            raise file.error(Unsupported, name, "quantized in a way that is not read: 8-bit matrices are")
        self.shape = info.shape[::-1] if transposed else info.shape
        self._scale = self._per_row(scale)
        self._zero = self._per_row(zero) if zero else np.zeros((1, 1), np.float32)

    def _per_row(self, name: str) -> NDArray[np.float32]:
        """(1, 1) or (N, 1) float32."""
        self._file.info(name)
        values = self._file.array(name).astype(np.float32).reshape(-1, 1)
        if values.shape[0] not in (1, self.shape[0]):
            raise self._file.error(Unsupported, name, f"belongs to a matrix of {self.shape[0]} rows: one each, or one")
        return values

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor."""
        whole = self._file.array(self._name)
        part = (whole[:, which].T if self._transposed else whole[which]).astype(np.float32)
        scale, zero = (v if v.shape[0] == 1 else v[which] for v in (self._scale, self._zero))
        part -= zero
        part *= scale
        self._file.release(self._name)
        return np.ascontiguousarray(part)
