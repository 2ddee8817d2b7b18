"""How many requests decode at once, where that is not all of them, and when the next one has its turn.

A backend states a limit, or that sequences slow each other down (`PassShape`); then the limit is learned from what
decode passes cost (`cost.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgellm.backends.base import PassShape
from edgellm.engine.cost import CostModel, sequences_at_once

TURN_SECONDS = 0.5  # after which a request that waits for its turn takes the place of one that decodes
TURN_SWAPS = 32  # times what that took must pass before the next one
JUDGED = 8  # decode passes after which the limit is looked at again
UNLIMITED = 1 << 30


class Turns:
    """For a backend that needs them. clock: seconds."""

    def __init__(self, shape: PassShape, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cost = CostModel() if shape.takes_turns else None
        self._decoded = 0  # decode passes since the limit was looked at
        self._limit = UNLIMITED if shape.limit is None else shape.limit
        self._ends = 0.0

    def decoded(self, rows: int, cells: int, seconds: float) -> None:
        """A decode pass of so many requests took so long with so many cells of the KV cache in use."""
        if self._cost is not None:
            self._cost.observe(rows, cells, seconds)
            self._decoded += 1

    def limit(self, lengths: Sequence[int], cells: int | None) -> int:
        """How many requests should decode at once.

        lengths: tokens of each that decodes or waits for its turn. cells: in use, where all of them decode; None where
        some wait. Before enough is known nothing is limited, and what was learned is forgotten after a while: a limit
        that is wrong by now goes with it.
        """
        count = len(lengths)
        if self._cost is None or count < 2 or self._decoded < JUDGED:
            return self._limit
        self._decoded = 0
        together, now = sum(lengths) if cells is None else cells, min(self._limit, count)
        cost = self._cost.fit()
        if cost is None:
            self._limit = UNLIMITED
        elif now < count or self._cost.seen(count, together):
            best = sequences_at_once(cost, now, count, sum(lengths) / count, together)
            if best != now:
                self._limit = best if best < count else UNLIMITED
        return self._limit

    @property
    def over(self) -> bool:
        """Whether who decodes has had its turn."""
        return self._clock() >= self._ends

    def begin(self, swap: Callable[[], None] = lambda: None) -> None:
        """The next turn begins with `swap`, and is the longer the longer that takes."""
        started = self._clock()
        swap()
        now = self._clock()
        self._ends = now + max(TURN_SECONDS, TURN_SWAPS * (now - started))
