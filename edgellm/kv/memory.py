"""MemoryTier: parked blocks in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice

from edgellm.backends.base import Buffer
from edgellm.kv.blocks import Block

OVERHEAD = 2048  # bytes, about, that a block takes beside its payload


@dataclass(slots=True)
class _Held:
    block: Block
    payload: Buffer
    used: int = 0


@dataclass(slots=True)
class _Node:
    """What follows one key: its children by where they begin and with which token. Dictionaries keep their order."""

    at: dict[int, dict[int, dict[bytes, Block]]] = field(default_factory=dict)

    def blocks(self, at: int | None, token: int | None) -> Iterator[Block]:
        for start in self.at.values() if at is None else [self.at.get(at, {})]:
            for same in start.values() if token is None else [start.get(token, {})]:
                yield from same.values()

    def add(self, block: Block) -> None:
        self.at.setdefault(block.start, {}).setdefault(int(block.tokens[0]), {})[block.key] = block

    def remove(self, block: Block) -> None:
        start, token = self.at[block.start], int(block.tokens[0])
        del start[token][block.key]
        if not start[token]:
            del start[token]
        if not start:
            del self.at[block.start]


class MemoryTier:
    """Keeps blocks up to `budget` bytes, of which `nbytes` are state.

    The least recently used leaf goes first, so shared prefixes go last.
    For one thread. Every operation takes the same time however many blocks there are.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._held: dict[bytes, _Held] = {}
        self._after: dict[bytes, _Node] = {}
        self._clock = 0
        self._oldest: list[tuple[int, bytes]] = []  # a heap; entries whose time is not the block's own are stale

    def children(
        self, parent: bytes, at: int | None = None, token: int | None = None, *, limit: int = -1
    ) -> list[Block]:
        """The blocks that continue `parent`; at, token: only those that begin at this position, with this token."""
        node = self._after.get(parent)
        found = iter(()) if node is None else node.blocks(at, token)
        return list(found if limit < 0 else islice(found, limit))

    def read(self, key: bytes) -> Buffer | None:
        """The state a block holds; None when it is not here."""
        held = self._held.get(key)
        if held is None:
            return None
        self._clock += 1
        held.used = self._clock
        heappush(self._oldest, (held.used, key))
        if len(self._oldest) > 4 * len(self._held) + 64:
            self._oldest = [(held.used, key) for key, held in self._held.items()]
            heapify(self._oldest)
        return held.payload

    def write(self, block: Block, payload: Buffer) -> None:
        """Keep a block; what no longer fits goes."""
        if block.key not in self._held:
            self._held[block.key] = _Held(block, payload)
            self._after.setdefault(block.parent, _Node()).add(block)
            self.nbytes += len(payload)
        self.read(block.key)
        while self._held and self.nbytes + OVERHEAD * len(self._held) > self.budget:
            self._evict()

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._after.clear()
        self._oldest.clear()
        self.nbytes = 0

    def _evict(self) -> None:
        while True:
            used, key = heappop(self._oldest)
            held = self._held.get(key)
            if held is not None and held.used == used and key not in self._after:
                break
        self._remove(held.block)

    def _remove(self, block: Block) -> None:
        self.nbytes -= len(self._held.pop(block.key).payload)
        node = self._after[block.parent]
        node.remove(block)
        if not node.at:
            del self._after[block.parent]
            parent = self._held.get(block.parent)
            if parent is not None:  # a leaf now: its turn to go may come
                heappush(self._oldest, (parent.used, block.parent))
