"""Which tokens of which requests go into the next pass.

The pass shape is what makes reuse exact. The same token computed in a pass of another size may give other logits, from
other kernels; a backend states which passes over a prompt agree bit for bit (`PassShape`). So every one is of that
shape, and a known prefix is cut (`PassShape.reusable`) so that the passes after it can be.

Decode steps of all running requests share a pass: it reads the weights once for all of them. Prompts share one where
nothing depends on what is beside it. With both kinds waiting they take turns, unless they may share one too, and a
prefill pass holds only what is read in about `SLICE_SECONDS` at the speed of the one before, so that running answers go
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgellm.backends.base import Backend

if TYPE_CHECKING:
    from edgellm.engine.request import Request

SLICE = 128  # most tokens of a prefill pass while other requests decode
LEAST = 16  # however slow it is
SLICE_SECONDS = 0.2  # that it should take

Share = tuple["Request", int]  # and how many of its tokens


class Scheduler:
    """Alternates between prefill and decode passes; prompts are read by arrival, short ones beside long ones."""

    def __init__(self, backend: Backend) -> None:
        self._shape = backend.pass_shape
        self._micro_batch = backend.micro_batch
        self._max_rows = backend.max_rows
        self._prefilled_last: set[str] = set()  # adapters whose last pass read prompts
        self._slice = SLICE // 4  # tokens that SLICE_SECONDS are enough for
        self._shortest_last = False  # the last pass over prompts began with the one of which least was left
        self._adapter = ""  # of the last pass
        self._next = 0  # where those that decode go on, when one pass does not hold all

    def next(self, running: Sequence[Request]) -> list[Share]:
        """The shares of the next pass. `running` is not empty."""
        answering = any(not request.in_prefill for request in running)
        running = self._of_one_adapter(running) if self._shape.one_adapter else running
        prefilling = [request for request in running if request.in_prefill]
        decoding = [request for request in running if not request.in_prefill]
        if not prefilling:
            self._prefilled_last.discard(self._adapter)
            return self._decode(decoding)
        beside: list[Share] = []
        if self._shape.mixes_prefill_and_decode and len(decoding) < self._max_rows:
            beside = self._decode(decoding)
        room = self._micro_batch - sum(size for _, size in beside)
        if room < 2 * self._shape.shortest if beside else decoding and self._adapter in self._prefilled_last:
            self._prefilled_last.discard(self._adapter)
            return beside or self._decode(decoding)
        self._prefilled_last.add(self._adapter)
        room = min(self._slice, room) if answering else room
        return beside + self._prefill(prefilling, room, self._max_rows - len(beside))

    def _of_one_adapter(self, running: Sequence[Request]) -> Sequence[Request]:
        """Those with the adapter whose turn it is: by name, in a circle, one pass each."""
        names = sorted({request.adapter for request in running})
        self._adapter = next((name for name in names if name > self._adapter), names[0])
        return [request for request in running if request.adapter == self._adapter]

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A pass with so many tokens, of prompts among them, took so long."""
        fits = int(tokens * SLICE_SECONDS / max(seconds, 1e-6))
        self._slice = min(max(LEAST, fits), SLICE) // self._shape.align * self._shape.align

    def _prefill(self, prefilling: list[Request], room: int, rows: int) -> list[Share]:
        """Prompts by arrival, in at most `room` tokens. The one of which least is left goes before one that needs more
        passes: in half of the room where several share a pass; else, if one pass holds it, in every second one, so that
        no more than one prompt is read in part. So a short prompt does not wait for a long one, nor a long one for many
        short ones."""
        shape = self._shape
        by_arrival = sorted(prefilling, key=lambda request: request.spent.submitted)
        shortest, half = min(by_arrival, key=_left), 0
        if shortest is not by_arrival[0] and _left(by_arrival[0]) > room:
            if shape.rows_independent:
                room = min(room, max(self._slice, LEAST))
                half = max(room // 2, 2 * shape.shortest)
            self._shortest_last = not self._shortest_last
            if shape.rows_independent or (self._shortest_last and _left(shortest) <= room):
                by_arrival.remove(shortest)
                by_arrival.insert(0, shortest)
        shares: list[Share] = []
        for request in by_arrival:
            limit = half if half and request is shortest else room
            most, wanted = limit // shape.align * shape.align, request.before_checkpoint
            if shares and wanted > limit and most < max(LEAST, 2 * shape.shortest):
                break
            size = shape.prefill_size(wanted, limit if wanted <= limit else most)
            shares.append((request, size))
            room -= size
            if room <= 0 or not shape.rows_independent or len(shares) == rows:
                break
        return shares

    def _decode(self, decoding: list[Request]) -> list[Share]:
        """As many of them as a pass holds, in turn."""
        shares = [(request, request.due) for request in decoding]
        if len(shares) <= self._max_rows and sum(size for _, size in shares) <= self._micro_batch:
            return shares
        first, room = self._next % len(shares), self._micro_batch
        chosen: list[Share] = []
        for request, size in shares[first:] + shares[:first]:
            if len(chosen) == self._max_rows or (chosen and size > room):
                break
            chosen.append((request, min(size, room)))
            room -= size
        self._next = first + len(chosen)
        return chosen


def _left(request: Request) -> int:
    """Tokens of its prompt that are to be read."""
    return len(request.prompt) - request.length
