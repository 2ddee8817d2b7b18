"""Blocks of ggml's types taken apart: codes, scales and minima, with weight = code * scale + minimum.

Codes already lie in the middle of a carrier's range of 4 or 8 bits. The layouts are those of ggml-common.h, the numbers
those of ggml-quants.c (`dequantize_row_*`) of llama.cpp. Each function takes blocks (n, block_bytes) and gives codes
(n, block_size), scales (n, parts), and minima (n, parts) or None.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

Decoded = tuple[Bytes, Floats, "Floats | None"]
_MIDDLE8 = 128


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at a byte of each block: (n, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _fields(packed: Bytes, group: int, shifts: tuple[int, ...], mask: int) -> Bytes:
    """Fields of bits: of each `group` bytes first the field at the first shift, then that at the second ...

    (n, m) to (n, m * len(shifts)).
    """
    fields: Bytes = packed.reshape(len(packed), -1, 1, group) >> np.asarray(shifts, np.uint8)[:, None] & np.uint8(mask)
    return fields.reshape(len(packed), -1)


def _fifth(blocks: Bytes, at: int) -> Bytes:
    """Codes of 5 bits: 32 fifth bits at a byte of each block, 16 bytes of the other four bits behind them."""
    high = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    codes: Bytes = _fields(blocks[:, at + 4 : at + 20], 16, (0, 4), 15) | high << np.uint8(4)
    return codes


def q4_0(blocks: Bytes) -> Decoded:
    return _fields(blocks[:, 2:], 16, (0, 4), 15), _half(blocks, 0), None


def q4_1(blocks: Bytes) -> Decoded:
    return _fields(blocks[:, 4:], 16, (0, 4), 15), _half(blocks, 0), _half(blocks, 2)


def q5_0(blocks: Bytes) -> Decoded:
    return _fifth(blocks, 2) + np.uint8(_MIDDLE8 - 16), _half(blocks, 0), None


def q5_1(blocks: Bytes) -> Decoded:
    return _fifth(blocks, 4) + np.uint8(_MIDDLE8 - 16), _half(blocks, 0), _half(blocks, 2)


def q8_0(blocks: Bytes) -> Decoded:
    return blocks[:, 2:] ^ np.uint8(0x80), _half(blocks, 0), None


def q2_k(blocks: Bytes) -> Decoded:
    scales, codes = blocks[:, :16], _fields(blocks[:, 16:80], 32, (0, 2, 4, 6), 3)
    return codes + np.uint8(6), _half(blocks, 80) * (scales & 15), -(_half(blocks, 82) * (scales >> 4))


def q3_k(blocks: Bytes) -> Decoded:
    high = _fields(blocks[:, :32], 32, tuple(range(8)), 1)
    codes = _fields(blocks[:, 32:96], 32, (0, 2, 4, 6), 3) | high << 2
    low = _fields(blocks[:, 96:104], 8, (0, 4), 15)
    scales = (low | _fields(blocks[:, 104:108], 4, (0, 2, 4, 6), 3) << 4).astype(np.float32) - np.float32(32)
    return codes + np.uint8(4), _half(blocks, 108) * scales, None


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """Of Q4_K and Q5_K, (n, 8) each: 12 bytes behind two halves hold 6 bits of either."""
    first, second, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((first & 63, (mixed & 15) | (first >> 6) << 4), 1)
    minima = np.concatenate((second & 63, (mixed >> 4) | (second >> 6) << 4), 1)
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def q4_k(blocks: Bytes) -> Decoded:
    return _fields(blocks[:, 16:], 32, (0, 4), 15), *_scales_and_minima(blocks)


def q5_k(blocks: Bytes) -> Decoded:
    high = _fields(blocks[:, 16:48], 32, tuple(range(8)), 1)
    codes = _fields(blocks[:, 48:], 32, (0, 4), 15) | high << 4
    return codes + np.uint8(_MIDDLE8 - 16), *_scales_and_minima(blocks)


def q6_k(blocks: Bytes) -> Decoded:
    codes = _fields(blocks[:, :128], 64, (0, 4), 15) | _fields(blocks[:, 128:192], 32, (0, 2, 4, 6), 3) << 4
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return codes + np.uint8(_MIDDLE8 - 32), _half(blocks, 208) * scales, None


_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _table(values: tuple[int, ...]) -> Bytes:
    return (np.asarray(values) + _MIDDLE8).astype(np.uint8)


def iq4_nl(blocks: Bytes) -> Decoded:
    return _table(_NONLINEAR)[_fields(blocks[:, 2:], 16, (0, 4), 15)], _half(blocks, 0), None


def iq4_xs(blocks: Bytes) -> Decoded:
    high = blocks[:, 2:4].repeat(4, 1) >> np.asarray((0, 2, 4, 6) * 2, np.uint8) & 3
    low = _fields(blocks[:, 4:8], 1, (0, 4), 15)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    return _table(_NONLINEAR)[_fields(blocks[:, 8:], 16, (0, 4), 15)], _half(blocks, 0) * scales, None


def mxfp4(blocks: Bytes) -> Decoded:
    """A scale of 2**(e - 127), halved, as the table is doubled."""
    scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return _table(_E2M1_TWICE)[_fields(blocks[:, 1:], 16, (0, 4), 15)], scale.astype(np.float32), None
