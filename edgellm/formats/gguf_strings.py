"""StringArray: an array of strings in a GGUF file, read from the map when asked for."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

_U64 = struct.Struct("<Q")


class StringArray(Sequence[bytes]):
    """count strings from offset on. Bytes: nothing says that they are UTF-8. Each has its length in front of it, a u64.

    nbytes is what they take in the file, 8 bytes of length each included.
    """

    def __init__(self, buffer: mmap.mmap | bytes, offset: int, count: int, nbytes: int) -> None:
        self._buffer, self._offset, self._count, self.nbytes = buffer, offset, count, nbytes

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        buffer, unpack, start = self._buffer, _U64.unpack_from, self._offset + 8
        for _ in range(self._count):
            stop = start + unpack(buffer, start - 8)[0]
            yield buffer[start:stop]
            start = stop + 8

    @cached_property
    def _starts(self) -> NDArray[np.int64]:  # (count,) int64
        buffer, unpack, start = self._buffer, _U64.unpack_from, self._offset
        starts = np.empty(self._count, np.int64)
        for index in range(self._count):
            starts[index] = start
            start += unpack(buffer, start)[0] + 8
        return starts

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        start = int(self._starts[index]) + 8
        return self._buffer[start : start + _U64.unpack_from(self._buffer, start - 8)[0]]
