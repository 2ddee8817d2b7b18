"""MemoryTier: parked blocks in host memory."""

from __future__ import annotations

from dataclasses import dataclass
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


_Group = tuple[bytes, "int | None", "int | None"]  # what follows a key: at a position, with a token, or all of it


def _groups(block: Block) -> tuple[_Group, ...]:
    parent, start = block.parent, block.start
    return (parent, None, None), (parent, start, None), (parent, start, int(block.tokens[0]))


class MemoryTier:
    """Keeps blocks up to `budget` bytes, of which `nbytes` are state.

    The least recently used leaf goes first, so shared prefixes go last.
    For one thread. Every operation takes the same time however many blocks there are.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._held: dict[bytes, _Held] = {}
        self._after: dict[_Group, dict[bytes, Block]] = {}  # never empty; dictionaries keep their order
        self._clock = 0
        self._oldest: list[tuple[int, bytes]] = []  # a heap; entries whose time is not the block's own are stale

    def children(
        self, parent: bytes, at: int | None = None, token: int | None = None, *, limit: int = -1
    ) -> list[Block]:
        """The blocks that continue `parent`; at, token: only those that begin at this position, with this token."""
        found = self._after.get((parent, at, token), {}).values()
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
            for group in _groups(block):
                self._after.setdefault(group, {})[block.key] = block
            self.nbytes += len(payload)
        self.read(block.key)
        while self._held and self.nbytes + OVERHEAD * len(self._held) > self.budget:
            self._evict()

    def drop(self, key: bytes) -> None:
        """Let a block go, and everything that descends from its key."""
        if key in self._held:
            self._remove(self._held[key].block)
        left = [key]
        while left:
            for child in self.children(left.pop()):
                left.append(child.key)
                self._remove(child)

    def clear(self) -> None:
        self._held.clear()
        self._after.clear()
        self._oldest.clear()
        self.nbytes = 0

    def _evict(self) -> None:
        while True:
            used, key = heappop(self._oldest)
            held = self._held.get(key)
            if held is not None and held.used == used and (key, None, None) not in self._after:
                break
        self._remove(held.block)

    def _remove(self, block: Block) -> None:
        self.nbytes -= len(self._held.pop(block.key).payload)
        for group in _groups(block):
            del self._after[group][block.key]
            if not self._after[group]:
                del self._after[group]
        parent = block.parent
        if parent in self._held and (parent, None, None) not in self._after:  # a leaf now: its turn to go may come
            heappush(self._oldest, (self._held[parent].used, parent))
