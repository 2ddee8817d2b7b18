"""Stored floating-point numbers: `decode` makes them float32, and what keeps them the same.

bfloat16 is the upper half of a float32. The eight-bit types are those of "FP8 Formats for Deep Learning" (Micikevicius
et al., 2022, https://arxiv.org/abs/2209.05433): E5M2 is the upper half of a float16; E4M3 has an exponent bias of 7,
no infinities, and NaN only where all bits but the sign are set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.tensor import Tensor


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

_GGML_FLOATS = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
# what the types of a checkpoint become when they are to be kept: ggml computes with neither
NEAREST = {**_GGML_FLOATS, "F64": GGMLType.F32, "F8_E4M3": GGMLType.BF16, "F8_E5M2": GGMLType.BF16}

ADAPTED = "+adapter"  # behind the type of a tensor that adapters change: float32 sums, kept as what was there would be
NEAREST |= {kind + ADAPTED: nearest for kind, nearest in NEAREST.items()}


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


def integers(value: Any) -> NDArray[np.int64]:
    """(n,) of a value in a GGUF file, of which some models have one per layer; none of what is no integers."""
    found = np.ravel(value if isinstance(value, (int, np.integer, np.ndarray)) else [])
    return found.astype(np.int64) if found.dtype.kind in "iu" else np.zeros(0, np.int64)


def is_exact(stored: str, target: str) -> bool:
    """Whether every weight of this source type stays the same number in the target type."""
    kind = stored.removesuffix(ADAPTED)
    return stored == target or (target == "F32" and kind not in ("F64", "F8_E4M3", "F8_E5M2"))


def shifts_exactly(before: Sequence[Tensor], after: Tensor, shift: float) -> bool:
    """Whether small tensors, in the same order, hold the same numbers but for `shift`, without any rounding: true of
    most norms that were stored in 16 bits."""
    numbers = np.concatenate([tensor.rows(slice(None)).ravel() for tensor in before]).astype(np.float64)
    return np.array_equal(numbers + shift, after.rows(slice(None)).ravel().astype(np.float64))


def kept_type(tensors: Mapping[str, Tensor]) -> str:
    """The float type that most bytes of the matrices have, or become when they are kept: F32, F16 or BF16."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            sizes[NEAREST.get(tensor.stored, GGMLType.F32).name] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else "F32"
