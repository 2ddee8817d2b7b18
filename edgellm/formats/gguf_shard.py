"""Shard: one GGUF file, mapped and checked.

    magic "GGUF" | version u32 | tensor count u64 | pair count u64
    pairs:    key string | type u32 | value          (a string is a u64 length and its bytes)
    tensors:  name string | dims u32 | shape u64 × dims, fastest first | type u32 | offset u64
    padding to general.alignment
    data:     every tensor at its offset, each a multiple of the alignment

Every count, length, type, offset and size is checked against the bytes that are really there before anything is
allocated; numbers and strings are decoded only when they are asked for, so a vocabulary of 262,144 tokens costs one
pass over its lengths. Versions 2 and 3, little-endian: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_strings import StringArray
from edgellm.formats.mapped import MappedFile

MAX_HEADER = 128 << 20  # bytes; the largest known header is about 20 MB
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 14
MAX_STRINGS = 1 << 21  # strings in all arrays together; the largest known vocabularies have half of it
MAX_STRING = 16 << 20  # bytes of a string that is asked for
MAX_KEY = (1 << 16) - 1
MAX_NAME = 64
ALIGNMENTS = (8, 1 << 20)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# value type id -> name, struct format (numpy's code is the same behind "<")
_SCALARS: dict[int, tuple[str, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. shape is in numpy order (the last dimension is a row); offset is from the shard's start."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    nbytes: int
    shard: int


class _Value(NamedTuple):
    """A value as it lies in the file: `items` of value type `item`, or one when it is no array."""

    item: int
    array: bool
    offset: int
    items: int
    nbytes: int


class Shard(Mapping[str, Any]):
    """One file, all of it checked: its tensors, and its metadata.

    Keys to values, decoded on access: int, float, bool, str, a numpy array (1-d) or a StringArray.
    """

    def __init__(self, path: Path, index: int) -> None:
        self.path, self.index = path, index
        self.file = MappedFile(path)
        self.buffer, self.size, self.error = self.file.buffer, self.file.size, self.file.error
        self.limit = min(self.size, MAX_HEADER)
        self.position = 0
        self.strings = 0
        self.entries: dict[str, _Value] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._read()
        except (struct.error, OverflowError, IndexError):
            raise self.error("the header ends in the middle of an entry", self.position) from None

    def _u32(self) -> int:
        value: int = _U32.unpack_from(self.buffer, self.position)[0]
        self.position += 4
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack_from(self.buffer, self.position)[0]
        self.position += 8
        return value

    def _name(self, what: str, longest: int) -> str:
        at, length = self.position, self._u64()
        if not 0 < length <= longest or self.position + length > self.limit:
            raise self.error(f"{what} of {length} bytes (1 to {longest} are allowed)", at)
        raw = self.buffer[self.position : self.position + length]
        self.position += length
        if b"\0" in raw:
            raise self.error(f"{what} {shown(raw)} holds a zero byte", at)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} {shown(raw)} is not UTF-8", at) from None

    def _read(self) -> None:
        if self.size < 24:
            raise self.error(f"{self.size} bytes are too few for a GGUF header", 0)
        magic = self.buffer[:4]
        if magic != b"GGUF":
            raise InvalidModelFile(f"{self.path}: starts with {magic!r}, not b'GGUF'; this is not a GGUF file")
        self.position = 4
        self.version = self._u32()
        if self.version in (2 << 24, 3 << 24):
            raise InvalidModelFile(f"{self.path}: a big-endian GGUF file; only little-endian ones are read: convert it")
        if self.version not in (2, 3):
            raise self.error(f"GGUF version {self.version} (2 and 3 are read)", 4)
        n_tensors, n_pairs = self._u64(), self._u64()
        left = self.size - self.position
        # 14: key length, one character, type, one byte; 33: name length, one character, one dimension, type, offset
        if n_pairs > MAX_PAIRS or n_pairs * 14 > left:
            raise self.error(f"{n_pairs} key-value pairs do not fit in {left} bytes or exceed {MAX_PAIRS}", 16)
        if n_tensors > MAX_TENSORS or n_tensors * 33 > left:
            raise self.error(f"{n_tensors} tensors do not fit in {left} bytes or exceed {MAX_TENSORS}", 8)
        for _ in range(n_pairs):
            self._read_pair()
        self.alignment = self._alignment()
        self._read_tensors(n_tensors)

    def _read_pair(self) -> None:
        at = self.position
        key = self._name("a key", MAX_KEY)
        if key in self.entries:
            raise self.error(f"key {shown(key)} appears twice", at)
        item, array, count = self._u32(), False, 1
        if item == _ARRAY:
            item, count, array = self._u32(), self._u64(), True
            if item == _ARRAY:
                raise self.error(f"{shown(key)} is an array of arrays, which no engine uses", at)
        start = self.position
        if item == _STRING:
            self._skip_strings(key, count)
        elif item in _SCALARS:
            self.position += count * struct.calcsize("<" + _SCALARS[item][1])
        else:
            raise self.error(f"{shown(key)} has the unknown value type {item}", at)
        if self.position > self.limit:
            raise self.error(f"{shown(key)} reaches beyond the end of the header", at)
        if item == 7 and not array and self.buffer[start] > 1:
            raise self.error(f"{shown(key)} is {self.buffer[start]}, not a truth value", start)
        self.entries[key] = _Value(item, array, start, count, self.position - start)

    def _skip_strings(self, key: str, count: int) -> None:
        self.strings += count
        if self.strings > MAX_STRINGS or count * 8 > self.limit - self.position:
            raise self.error(f"{shown(key)} claims {count} strings", self.position)
        buffer, position, unpack = self.buffer, self.position, _U64.unpack_from
        for _ in range(count):  # a length that leads outside makes the next unpack fail
            position += unpack(buffer, position)[0] + 8
        self.position = position

    def _alignment(self) -> int:
        entry = self.entries.get("general.alignment")
        if entry is None:
            return 32
        value: int = _U32.unpack_from(self.buffer, entry.offset)[0]
        low, high = ALIGNMENTS
        if entry.array or entry.item != 4 or value & (value - 1) or not low <= value <= high:
            raise self.error(f"general.alignment {value} is not a u32 power of two from {low} to {high}", entry.offset)
        return value

    def _read_tensors(self, count: int) -> None:
        found: dict[str, TensorInfo] = {}  # offsets are still from the start of the data
        for _ in range(count):
            at = self.position
            name = self._name("a tensor name", MAX_NAME)
            if name in found:
                raise self.error(f"tensor {shown(name)} appears twice", at)
            n_dims = self._u32()
            if not 1 <= n_dims <= 4:
                raise self.error(f"tensor {shown(name)} has {n_dims} dimensions (1 to 4 are allowed)", at)
            shape = tuple(self._u64() for _ in range(n_dims))[::-1]
            kind_id, offset = self._u32(), self._u64()
            try:
                kind = GGMLType(kind_id)
            except ValueError:
                raise self.error(f"tensor {shown(name)} has the unknown type {kind_id}", at) from None
            if min(shape) < 1 or max(shape) >= 1 << 48:
                raise self.error(f"tensor {shown(name)} has the impossible shape {shape}", at)
            if shape[-1] % kind.block_size:
                raise self.error(
                    f"tensor {shown(name)} is {kind.name} with rows of {shape[-1]}, not a multiple of "
                    f"{kind.block_size}",
                    at,
                )
            nbytes = kind.nbytes(shape)
            if offset % self.alignment or offset + nbytes > self.size:
                raise self.error(
                    f"tensor {shown(name)} ({nbytes} bytes at offset {offset}) is not inside the file on a multiple of "
                    f"{self.alignment}", at,
                )  # fmt: skip
            found[name] = TensorInfo(name, shape, kind, offset, nbytes, self.index)
        self.header_bytes = self.position
        if self.header_bytes > self.limit:
            raise self.error(f"the header is larger than {MAX_HEADER} bytes", self.position)
        data = -(-self.header_bytes // self.alignment) * self.alignment
        end = 0
        for info in sorted(found.values(), key=lambda info: info.offset):
            if info.offset < end:
                raise self.error(f"tensor {shown(info.name)} overlaps the one before it", data + info.offset)
            end = info.offset + info.nbytes
            if data + end > self.size:
                what = f"tensor {shown(info.name)} reaches beyond the end of the file ({self.size} bytes)"
                raise self.error(what, data + info.offset)
        self.tensors = {name: replace(info, offset=data + info.offset) for name, info in found.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def __getitem__(self, key: str) -> Any:
        entry = self.entries[key]
        if entry.item == _STRING:
            if entry.array:
                return StringArray(self.buffer, entry.offset, entry.items, entry.nbytes)
            start = entry.offset + 8
            if entry.nbytes > MAX_STRING:
                raise self.error(f"{shown(key)} is a string of {entry.nbytes - 8} bytes", start)
            raw = self.buffer[start : start + _U64.unpack_from(self.buffer, entry.offset)[0]]
            return raw.decode("utf-8", "replace")  # a name in another encoding keeps no model from running
        code = "<" + _SCALARS[entry.item][1]
        if not entry.array:
            return struct.unpack_from(code, self.buffer, entry.offset)[0]
        return np.frombuffer(self.buffer, np.dtype(code), entry.items, entry.offset)

    def kind(self, key: str) -> str:
        entry = self.entries[key]
        name = "str" if entry.item == _STRING else _SCALARS[entry.item][0]
        return name + "[]" if entry.array else name
