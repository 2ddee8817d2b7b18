"""Order: sorts more than memory holds."""

from __future__ import annotations

import heapq
import marshal
import tempfile
from array import array
from collections.abc import Iterator
from typing import IO, Any

RUN = 128 << 20  # bytes of keys that are sorted in memory
RUNS = 64  # files that are merged at once

Pair = tuple[bytes, int]


class Order:
    """Numbers in the order of their keys; of the same ones, as they came. Keys beyond RUN bytes go to a temporary file.
    Raises OSError where that cannot be written."""

    def __init__(self, run: int = RUN) -> None:
        self._run = run
        self._held: list[Pair] = []
        self._size = 0
        self._files: list[IO[bytes]] = []

    def add(self, key: bytes, number: int) -> None:
        self._held.append((key, number))
        self._size += len(key) + 100
        if self._size > self._run:
            self._spill(iter(sorted(self._held)))
            self._held, self._size = [], 0
            if len(self._files) == RUNS:
                merged, self._files = self._files, []
                self._spill(_merged(merged))

    def numbers(self) -> array[int]:
        """All of them, sorted; nothing is held any more."""
        held, files = sorted(self._held), self._files
        self._held, self._files = [], []
        return array("Q", (number for _, number in _merged(files, held)))

    def _spill(self, pairs: Iterator[Pair]) -> None:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is merged
        for pair in pairs:
            marshal.dump(pair, file)
        file.flush()
        self._files.append(file)


def _merged(files: list[IO[bytes]], *held: list[Pair]) -> Iterator[Pair]:
    try:
        yield from heapq.merge(*map(_read, files), *held)
    finally:
        for file in files:
            file.close()


def _read(file: IO[Any]) -> Iterator[Pair]:
    file.seek(0)
    while True:
        try:
            yield marshal.load(file)
        except EOFError:
            return
