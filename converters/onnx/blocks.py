"""Blocks: a weight of MatMulNBits or GatherBlockQuantized, w = (q - zero) · scale [+ correction] per block of a row.

Some of them are GGUF's blocks as well: they move with `raw`, not through numbers. Layouts: see tensors.py; GGUF's in
ggml's ggml-common.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.tensor import CHUNK_BYTES

from .graph.carrier import unpaired
from .tensors import Which

_BLOCK = 32  # elements of a block of every GGUF type below


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

    def __init__(self, file: ONNXFile, names: BlockNames, shape: tuple[int, int], bits: int, block: int) -> None:
        self._file, self._names, self.shape = file, names, shape
        self._bits, self._block = bits, block
        if bits not in (4, 8) or block < 16 or min(shape) < 1:
            raise file.error(
                Unsupported, names.q, f"{bits} bits in blocks of {block}; 4 and 8 bits from 16 on are read"
            )
        self._n_blocks = n = -(-shape[1] // block)
        for codes in (names.q, names.low) if names.low else (names.q,):
            self._expect(codes, n * block * (4 if names.low else bits) // 8, "UINT8")
        self._expect(names.scale, n, "FLOAT", "FLOAT16")
        self._float_zero = names.zero is not None and file.info(names.zero).dtype != "UINT8"
        self._zero_bits = bits
        if names.zero:
            self._zero_bits = 8 if file.info(names.zero).shape == (shape[0], n, 1) else bits
            expected = n if self._float_zero else -(-n * self._zero_bits // 8)
            self._expect(names.zero, expected, "UINT8", "FLOAT", "FLOAT16")
        if names.correction:
            self._expect(names.correction, n, "FLOAT")
        extra = ("+zp" if names.zero else "") + ("+min" if names.correction else "")
        self.stored = f"INT{bits}/{block}{extra}"

    def _expect(self, name: str, per_row: int, *dtypes: str) -> None:
        info = self._file.info(name)
        if math.prod(info.shape) != per_row * self.shape[0] or info.dtype not in dtypes:
            what = f"a matrix of {self.shape} needs {per_row} values of {' or '.join(dtypes)} for each row"
            raise self._file.error(InvalidModelFile, name, what)

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
            raise self._file.error(Unsupported, self._names.q, "no GGUF blocks; read its rows")
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
        raw = self._file.data(self._names.q).reshape(self.shape[0], -1)[which]
        q = unpaired(raw) if self._bits == 4 or self._names.low else raw
        if self._names.low:
            low = self._file.data(self._names.low).reshape(self.shape[0], -1)[which]
            q = (q << np.uint8(4)) | unpaired(low)
        return (q.reshape(len(raw), self._n_blocks, self._block), *self._scales(which))

    def _scales(self, which: Which) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Of the blocks of rows: scale, zero and what is added, (n, blocks) float32 each."""
        names, height = self._names, self.shape[0]
        scale = self._file.array(names.scale).reshape(height, -1)[which].astype(np.float32)
        if names.zero is None:
            zero = np.full_like(scale, self._middle)
        elif self._float_zero:
            zero = self._file.array(names.zero).reshape(height, -1)[which].astype(np.float32)
        else:
            packed = self._file.data(names.zero).reshape(height, -1)[which]
            zero = (unpaired(packed) if self._zero_bits == 4 else packed)[:, : self._n_blocks].astype(np.float32)
        if names.correction is None:
            return scale, zero, None
        added = self._file.array(names.correction).reshape(self._n_blocks, height)[:, which].T
        return scale, zero, np.ascontiguousarray(added, np.float32)

    def _release(self) -> None:
        for name in filter(None, (self._names.q, self._names.low, self._names.scale)):
            self._file.release(name)


def _halves(
    scale: NDArray[np.float32], zero: NDArray[np.float32], added: NDArray[np.float32] | None
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """GGUF's d and m, w = d · q + m, where w = (q - zero) · scale + added."""
    minimum = -zero.astype(np.float64) * scale + (0 if added is None else added)
    with np.errstate(over="ignore"):
        return scale.astype(np.float16), minimum.astype(np.float16)
