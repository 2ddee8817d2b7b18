"""Suffixes: where the end of a text occurred before in it, in another text, or nowhere.

For pieces of 1, 2, 4, 8 and 16 tokens a table of hashes says where each was last:

    text     a b c d x a b c d ▮      the last 4 tokens were at 0, and 4 is where what followed them begins
    table    hash of (a b c d) → 4

A slot holds one position, the newest one wins, and what is found is compared with the text, so a collision loses an
entry and never gives a wrong one. A token costs a few microseconds, tokens that come together a few nanoseconds each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIZES = (1, 2, 4, 8, 16)  # of the pieces; each is two of the one before
LONGEST = 32  # tokens that are compared; longer matches count as this
SMALLEST = 1024  # tokens that there is room for from the beginning
SEPARATOR = -1  # between texts that do not follow one another

_FACTOR = 0x9E3779B97F4A7C15  # odd: 2**64 over the golden ratio (Knuth, multiplicative hashing)
_BITS = (1 << 64) - 1
_POWERS = [pow(_FACTOR, place, 1 << 64) for place in range(1, SIZES[-1] + 1)]
_ENDS = {_POWERS[size - 1] for size in SIZES}


def hashes(recent: Sequence[int]) -> list[int]:
    """Those of the last 1, 2, 4, 8 and 16 tokens of `recent`, as far as it has so many: the sum of token ·
    factor^(place from the end), modulo 2**64, whose upper bits depend on every token."""
    found: list[int] = []
    total = 0
    for token, power in zip(reversed(recent), _POWERS, strict=False):
        total += token * power
        if power in _ENDS:
            found.append(total & _BITS)
    return found


class Suffixes:
    """A text of at most `limit` tokens that grows; of more, the older half goes. epoch: how often that was."""

    def __init__(self, limit: int) -> None:
        self.length = 0
        self.epoch = 0
        self._limit = limit
        self._array = np.empty(0, np.int32)
        self._make_room(min(limit, SMALLEST))

    def __getitem__(self, at: int) -> int:
        return self._view[at]

    @property
    def array(self) -> NDArray[np.int32]:
        """All of it, as it is now."""
        return self._array[: self.length]

    def common(self, one: int, other: int, most: int) -> int:
        """How many tokens are the same from there on, of at most so many."""
        view, size = self._view, 0
        most = min(most, self.length - max(one, other))
        while size < most and view[one + size] == view[other + size]:
            size += 1
        return size

    def tokens(self, start: int, stop: int) -> list[int]:
        """Those from `start` on, as far as the text goes."""
        return self._view[start : min(stop, self.length)].tolist()

    def find(self, recent: Sequence[int], hashed: list[int]) -> tuple[int, int]:
        """Where what followed `recent` begins, at its newest occurrence of those that share most with it, and how many
        tokens are the same before that: (0, 0) where none is. hashed: `hashes(recent)`."""
        view, tables, shift, last = self._view, self._tables, self._shift, recent[-1] if recent else SEPARATOR
        for index in range(len(hashed) - 1, -1, -1):
            at = tables[index][hashed[index] >> shift]
            if not at or view[at - 1] != last:
                continue
            size = SIZES[index]
            if size == 1 or view[at - size : at].tolist() == recent[-size:]:
                most = min(at, len(recent), LONGEST)
                while size < most and view[at - size - 1] == recent[-size - 1]:
                    size += 1
                return at, size
        return 0, 0

    def append(self, token: int, hashed: list[int]) -> None:
        """Add a token. hashed: `hashes` of the text that ends with it."""
        if self.length == len(self._view):
            self._make_room(1)
        self._view[self.length] = token
        self.length += 1
        for table, value in zip(self._tables, hashed, strict=False):
            table[value >> self._shift] = self.length

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens that come together."""
        new = np.asarray(tokens[-self._limit // 2 :], np.int32)
        if self.length + new.size > len(self._view):
            self._make_room(new.size)
        start, self.length = self.length, self.length + new.size
        self._array[start : self.length] = new
        self._index(start)

    def _make_room(self, count: int) -> None:
        """For so many tokens, at most half of the limit."""
        kept = self._array[: self.length]
        if self.length + count > self._limit:
            kept = kept[self.length - self._limit // 2 :]
            self.epoch += 1
        capacity = SMALLEST
        while capacity < kept.size + count:
            capacity *= 2
        capacity = min(capacity, self._limit)
        bits = (2 * capacity - 1).bit_length()
        self._array = np.concatenate([kept, np.empty(capacity - kept.size, np.int32)])
        self._slots = np.zeros((len(SIZES), 1 << bits), np.int32)
        self._view, self._tables = self._array.data, [slots.data for slots in self._slots]
        self._shift = 64 - bits
        self.length = kept.size
        self._index(0)

    def _index(self, start: int) -> None:
        """Enter the pieces that end behind `start`; of equal ones the last is assigned last."""
        first = max(0, start - SIZES[-1] + 1)
        values = self._array[first : self.length].astype(np.uint64) * np.uint64(_FACTOR)
        half = 0
        for size, slots in zip(SIZES, self._slots, strict=True):
            if values.size <= half:
                return
            if half:
                values = values[half:] + values[:-half] * np.uint64(_POWERS[half - 1])
            half = size
            skip = max(0, start + 1 - first - size)  # the first ends at first + size
            ends = np.arange(first + size + skip, self.length + 1, dtype=np.int32)
            slots[(values[skip:] >> np.uint64(self._shift)).astype(np.intp)] = ends
