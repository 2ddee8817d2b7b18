"""Carrier: how ONNX Runtime stores a quantized matrix, and the numbers in it.

They are the stored blocks of a GGUF file moved over without a loss, or float32 rows rounded.

A weight is `(q - z) * scale`, of MatMulNBits and GatherBlockQuantized
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md): q of 4 or 8 bits, a float32 scale for
each block of a row, z the middle of the range unless each block has its own. The types of ggml whose blocks also have
a minimum need one number more:

    weight = (q - z) * scale + correction          x @ W.T = MatMulNBits(x) + (sums of x over each block) @ correction.T

`carrier_of` says which type of ggml fits which carrier exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType

from . import blocks
from .blocks import Bytes, Floats

BLOCKS = (16, 32, 64, 128, 256)  # those that the kernels of MatMulNBits are written for
_PIECE = 1 << 16  # weights worked on at once: what a core's cache holds


@dataclass(frozen=True)
class Carrier:
    """bits of q; block: weights that share a scale; zero_points: each block has its own z, of 4 bits; correction: each
    block has a float32 that is added. Raises InvalidParameter for one that there is no kernel for."""

    bits: Literal[4, 8]
    block: int
    zero_points: bool = False
    correction: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block not in BLOCKS:
            raise InvalidParameter(
                f"{self.name}: there is no such carrier; bits are 4 or 8, blocks {', '.join(map(str, BLOCKS))}"
            )
        if self.zero_points and (self.bits == 8 or self.correction):
            raise InvalidParameter(f"{self.name}: zero points go with 4 bits, and without minima")

    @property
    def name(self) -> str:
        """INT4/32, INT8/16, INT4/32+zp, INT4/32+min ..."""
        return f"INT{self.bits}/{self.block}{'+zp' * self.zero_points}{'+min' * self.correction}"

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of all arrays of a matrix (..., K). Raises InvalidParameter where it does not fit."""
        self.check(shape)
        rows, blocks = math.prod(shape[:-1]), shape[-1] // self.block
        each = blocks * self.block * self.bits // 8 + 4 * blocks * (1 + self.correction)
        return rows * (each + self.zero_points * -(-blocks // 2))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises InvalidParameter where rows of this shape are not whole blocks."""
        columns = shape[-1] if shape else 0
        if not columns or columns % self.block:
            raise InvalidParameter(f"{self.name}: rows of {columns} are no whole blocks of {self.block}")


class Packed(NamedTuple):
    """Rows as the operators take them. data: q, (n, K / block, block * bits / 8), of 4 bits two in a byte, the low half
    first. scales and correction: (n, K / block). zero_points: (n, ceil(K / block / 2)), two in a byte."""

    data: Bytes
    scales: Floats
    zero_points: Bytes | None = None
    correction: Floats | None = None


def carrier_of(kind: GGMLType | None) -> Carrier | None:
    """The carrier that holds every value of this type; None where there is none, and for no type."""
    return _FORMS[kind].carrier if kind in _FORMS else None


def transcode(kind: GGMLType, raw: Bytes, columns: int) -> Packed:
    """Stored rows (n, bytes of a row) as `carrier_of(kind)` has them, number for number.

    Where there is a correction, it is rounded to float32: a weight may differ from ggml's by some 2**-24 of the largest
    in its block. Raises Unsupported for a type without a carrier, InvalidParameter for bytes that are not whole rows.
    """
    if kind not in _FORMS:
        raise Unsupported(f"{kind.name} has no exact form in ONNX; quantize these weights to one of the INT4 or INT8")
    if columns % kind.block_size or raw.ndim != 2 or raw.shape[1] != kind.nbytes((columns,)):
        raise InvalidParameter(f"bytes of the shape {raw.shape} are no rows of {columns} {kind.name}")
    form, n = _FORMS[kind], len(raw)
    carrier = form.carrier
    count = columns // carrier.block
    data = np.empty((n, count, carrier.block * carrier.bits // 8), np.uint8)
    scales = np.empty((n, count), np.float32)
    correction = np.empty((n, count), np.float32) if carrier.correction else None
    step = max(1, _PIECE // columns)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        codes, scale, minimum = form.decode(np.ascontiguousarray(raw[part]).reshape(-1, kind.block_bytes))
        data[part] = (_pairs(codes) if carrier.bits == 4 else codes).reshape(data[part].shape)
        scales[part] = scale.reshape(scales[part].shape)
        if correction is not None and minimum is not None:
            correction[part] = (minimum + form.middle * scale).reshape(correction[part].shape)
    return Packed(data, scales, None, correction)


def quantize(rows: Floats, carrier: Carrier, importance: Floats | None = None) -> Packed:
    """Rows (n, K) of finite float32 rounded to a carrier, with the scale (of some tried) of the least squared error.

    importance: (K,), how much an error in each column costs. Raises InvalidParameter for shapes that do not fit, an
    importance that is negative or not finite, and for a carrier with minima, which only `transcode` makes.
    """
    carrier.check(rows.shape)
    if carrier.correction:
        raise InvalidParameter(f"{carrier.name}: minima come from stored blocks; quantize to zero points (+zp) instead")
    n, columns = rows.shape
    count, block = columns // carrier.block, carrier.block
    step = max(1, _PIECE // columns)
    weights = None
    if importance is not None:
        weights = np.tile(_weights(importance, columns).reshape(count, block).T, (1, min(step, max(n, 1))))
    codes = np.empty((n, count, block), np.uint8)
    scales = np.empty((n, count), np.float32)
    points = np.empty((n, count), np.uint8)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        upright = np.ascontiguousarray(rows[part].reshape(-1, block).T, np.float32)
        found = _round(upright, carrier, None if weights is None else weights[:, : upright.shape[1]])
        codes[part] = found[0].T.reshape(-1, count, block)
        scales[part], points[part] = found[1].reshape(-1, count), found[2].reshape(-1, count)
    return Packed(
        _pairs(codes) if carrier.bits == 4 else codes, scales, _pairs(points) if carrier.zero_points else None
    )


def unpaired(packed: Bytes) -> Bytes:
    """Both halves of each byte, the low one first: (..., m) to (..., 2 m)."""
    return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _pairs(codes: Bytes) -> Bytes:
    """Two codes below 16 to a byte, the low half first, an odd one at the end alone: (..., m) to (..., ceil(m / 2))."""
    if codes.shape[-1] % 2:
        codes = np.concatenate((codes, np.zeros((*codes.shape[:-1], 1), np.uint8)), -1)
    words = np.ascontiguousarray(codes).view("<u2")
    pairs: Bytes = (words | words >> 4).astype(np.uint8)
    return pairs


_STRETCH = {4: tuple(np.linspace(-1.0, 2.0, 16)), 8: (0.0, -1.0)}
_SHRINK = tuple(np.linspace(1.0, 0.76, 13))


def _weights(importance: Floats, columns: int) -> Floats:
    """Of at most 1. No column is worth nothing, so that a block has a scale whatever its inputs were."""
    if importance.shape != (columns,):
        raise InvalidParameter(f"the importance has the shape {importance.shape}, rows of {columns} need ({columns},)")
    largest = float(importance.max())
    if not math.isfinite(largest) or not bool((importance >= 0).all()):
        raise InvalidParameter("the importance of a column is negative or not finite; calibrate again")
    weights: Floats = np.maximum(importance / np.float32(largest or 1.0), np.float32(1e-6)).astype(np.float32)
    return weights


def _round(upright: Floats, carrier: Carrier, weights: Floats | None) -> tuple[Bytes, Floats, Floats]:
    """Codes (block, n), scales and zero points (n,) of blocks, each a column of (block, n).

    For a rounding q of the block u (by any step), the best scale is Σwuq / Σwqq, and what it saves of the error Σwuu is
    (Σwuq)² / Σwqq: the step that saves most wins. Blocks are brought to a peak of 1 first, so nothing overflows.
    """
    top = np.float32(2**carrier.bits - 1)
    peak = np.abs(upright).max(0)
    unit = upright / np.where(peak > 0, peak, np.float32(1))
    weighted = unit if weights is None else unit * weights
    best = np.full(peak.shape, -1, np.float32)
    scale, inverse, zero = np.zeros_like(best), np.zeros_like(best), np.zeros_like(best)
    codes, product = np.empty_like(unit), np.empty_like(unit)
    for tried, point in _steps(unit, carrier):
        _codes(unit, tried, point, top, codes)
        along = np.multiply(weighted, codes, out=product).sum(0)
        np.multiply(codes, codes, out=product)
        if weights is not None:
            np.multiply(product, weights, out=product)
        fit = along / np.maximum(product.sum(0), np.float32(1e-20))
        saved = fit * along
        better = saved > best
        for kept, new in ((best, saved), (scale, fit), (inverse, tried), (zero, point)):
            np.copyto(kept, new, where=better)
    _codes(unit, inverse, zero, top, codes)
    return (codes + zero).astype(np.uint8), scale * peak, zero


def _codes(unit: Floats, inverse: Floats, zero: Floats, top: np.float32, out: Floats) -> None:
    """q - z of each weight, into `out`."""
    np.multiply(unit, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, -zero, out=out)
    np.minimum(out, top - zero, out=out)


def _steps(unit: Floats, carrier: Carrier) -> list[tuple[Floats, Floats]]:
    """What to try: 1 / step and the zero point, each (n,).

    Without zero points the largest magnitude falls on the side of the range that reaches further, give or take a
    stretch. With them the range from the least to the largest (0 is within) is cut a little shorter each time.
    """
    high, low = unit.max(0), unit.min(0)
    if not carrier.zero_points:
        half = np.float32(2 ** (carrier.bits - 1))
        towards = np.where(high > -low, np.float32(-1), np.float32(1))
        middle = np.full_like(towards, half)
        return [(towards * (half + np.float32(more)), middle) for more in _STRETCH[carrier.bits]]
    low = np.minimum(low, 0)
    width = np.maximum(high, 0) - low
    inverse = np.float32(15) / np.where(width > 0, width, np.float32(1))
    zero = np.rint(-low * inverse)
    return [(inverse / np.float32(less), zero) for less in _SHRINK]


class _Form(NamedTuple):
    """middle: of a type with minima, the code that the decoder puts at the middle of the carrier's range."""

    carrier: Carrier
    decode: Callable[[Bytes], blocks.Decoded]
    middle: float = 0.0


_FORMS = {
    GGMLType.Q4_0: _Form(Carrier(4, 32), blocks.q4_0),
    GGMLType.Q4_1: _Form(Carrier(4, 32, correction=True), blocks.q4_1, 8),
    GGMLType.Q5_0: _Form(Carrier(8, 32), blocks.q5_0),
    GGMLType.Q5_1: _Form(Carrier(8, 32, correction=True), blocks.q5_1, 16),
    GGMLType.Q8_0: _Form(Carrier(8, 32), blocks.q8_0),
    GGMLType.Q2_K: _Form(Carrier(4, 16, correction=True), blocks.q2_k, 2),
    GGMLType.Q3_K: _Form(Carrier(4, 16), blocks.q3_k),
    GGMLType.Q4_K: _Form(Carrier(4, 32, correction=True), blocks.q4_k, 8),
    GGMLType.Q5_K: _Form(Carrier(8, 32, correction=True), blocks.q5_k, 16),
    GGMLType.Q6_K: _Form(Carrier(8, 16), blocks.q6_k),
    GGMLType.IQ4_NL: _Form(Carrier(8, 32), blocks.iq4_nl),
    GGMLType.IQ4_XS: _Form(Carrier(8, 32), blocks.iq4_xs),
    GGMLType.MXFP4: _Form(Carrier(8, 32), blocks.mxfp4),
}
