"""MemoryTier: parked blocks in host memory."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.backends.base import Buffer
from edgellm.kv.blocks import Block


@dataclass(slots=True)
class _Held:
    block: Block
    payload: Buffer
    used: int


class MemoryTier:
    """Keeps blocks up to `budget` bytes. The least recently used leaf goes first, so shared prefixes go last.

    For one thread.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._held: dict[bytes, _Held] = {}
        self._children: dict[bytes, set[bytes]] = {}
        self._clock = 0

    def children(self, parent: bytes) -> list[Block]:
        """The blocks that continue `parent`, wherever in it they begin."""
        return [self._held[key].block for key in self._children.get(parent, ())]

    def read(self, key: bytes) -> Buffer | None:
        """The state a block holds; None when it is not here."""
        held = self._held.get(key)
        if held is None:
            return None
        self._clock += 1
        held.used = self._clock
        return held.payload

    def write(self, block: Block, payload: Buffer) -> None:
        """Keep a block; what no longer fits goes."""
        if block.key not in self._held:
            self._held[block.key] = _Held(block, payload, 0)
            self._children.setdefault(block.parent, set()).add(block.key)
            self.nbytes += len(payload)
        self.read(block.key)
        while self.nbytes > self.budget and self._held:
            self._evict()

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._children.clear()
        self.nbytes = 0

    def _evict(self) -> None:
        leaves = (held for key, held in self._held.items() if key not in self._children)
        self._remove(min(leaves, key=lambda held: held.used).block)

    def _remove(self, block: Block) -> None:
        self.nbytes -= len(self._held.pop(block.key).payload)
        siblings = self._children[block.parent]
        siblings.discard(block.key)
        if not siblings:
            del self._children[block.parent]
