"""Which tokens of which requests go into the next pass.

The pass shape is what makes reuse exact. The same token computed in a pass of another size may give other logits, from
other kernels; a backend states which passes over a prompt agree bit for bit (`PassShape`). So every one is of that
shape, and a known prefix is cut (`PassShape.reusable`) so that the passes after it can be.

Decode steps of all running requests share a pass: it reads the weights once for all of them. With both kinds waiting,
they take turns, and a prefill pass holds only what is read in about `SLICE_SECONDS` at the speed of the one before, so
that running answers go on.

How many requests decode at once is limited to where that is fastest (`cost.py`); the engine lets the others wait for
their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgellm.backends.base import PassShape
from edgellm.engine.cost import CostModel, sequences_at_once

if TYPE_CHECKING:
    from edgellm.engine.request import Request

SLICE = 128  # most tokens of a prefill pass while other requests decode
LEAST = 16  # however slow it is
SLICE_SECONDS = 0.2  # that it should take
JUDGED = 8  # decode passes after which the limit is looked at again
UNLIMITED = 1 << 30


class Scheduler:
    """Alternates between one prefill pass and one decode pass; prefills take turns by arrival."""

    def __init__(self, shape: PassShape, micro_batch: int) -> None:
        self._shape = shape
        self._micro_batch = micro_batch
        self._prefilled_last = False
        self._slice = SLICE // 4  # tokens that SLICE_SECONDS are enough for
        self._cost = CostModel()
        self._decoded = 0  # decode passes since the limit was looked at
        self._limit = UNLIMITED

    def next(self, running: Sequence[Request]) -> list[tuple[Request, int]]:
        """The requests of the next pass and how many tokens of each. `running` is not empty."""
        prefilling = [request for request in running if request.in_prefill]
        decoding = [request for request in running if not request.in_prefill]
        if not prefilling or (decoding and self._prefilled_last):
            self._prefilled_last = False
            return [(request, 1) for request in decoding]
        self._prefilled_last = True
        first = min(prefilling, key=lambda request: request.submitted)
        limit = min(self._slice, self._micro_batch) if decoding else self._micro_batch
        return [(first, self._shape.prefill_size(first.before_checkpoint, limit))]

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A prefill pass of so many tokens took so long."""
        fits = int(tokens * SLICE_SECONDS / max(seconds, 1e-6))
        self._slice = min(max(LEAST, fits), SLICE) // self._shape.align * self._shape.align

    def decoded(self, rows: int, cells: int, seconds: float) -> None:
        """A decode pass of so many requests took so long with so many cells of the KV cache in use."""
        self._cost.observe(rows, cells, seconds)
        self._decoded += 1

    def limit(self, lengths: Sequence[int], cells: int | None) -> int:
        """How many requests should decode at once.

        lengths: tokens of each that decodes or waits for its turn. cells: in use, where all of them decode; None where
        some wait. Before enough is known nothing is limited, and what was learned is forgotten after a while: a limit
        that is wrong by now goes with it.
        """
        count = len(lengths)
        if count < 2 or self._decoded < JUDGED:
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
