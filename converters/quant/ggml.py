"""ggml's own quantizers: float32 rows to the stored bytes of a GGUF tensor, and back.

The functions are those of the ggml library that llama-cpp-python brings, called through ctypes: `ggml_quantize_chunk`,
`ggml_validate_row_data` and `dequantize_row_*` (ggml.h and ggml-quants.h of llama.cpp). That library computes with
neither a backend nor a model, so nothing else of llama.cpp is loaded. F32, F16 and BF16 need none of it: numpy rounds
them the same way. Where the library is missing, stored bytes are read by the package `gguf`, to the same numbers.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType

from ..numbers import decode

FLOATS = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
QUANTIZED = frozenset(
    {
        GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1,
        GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K,
        GGMLType.IQ4_NL, GGMLType.IQ4_XS,
    }
)  # fmt: skip


def quantize(
    kind: GGMLType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Stored bytes of rows: (n, columns) float32 to (n, bytes of a row) uint8, the bytes that llama.cpp would store.

    importance: (columns,) float32, how much an error in each column costs; every row has the same.

    Raises Unsupported for a type that is not offered, InvalidParameter for shapes that do not fit it, InvalidModelFile
    for values that it cannot hold.
    """
    row_bytes = check(kind, rows.shape[-1], importance)
    offered(kind)
    if kind in FLOATS:
        return _round(kind, rows)
    rows = np.ascontiguousarray(rows, np.float32)
    stored = np.empty((len(rows), row_bytes), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if not quantize_at(
        kind, rows.ctypes.data, stored.ctypes.data, rows.shape, 0 if weights is None else weights.ctypes.data
    ):
        raise InvalidModelFile(
            f"a weight cannot be stored as {kind.name}: not all of its values are finite and in range; "
            'choose "f32" or repair the weights'
        )
    return stored


def dequantize(kind: GGMLType, data: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """The values behind stored bytes: any shape of uint8 that makes whole rows, to (n, columns) float32.

    Raises Unsupported for a type that has no such function, InvalidParameter when the bytes are not whole rows.
    """
    row_bytes = check(kind, columns, None)
    if data.size % row_bytes:
        raise InvalidParameter(f"{data.size} bytes are no whole rows of {row_bytes} bytes ({columns} {kind.name})")
    stored = np.ascontiguousarray(data, np.uint8).reshape(-1, row_bytes)
    if kind in FLOATS:
        return decode(kind.name, stored)
    if not installed():
        return _plain(kind, stored)
    try:
        function = getattr(_library(), f"dequantize_row_{kind.name.lower().replace('_k', '_K')}")
    except AttributeError:
        raise Unsupported(f"weights stored as {kind.name} cannot be turned into numbers here") from None
    values = np.empty((len(stored), columns), np.float32)
    function(ctypes.c_void_p(stored.ctypes.data), ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.size))
    return values


def _plain(kind: GGMLType, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same numbers from llama.cpp's Python package, where its libraries are not installed."""
    import gguf

    try:
        values: NDArray[np.float32] = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(int(kind)))
    except (NotImplementedError, ValueError):
        raise Unsupported(f"weights stored as {kind.name} cannot be turned into numbers here") from None
    return values


def quantize_at(kind: GGMLType, rows: int, stored: int, shape: tuple[int, ...], importance: int) -> bool:
    """`quantize` between addresses, unchecked, for a `shape` of (n, columns); importance 0: none.

    False when the result has a scale that is not finite. Releases the interpreter, and may run on many threads.
    """
    library = _library()
    nbytes = library.ggml_quantize_chunk(int(kind), rows, stored, 0, shape[0], shape[1], importance or None)
    return bool(library.ggml_validate_row_data(int(kind), stored, nbytes))


def check(kind: GGMLType, columns: int, importance: NDArray[np.float32] | None) -> int:
    """Bytes of a row. Raises InvalidParameter for rows that the type cannot hold or an importance of another length."""
    if columns < 1 or columns % kind.block_size:
        raise InvalidParameter(f"rows of {columns} cannot be {kind.name}: it takes multiples of {kind.block_size}")
    if importance is not None and importance.shape != (columns,):
        raise InvalidParameter(f"the importance has the shape {importance.shape}, rows of {columns} need ({columns},)")
    return kind.nbytes((columns,))


def offered(kind: GGMLType) -> None:
    """Raises Unsupported for a type that nothing is quantized to."""
    if kind not in FLOATS | QUANTIZED:
        names = ", ".join(sorted(known.name for known in FLOATS | QUANTIZED))
        raise Unsupported(f"{kind.name} is not offered as a storage type; choose one of {names}")


def _round(kind: GGMLType, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """To nearest, ties to even; NaN stays NaN. F16 ends at 65,504: what would become infinite is an error."""
    rows = np.ascontiguousarray(rows, np.float32)
    if kind is GGMLType.F32:
        return rows.view(np.uint8)
    if kind is GGMLType.F16:
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if np.count_nonzero(np.isinf(half)) != np.count_nonzero(np.isinf(rows)):
            worst = float(np.abs(rows[np.isfinite(rows)]).max())
            raise InvalidModelFile(f'a weight of magnitude {worst:.6g} does not fit F16; choose "bf16" or "f32"')
        return half.view(np.uint8)
    bits = rows.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16
    brain: NDArray[np.uint16] = np.where(np.isnan(rows), (bits >> 16) | np.uint32(64), rounded).astype(np.uint16)
    return brain.view(np.uint8)


@functools.cache
def installed() -> bool:
    """Whether ggml is here: without it nothing is quantized, and what is quantized is read more slowly."""
    try:
        library_file()
    except Unsupported:
        return False
    return True


def library_file() -> Path:
    """Where llama-cpp-python keeps ggml. Raises Unsupported when it is not there."""
    names = {"win32": ("ggml-base.dll", "libggml-base.dll"), "darwin": ("libggml-base.dylib", "libggml-base.so")}
    chosen = os.environ.get("LLAMA_CPP_LIB_PATH")  # llama-cpp-python honours it too
    spec = importlib.util.find_spec("llama_cpp")
    folders = (
        [Path(chosen)]
        if chosen
        else [Path(place) / "lib" for place in (spec and spec.submodule_search_locations) or ()]
    )
    for folder in folders:
        for name in names.get(sys.platform, ("libggml-base.so",)):
            if (folder / name).is_file():
                return folder / name
    raise Unsupported(
        "quantizing to GGUF's types needs llama.cpp's ggml library, which is not installed here: "
        "pip install 'edgellm[llamacpp]' compiles it for this machine"
    )


@functools.cache
def _library() -> Any:
    file = library_file()
    try:
        library = ctypes.CDLL(str(file))
        quantizer, validator = library.ggml_quantize_chunk, library.ggml_validate_row_data
    except (OSError, AttributeError) as error:
        raise Unsupported(f"{file} cannot be used to quantize: {error}; reinstall llama-cpp-python") from error
    address, number = ctypes.c_void_p, ctypes.c_int64
    quantizer.argtypes = [ctypes.c_int, address, address, number, number, number, address]
    quantizer.restype = ctypes.c_size_t
    validator.argtypes = [ctypes.c_int, address, ctypes.c_size_t]
    validator.restype = ctypes.c_bool
    return library
