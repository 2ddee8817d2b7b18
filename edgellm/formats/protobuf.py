"""The wire format of Protocol Buffers: fields as they are written, and a reader of them that trusts nothing.

    message: (key varint | value) ...           key = field number << 3 | wire type
    value:   0 varint    1 eight bytes    2 length varint and that many bytes (string, message, packed)    5 four bytes

A varint has 7 bits in each byte, the low ones first; the top bit says that more follow. Negative numbers are those of
64 bits, ten bytes long: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile, InvalidParameter
from edgellm.formats.mapped import MappedFile

VARINT, EIGHT, SPAN, FOUR = 0, 1, 2, 5
_WIRES = {
    "int": (VARINT,), "float": (FOUR,), "text": (SPAN,), "lossy": (SPAN,), "span": (SPAN,), "ints": (VARINT, SPAN),
    "floats": (FOUR, SPAN),
}  # fmt: skip
_ABSENT = {"int": 0, "float": 0.0, "text": "", "lossy": "", "span": None}
Span = tuple[int, int]  # where a message starts and stops in the file
MAX_FIELDS = 1 << 23  # of one file; the largest known graphs have a tenth of it
_BLOCK = 1 << 20  # bytes unpacked at once
_MASK = (1 << 64) - 1
_F32 = struct.Struct("<f")


def varint(number: int) -> bytes:
    """An integer, -2**63 to 2**64 - 1."""
    number = int(number) & _MASK
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def integer(field: int, number: int) -> bytes:
    """A field that is an integer, a truth value or one of an enumeration."""
    return varint(field << 3 | VARINT) + varint(number)


def single(field: int, number: float) -> bytes:
    """A field that is a float of 4 bytes. OverflowError for what it cannot hold."""
    return varint(field << 3 | FOUR) + _F32.pack(number)


def prefix(field: int, nbytes: int) -> bytes:
    """What comes before the bytes of a string or a message."""
    return varint(field << 3 | SPAN) + varint(nbytes)


def text(field: int, value: str | bytes) -> bytes:
    """A field that is a string, or bytes. InvalidParameter for a string that is no Unicode."""
    try:
        raw = value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise InvalidParameter(f"{shown(value)} is not Unicode text: half of a surrogate pair is in it") from None
    return prefix(field, len(raw)) + raw


def message(field: int, *parts: bytes) -> bytes:
    """A field that is a message of these fields."""
    return text(field, b"".join(parts))


@dataclass(frozen=True)
class Schema:
    """The fields of a message that are read: (name, kind, whether it may come more than once) by key; and by name what
    is said without them."""

    fields: Mapping[int, tuple[str, str, bool]]
    absent: Mapping[str, Any]


def schema(*lines: str) -> Schema:
    """Fields as "text 1* input": the kind, the number (with a star for one that is repeated) and the name; behind it
    what an absent integer stands for, unless that is 0.

    Kinds, and what `Wire.read` makes of them: int (of 64 bits, signed), float (of 4 bytes), text, lossy (a text for
    people: what is not UTF-8 in it is replaced), span (where it starts and stops in the file; None when absent), and
    ints and floats (a list, whether they are packed or not).
    """
    found: dict[int, tuple[str, str, bool]] = {}
    absent: dict[str, Any] = {}
    for line in lines:
        kind, number, name, *default = line.split()
        absent[name] = () if number.endswith("*") else int(default[0]) if default else _ABSENT[kind]
        for wire in _WIRES[kind]:
            found[int(number.rstrip("*")) << 3 | wire] = name, kind, number.endswith("*")
    return Schema(found, absent)


class Wire:
    """Reads the messages of a file. Its methods raise InvalidModelFile."""

    def __init__(self, file: MappedFile) -> None:
        self._buffer, self.error = file.buffer, file.error
        self._left = MAX_FIELDS

    def read(self, place: Span | None, known: Schema) -> dict[str, Any]:
        """The message at a place, or one that is not there: its values by name, lists of them for what is repeated.
        Fields that are not known are skipped; one that is not repeated comes once."""
        found, seen, names = dict(known.absent), set(), known.fields
        for key, _, value, end in self.fields(*place) if place else ():
            if key not in names:
                continue
            name, kind, many = names[key]
            made: Any
            if kind == "span":
                made = value, end
            elif kind == "text":
                made = self.text(value, end)
            elif kind == "lossy":
                made = self._buffer[value:end].decode("utf-8", "replace")
            elif key & 7 == VARINT:
                made = signed(value)
            elif kind == "float":
                made = next(self._singles(value, end))
            else:
                made = list(self._integers(value, end) if kind == "ints" else self._singles(value, end))
            if many:
                values = found[name] = found[name] or []
                if isinstance(made, list):
                    values += made
                else:
                    values.append(made)
            elif name in seen:
                raise self.error(f"the field {name} appears twice in a message", end)
            else:
                seen.add(name)
                found[name] = made
        return found

    def fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """The fields of a message, whatever they are: (key, first, start, stop): where the field begins, where its
        value starts and stops. start is the value itself for a varint."""
        buffer = self._buffer
        position = start
        while position < stop:
            self._left -= 1
            if self._left < 0:
                raise self._too_many(position)
            first, key = position, buffer[position]
            if key > 0x7F:
                key, position = self._varint(position, stop)
            else:
                position += 1
            value, wire = position, key & 7
            if wire == SPAN:
                if position < stop and (length := buffer[position]) < 0x80:  # most are short
                    value = position + 1
                else:
                    length, value = self._varint(position, stop)
                position = value + length
            elif wire == VARINT:
                if position < stop and (value := buffer[position]) < 0x80:
                    position += 1
                else:
                    value, position = self._varint(position, stop)
            elif wire in (FOUR, EIGHT):
                position += 4 if wire == FOUR else 8
            else:
                raise self.error(f"a field of the wire type {wire}", position)
            if position > stop or key < 8:
                raise self.error(f"field {key >> 3} does not end within its message, or has no number", position)
            yield key, first, value, position

    def _too_many(self, position: int) -> InvalidModelFile:
        return self.error(f"more than {MAX_FIELDS} fields and numbers", position)

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        """The number at a position, and where it ends."""
        value = shift = 0
        for at in range(position, min(stop, position + 10)):
            byte = self._buffer[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _MASK, at + 1
            shift += 7
        raise self.error("a number does not end", position)

    def text(self, start: int, stop: int) -> str:
        """A string that must be UTF-8."""
        try:
            return self._buffer[start:stop].decode()
        except UnicodeDecodeError:
            raise self.error("a text is not UTF-8", start) from None

    def _integers(self, start: int, stop: int) -> Iterator[int]:
        """Packed integers, signed."""
        while start < stop:
            self._left -= 1
            if self._left < 0:
                raise self._too_many(start)
            value, start = self._varint(start, stop)
            yield signed(value)

    def _singles(self, start: int, stop: int) -> Iterator[float]:
        """Packed floats of 4 bytes; one that is not packed is the same."""
        if (stop - start) % 4:
            raise self.error(f"{stop - start} bytes hold no whole number of floats", start)
        self._left -= (stop - start) // 4
        if self._left < 0:
            raise self._too_many(start)
        for (number,) in _F32.iter_unpack(self._buffer[start:stop]):
            yield number


def signed(value: int) -> int:
    """A varint as an integer of 64 bits with a sign."""
    return value - (1 << 64) if value >> 63 else value


def unpacked(packed: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Packed varints (n bytes), in blocks of (count,) int64. ValueError for a number that does not end."""
    start = 0
    while start < len(packed):
        block = packed[start : start + _BLOCK]
        ends = np.flatnonzero(block < 0x80)  # (count,) int64: where its numbers end
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])[: len(ends)]
        sizes = ends - starts + 1
        if not len(ends) or sizes.max() > 10:
            raise ValueError("a number has more than 10 bytes, or does not end")
        values = np.zeros(len(ends), np.uint64)
        for index in range(int(sizes.max())):
            there = np.flatnonzero(sizes > index)
            values[there] |= (block[starts[there] + index] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * index)
        yield values.view(np.int64)
        start += int(ends[-1]) + 1
