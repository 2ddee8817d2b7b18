"""Ledger: what was asked and answered lately, by the ids that clients got, in bounded memory.

Clients ask by an id why a prompt was computed again, or go on from an answer that they do not repeat.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgellm import CacheReport, Completion, Timings, Usage

if TYPE_CHECKING:
    from edgellm.serve.ask import Answering

ENTRIES = 1000
LARGEST = 64 << 20  # bytes of all entries


@dataclass(frozen=True)
class Entry:
    """An answer. prompt: its tokens. parts: what the prompt was made of, by the names of its parts ("system", "tools",
    "messages"), each as bytes to compare. kept: what a dialect needs to go on from it."""

    id: str
    model: str
    prompt: array[int]
    usage: Usage
    cache: CacheReport
    timings: Timings
    parts: dict[str, bytes] = field(default_factory=dict)
    kept: Any = None
    size: int = 0

    @staticmethod
    def of(id: str, answering: Answering, done: Completion, **more: Any) -> Entry:
        """That of an answer with this id."""
        tokens = array("i", answering.tokens)
        return Entry(id, answering.listed.name, tokens, done.usage, done.cache, done.timings, **more)

    @property
    def nbytes(self) -> int:
        return self.prompt.itemsize * len(self.prompt) + sum(map(len, self.parts.values())) + self.size + 500


class Ledger:
    """The last entries; the oldest go first."""

    def __init__(self, entries: int = ENTRIES, largest: int = LARGEST) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._limits = entries, largest
        self._nbytes = 0

    def add(self, entry: Entry) -> None:
        self.remove(entry.id)
        self._entries[entry.id] = entry
        self._nbytes += entry.nbytes
        most, largest = self._limits
        while len(self._entries) > most or (self._nbytes > largest and len(self._entries) > 1):
            self.remove(next(iter(self._entries)))

    def get(self, id: str) -> Entry | None:
        return self._entries.get(id)

    def remove(self, id: str) -> bool:
        entry = self._entries.pop(id, None)
        self._nbytes -= 0 if entry is None else entry.nbytes
        return entry is not None


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two prompts begin with alike."""
    count = min(len(one), len(other))
    return next((at for at in range(count) if one[at] != other[at]), count)
