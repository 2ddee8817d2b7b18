"""decode: stored floating-point numbers become float32.

bfloat16 is the upper half of a float32. The eight-bit types are those of "FP8 Formats for Deep Learning" (Micikevicius
et al., 2022, https://arxiv.org/abs/2209.05433): E5M2 is the upper half of a float16; E4M3 has an exponent bias of 7,
no infinities, and NaN only where all bits but the sign are set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def _e4m3() -> NDArray[np.float32]:
    """The value of every byte: (256,) float32."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    value[code & 127 == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


def _e5m2() -> NDArray[np.float32]:
    """The value of every byte: (256,) float32."""
    with np.errstate(invalid="ignore"):  # some of the bytes are signalling NaN
        return (np.arange(256) << 8).astype(np.uint16).view(np.float16).astype(np.float32)


_EIGHT_BITS = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}
_NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes of an element


def decode(stored: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, bytes of a row) uint8 in one of the types of WIDTH -> (n, columns) float32, a new array.

    Exact but for F64, which is rounded (what is too large becomes infinite).
    """
    if stored in _EIGHT_BITS:
        return _EIGHT_BITS[stored][raw]
    raw = np.ascontiguousarray(raw)
    if stored == "BF16":
        bits = raw.view("<u2").astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    numbers: NDArray[Any] = raw.view(_NUMPY[stored])
    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN, F64 beyond float32: left to `check_finite`
        return numbers.astype(np.float32)
