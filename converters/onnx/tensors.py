"""The ways in which ONNX graphs store a weight, as tensors whose rows are decoded when they are asked for.

    Blocks     MatMulNBits, GatherBlockQuantized   w = (q - zero) · scale [+ correction], per block of a row
    Integers   MatMulInteger, DequantizeLinear     w = (q - zero) · scale, per matrix or per row of it
    Floats     MatMul, Gemm, Gather, norms, biases
    Joined     the rows of several of them: what a graph fused, or keeps apart

Some blocks are GGUF's as well: they move with `raw`, not through numbers. Layouts: the operators' schemas in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
https://github.com/onnx/onnx/blob/main/docs/Operators.md; GGUF's in ggml's ggml-common.h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidModelFile, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Initializer
from edgellm.formats.tensor import CHUNK_BYTES, Blocked, Tensor, n_rows

from ..numbers import decode

Which = slice | NDArray[np.int64]

_STORED = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
_BLOCK = 32  # elements of a block of every GGUF type below


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
        return self.file.raw(name)

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


@dataclass(frozen=True)
class BlockNames:
    """The initializers of a Blocks. zero: packed like q, one in a byte (N, K / block, 1), or floats; without one it is
    the middle of the range. correction: (K / block, N) float32, what is added to every weight of a block. low: where 8
    bits are stored as two times 4, the low ones; q has the high ones then."""

    q: str
    scale: str
    zero: str | None = None
    correction: str | None = None
    low: str | None = None


class Blocks:
    """A matrix (N, K) of 4 or 8 bits with a scale per block of a row.

    q: (N, K / block, block · bits / 8) uint8, the low half of a byte first. Raises Unsupported, InvalidModelFile.
    """

    def __init__(self, store: Store, names: BlockNames, shape: tuple[int, int], bits: int, block: int) -> None:
        self._store, self._names, self.shape = store, names, shape
        self._bits, self._block = bits, block
        if bits not in (4, 8) or block < 16 or min(shape) < 1:
            raise store.error(
                Unsupported, names.q, f"{bits} bits in blocks of {block}; 4 and 8 bits from 16 on are read"
            )
        self._n_blocks = n = -(-shape[1] // block)
        for codes in (names.q, names.low) if names.low else (names.q,):
            self._expect(codes, n * block * (4 if names.low else bits) // 8, "UINT8")
        self._expect(names.scale, n, "FLOAT", "FLOAT16")
        self._float_zero = names.zero is not None and store.info(names.zero).dtype != "UINT8"
        self._zero_bits = bits
        if names.zero:
            self._zero_bits = 8 if store.info(names.zero).shape == (shape[0], n, 1) else bits
            expected = n if self._float_zero else -(-n * self._zero_bits // 8)
            self._expect(names.zero, expected, "UINT8", "FLOAT", "FLOAT16")
        if names.correction:
            self._expect(names.correction, n, "FLOAT")
        extra = ("+zp" if names.zero else "") + ("+min" if names.correction else "")
        self.stored = f"INT{bits}/{block}{extra}"

    def _expect(self, name: str, per_row: int, *dtypes: str) -> None:
        info = self._store.info(name)
        if math.prod(info.shape) != per_row * self.shape[0] or info.dtype not in dtypes:
            what = f"a matrix of {self.shape} needs {per_row} values of {' or '.join(dtypes)} for each row"
            raise self._store.error(InvalidModelFile, name, what)

    def rows(self, which: Which) -> NDArray[np.float32]:
        """See Tensor: the numbers that ONNX Runtime multiplies with, in float32."""
        q, scale, zero, minimum = self._blocks(which)
        values = (q.astype(np.float32) - zero[..., None]) * scale[..., None]
        if minimum is not None:
            values += minimum[..., None]
        self._release()
        return np.ascontiguousarray(values.reshape(len(values), -1)[:, : self.shape[1]])

    @cached_property
    def type(self) -> GGMLType | None:
        """See Blocked: Q4_0, Q4_1 or Q8_0. None for blocks that are no multiple of 32 and for scales beyond float16."""
        if self._block % _BLOCK or self.shape[1] % _BLOCK or (self._bits == 8 and self._names.correction):
            return None
        symmetric, finite = self._facts[:2]
        if not finite or (self._bits == 8 and not symmetric):
            return None
        if self._bits == 8:
            return GGMLType.Q8_0
        return GGMLType.Q4_0 if symmetric and not self._names.correction else GGMLType.Q4_1

    @property
    def exact(self) -> bool:
        """See Blocked."""
        return self.type is not None and self._facts[2]

    @cached_property
    def _facts(self) -> tuple[bool, bool, bool]:
        """Whether all zero points are the middle; all scales are float16 in range; all of them float16 numbers."""
        symmetric = finite = exact = True
        step = max(1, CHUNK_BYTES // (8 * self._n_blocks))
        for start in range(0, self.shape[0], step):
            scale, zero, minimum = self._scales(slice(start, start + step))
            symmetric &= bool((zero == self._middle).all())
            d, m = _halves(scale, zero, minimum)
            finite &= bool(np.isfinite(d).all() and np.isfinite(m).all())
            exact &= np.array_equal(d.astype(np.float32), scale)
            if minimum is not None:  # a sum that was rounded to float32, and comes out the same
                exact &= np.array_equal(m.astype(np.float32) + zero * scale, minimum)
            elif not symmetric:
                exact &= np.array_equal(m.astype(np.float64), -zero.astype(np.float64) * scale)
        self._release()
        return symmetric, finite, exact

    def raw(self, which: Which) -> NDArray[np.uint8]:
        """See Blocked. Layouts: Q4_0 is (d, 16 bytes), Q4_1 (d, m, 16 bytes), Q8_0 (d, 32 bytes), d and m float16; of 4
        bits element i shares its byte with element i + 16."""
        if self.type is None:
            raise self._store.error(Unsupported, self._names.q, "no GGUF blocks; read its rows")
        q, scale, zero, minimum = self._blocks(which)
        n, repeat = len(q), self._block // _BLOCK
        q = q.reshape(n, -1, _BLOCK)[:, : self.shape[1] // _BLOCK]
        d, m = (np.repeat(v, repeat, axis=1)[:, : q.shape[1], None] for v in _halves(scale, zero, minimum))
        half = _BLOCK // 2
        q = q ^ np.uint8(0x80) if self._bits == 8 else q[..., :half] | (q[..., half:] << np.uint8(4))
        parts: list[NDArray[Any]] = [d, m, q] if self.type is GGMLType.Q4_1 else [d, q]
        self._release()
        packed = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=2)
        return packed.reshape(n, -1)

    @property
    def _middle(self) -> int:
        return 1 << (self._bits - 1)

    def _blocks(self, which: Which) -> tuple[Any, ...]:
        """q (n, blocks, block) uint8, and `_scales`."""
        raw = self._store.raw(self._names.q).reshape(self.shape[0], -1)[which]
        q = _unpack(raw, 4 if self._names.low else self._bits)
        if self._names.low:
            low = self._store.raw(self._names.low).reshape(self.shape[0], -1)[which]
            q = (q << np.uint8(4)) | _unpack(low, 4)
        return (q.reshape(len(raw), self._n_blocks, self._block), *self._scales(which))

    def _scales(self, which: Which) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Of the blocks of rows: scale, zero and what is added, (n, blocks) float32 each."""
        names, height = self._names, self.shape[0]
        scale = self._store.array(names.scale).reshape(height, -1)[which].astype(np.float32)
        if names.zero is None:
            zero = np.full_like(scale, self._middle)
        elif self._float_zero:
            zero = self._store.array(names.zero).reshape(height, -1)[which].astype(np.float32)
        else:
            packed = self._store.raw(names.zero).reshape(height, -1)[which]
            zero = _unpack(packed, self._zero_bits)[:, : self._n_blocks].astype(np.float32)
        if names.correction is None:
            return scale, zero, None
        added = self._store.array(names.correction).reshape(self._n_blocks, height)[:, which].T
        return scale, zero, np.ascontiguousarray(added, np.float32)

    def _release(self) -> None:
        names = self._names
        self._store.release(*filter(None, (names.q, names.low, names.scale)))


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


def _unpack(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """(n, bytes) -> (n, elements) uint8."""
    if bits == 8:
        return raw
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)


def _halves(
    scale: NDArray[np.float32], zero: NDArray[np.float32], added: NDArray[np.float32] | None
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """GGUF's d and m, w = d · q + m, where w = (q - zero) · scale + added."""
    minimum = -zero.astype(np.float64) * scale + (0 if added is None else added)
    with np.errstate(over="ignore"):
        return scale.astype(np.float16), minimum.astype(np.float16)
