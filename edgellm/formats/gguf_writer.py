"""write_gguf: a GGUF file from metadata and tensors, streamed; the layout is drawn in `gguf_shard.py`."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgellm.arguments import shown
from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.writing import Data, whole_file, write_data

Tensor = tuple[str, Sequence[int], GGMLType, Data]

_VALUE_TYPES = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}
_STRING, _ARRAY = 8, 9
_MAX_NAME = 63


def write_gguf(path: str | os.PathLike[str], metadata: Mapping[str, Any], tensors: Iterable[Tensor]) -> None:
    """Write a GGUF version 3 file.

    metadata: bool, str, bytes (a string), int (u32, or i32, u64, i64 when it does not fit), float (f32), a numpy scalar
    (its own type), a list of strings (so is an empty one), integers (i32) or floats (f32), or a 1-d numpy array.
    tensors: (name, shape in numpy order, type, data); data is the stored bytes, an array that holds exactly them, or a
    function that returns chunks of them, called when their turn comes.

    The file appears under its name only when it is complete and on disk; after an error nothing is left.
    `general.alignment` is honoured (a power of two, at least 8; 32 without it).

    Raises InvalidParameter for what GGUF cannot hold, CannotWrite.
    """
    listed = list(tensors)
    alignment = _alignment(metadata)
    header = _header(metadata, [(name, shape, kind) for name, shape, kind, _ in listed], alignment)
    with whole_file(path) as file:
        file.write(header)
        for name, shape, kind, data in listed:
            file.write(b"\0" * (-file.tell() % alignment))
            write_data(file, name, data, kind.nbytes(tuple(shape)))
        file.write(b"\0" * (-file.tell() % alignment))


def gguf_bytes(metadata: Mapping[str, Any], tensors: Iterable[tuple[str, Sequence[int], GGMLType]]) -> int:
    """The size of the file that `write_gguf` would make of tensors given as (name, shape in numpy order, type)."""
    listed = list(tensors)
    alignment = _alignment(metadata)
    sizes = [len(_header(metadata, listed, alignment)), *(kind.nbytes(tuple(shape)) for _, shape, kind in listed)]
    return sum(-(-size // alignment) * alignment for size in sizes)


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = int(metadata.get("general.alignment", 32))
    if alignment < 8 or alignment & (alignment - 1):
        raise InvalidParameter(f"general.alignment={alignment}: must be a power of two, at least 8")
    return alignment


def _header(metadata: Mapping[str, Any], tensors: list[tuple[str, Sequence[int], GGMLType]], alignment: int) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset = 0
    seen = set()
    for name, shape, kind in tensors:
        raw = name.encode(errors="surrogatepass")  # of which `_string` says what is wrong
        if not 0 < len(raw) <= _MAX_NAME or name in seen:
            raise InvalidParameter(f"tensor name {shown(name)}: must be new and have 1 to {_MAX_NAME} bytes")
        seen.add(name)
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or shape[-1] % kind.block_size:
            raise InvalidParameter(f"tensor {shown(name)}: {kind.name} cannot store the shape {tuple(shape)}")
        parts.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset))
        offset += -(-kind.nbytes(tuple(shape)) // alignment) * alignment
    return b"".join(parts)


def _string(text: str | bytes) -> bytes:
    try:
        raw = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise InvalidParameter(f"{shown(text)}: GGUF has no text for {error.reason}") from error
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, Sequence) and all(isinstance(item, (str, bytes)) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    try:
        array = np.asarray(value, _dtype(value))
    except (ValueError, TypeError, OverflowError):  # a list of unlike things, or of integers beyond i32
        array = np.asarray(None)
    code = _VALUE_TYPES.get(array.dtype.str[1:])
    if code is None or array.ndim > 1:
        raise InvalidParameter(f"metadata {shown(key)}: GGUF has no type for {type(value).__name__} {str(value)[:40]}")
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim == 1:
        return struct.pack("<IIQ", _ARRAY, code, array.size) + raw
    return struct.pack("<I", code) + raw


def _dtype(value: Any) -> str | None:
    """The storage of plain Python numbers; numpy values keep theirs."""
    if isinstance(value, (bool, np.generic, np.ndarray)):
        return None
    if isinstance(value, int):
        return next((d for d in ("u4", "i4", "u8", "i8") if np.iinfo(d).min <= value <= np.iinfo(d).max), None)
    if isinstance(value, float):
        return "f4"
    if isinstance(value, Sequence) and not isinstance(value[0], bool):
        return "f4" if any(isinstance(item, float) for item in value) else "i4"
    return None
