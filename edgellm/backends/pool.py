"""Pool: the sequences of a model that are open, and what they and their passes may hold.

An engine's pool adds where their state lies; a model whose sequences own theirs needs no more than this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from edgellm.backends.base import Sequence
from edgellm.errors import Busy, ContextOverflow

MAX_ROW_BYTES = 64 << 20  # logits rows of one pass


class Held(Sequence, Protocol):
    """What a pool knows of a sequence. id: its place in the pool, given by it; length: tokens whose state is there."""

    id: int
    length: int


H = TypeVar("H", bound=Held)


@dataclass(frozen=True, slots=True)
class Limits:
    """n_ctx: tokens of a sequence. max_sequences: open at once. micro_batch, max_rows: tokens and rows of logits of a
    pass."""

    n_ctx: int
    max_sequences: int
    micro_batch: int
    max_rows: int

    @classmethod
    def of(cls, n_ctx: int, max_sequences: int, micro_batch: int, n_vocab: int) -> Limits:
        """Those of a model whose context, passes and vocabulary are so large, and of so many sequences."""
        micro_batch = min(micro_batch, round_up(n_ctx, 4))
        max_rows = max(8, min(micro_batch, MAX_ROW_BYTES // (4 * n_vocab)))
        return cls(n_ctx, max_sequences, micro_batch, max_rows)


class Pool(Generic[H]):
    """See above. open: the sequences by id. name: of the model, for errors."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.open: dict[int, H] = {}

    def lease(self, sequence: H, expected: int = 0) -> None:
        """Give a new sequence its id, the lowest that is free, and room for the tokens that it is expected to hold.

        Raises Busy when `max_sequences` are open.
        """
        free = next((i for i in range(self.limits.max_sequences) if i not in self.open), None)
        if free is None:
            raise Busy(f"{self.limits.max_sequences} sequences are open in {self.name}; close one first")
        sequence.id = free
        self.open[free] = sequence

    def release(self, sequence: H) -> None:
        """Take the place of a sequence back. Releasing twice is harmless."""
        if self.open.get(sequence.id) is sequence:
            del self.open[sequence.id]

    def used(self) -> int:
        """Tokens of all open sequences."""
        return sum(sequence.length for sequence in self.open.values())

    def check_room(self, length: int) -> None:
        """Raise ContextOverflow if a sequence cannot hold `length` tokens."""
        n_ctx = self.limits.n_ctx
        if length > n_ctx:
            raise ContextOverflow(f"{length} tokens do not fit the context of {n_ctx}", needed=length, n_ctx=n_ctx)


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step
