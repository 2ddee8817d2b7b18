"""SafetensorsFile: a memory-mapped reader of safetensors files that trusts nothing; write_safetensors: the writer.

    length u64 | header: JSON of that many bytes | data
    header: {"__metadata__": {string: string}, name: {"dtype": "BF16", "shape": [2, 64], "data_offsets": [0, 256]}}

Offsets count from the start of the data, and the tensors fill it without holes or overlaps. Numbers are little-endian.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile, InvalidParameter
from edgellm.formats.mapped import Mapped, MappedFile
from edgellm.formats.strict_json import parse_object
from edgellm.formats.writing import Data, whole_file, write_data

MAX_HEADER = 100_000_000  # bytes; the reference reader has the same limit
MAX_DIMS = 16
MAX_SIZE = 1 << 48  # of one dimension
_U64 = struct.Struct("<Q")

# bits of an element
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. shape is in numpy order, () for a scalar; offset is from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile(Mapped):
    """An opened safetensors file. tensors are in the header's order; metadata is its `__metadata__`, {} without one."""

    def __init__(self, file: MappedFile) -> None:
        super().__init__()
        self.path = file.path
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._file, self._files = file, [file]
        self._data_start = 0
        self._read()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Open and check a file. Raises ModelNotFound, InvalidModelFile."""
        file = MappedFile(Path(path))
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def _read(self) -> None:
        file = self._file
        if file.size < 10:
            raise file.error(f"{file.size} bytes are too few for a safetensors file")
        length: int = _U64.unpack_from(file.buffer)[0]
        if not 2 <= length <= min(MAX_HEADER, file.size - 8):
            raise file.error(
                f"a header of {length} bytes is announced (2 to {MAX_HEADER} are allowed, the file has {file.size})"
            )
        self._data_start = 8 + length
        raw = file.buffer[8 : self._data_start]
        if raw[:1] != b"{":
            raise InvalidModelFile(f"{self.path}: its header is not a JSON object; this is not a safetensors file")
        header = parse_object(raw, f"{self.path}, header")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise file.error("__metadata__ is not a table of texts")
        self.metadata = metadata
        self.tensors = {name: self._info(name, entry) for name, entry in header.items()}
        end = self._data_start
        for info in sorted(self.tensors.values(), key=lambda info: (info.offset, info.nbytes)):
            if info.offset != end:
                what = "overlaps the one before it" if info.offset < end else "leaves a hole before it"
                raise file.error(f"tensor {shown(info.name)} at byte {info.offset} {what}")
            end += info.nbytes
        if end != file.size:
            raise file.error(f"the tensors end at byte {end}, the file at {file.size}")

    def _info(self, name: str, entry: Any) -> TensorInfo:
        if not name or not name.isprintable():
            raise self._file.error(f"tensor name {shown(name)} is empty or not printable")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._file.error(f"tensor {shown(name)} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise self._file.error(f"tensor {shown(name)} has the unknown type {shown(dtype)}")
        if not _counts(shape) or len(shape) > MAX_DIMS or max(shape, default=0) > MAX_SIZE:
            raise self._file.error(f"tensor {shown(name)} has the impossible shape {shown(shape)}")
        if not _counts(offsets) or len(offsets) != 2:
            raise self._file.error(f"tensor {shown(name)} has the impossible offsets {shown(offsets)}")
        start, stop = offsets
        bits = math.prod(shape) * _BITS[dtype]
        if (stop - start) * 8 != bits:
            raise self._file.error(f"tensor {shown(name)} has {stop - start} bytes, {dtype} {shape} needs {bits / 8:g}")
        if self._data_start + stop > self._file.size:
            raise self._file.error(f"tensor {shown(name)} reaches beyond the end of the file ({self._file.size} bytes)")
        return TensorInfo(name, dtype, tuple(shape), self._data_start + start, stop - start)

    def _place(self, name: str) -> tuple[MappedFile, int, int]:
        info = self.tensors[name]
        return self._file, info.offset, info.offset + info.nbytes

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that a copy of the file shares and another header or other weights change.

        BLAKE2b over the file's size, the header, and the first and last 4 KiB of each tensor.
        """
        digest = hashlib.blake2b(_U64.pack(self._file.size), digest_size=16)
        digest.update(self._file.buffer[: self._data_start])
        for info in self.tensors.values():
            digest.update(self._file.edges(info.offset, info.offset + info.nbytes))
        return digest.hexdigest()


def _counts(value: Any) -> bool:
    """A list of integers, none negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, str, Sequence[int], Data]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file.

    tensors: (name, dtype as the header spells it, shape in numpy order, data); data is the stored bytes, an array that
    holds exactly them, or a function that returns chunks of them, called when their turn comes. The widest types come
    first, otherwise the order is kept: so every tensor is aligned to its elements, though holes are forbidden.

    The file appears under its name only when it is complete and on disk; after an error nothing is left.
    Raises InvalidParameter for what safetensors cannot hold.
    """
    listed = list(tensors)
    for name, dtype, _, _ in listed:
        if dtype not in _BITS:
            raise InvalidParameter(
                f"tensor {shown(name)}: safetensors has no type {shown(dtype)}; it has {', '.join(_BITS)}"
            )
    listed.sort(key=lambda tensor: -_BITS[tensor[1]])
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start, sizes = 0, []
    for name, dtype, shape, _ in listed:
        shape = [int(size) for size in shape]
        bits = math.prod(shape) * _BITS[dtype]
        if not name or not name.isprintable() or name in header or name == "__metadata__":
            raise InvalidParameter(f"tensor name {shown(name)}: must be new and printable")
        if min(shape, default=0) < 0 or len(shape) > MAX_DIMS or bits % 8:
            raise InvalidParameter(f"tensor {shown(name)}: {dtype} cannot store the shape {tuple(shape)}")
        sizes.append(bits // 8)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + sizes[-1]]}
        start += sizes[-1]
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise InvalidParameter(f"{path}: a header of {len(raw)} bytes, {MAX_HEADER} are allowed; write several files")
    with whole_file(path) as file:
        file.write(_U64.pack(len(raw)) + raw)
        for (name, _, _, data), size in zip(listed, sizes, strict=True):
            write_data(file, name, data, size)
