"""Which tokens of which requests go into the next pass.

The pass shape is what makes reuse exact. The same token computed in a pass of another size gives other logits (other
kernels), but prefill passes that start at a multiple of `ALIGN` and hold at least `SHORTEST` tokens agree bit for bit
on llama.cpp. So every prefill pass does, holds the tokens of one request alone, and a known prefix is cut (`reusable`)
so that the passes after it can.

Decode steps of all running requests share a pass: it reads the weights once for all of them. With both kinds waiting,
they take turns, and a prefill pass holds only what is read in about `SLICE_SECONDS` at the speed of the one before, so
that running answers go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.engine.request import Request

ALIGN = 4  # tokens; a prefill pass starts at a multiple of it
SHORTEST = 8  # tokens; no prefill pass is shorter, unless the whole prompt is
SLICE = 128  # most tokens of a prefill pass while other requests decode
SLICE_SECONDS = 0.2  # that it should take


def prefill_size(pending: int, micro_batch: int) -> int:
    """Tokens of the next prefill pass when `pending` are to be fed, so that the last pass is not too short."""
    if pending <= micro_batch:
        return pending
    return micro_batch if pending - micro_batch >= SHORTEST else micro_batch - SHORTEST


def reusable(matched: int, prompt: int) -> int:
    """How many of `matched` known tokens of a `prompt` (both in tokens) to keep: at least the last one is fed again."""
    return max(0, min(matched, prompt - SHORTEST)) // ALIGN * ALIGN


class Scheduler:
    """Alternates between one prefill pass and one decode pass; prefills take turns by arrival."""

    def __init__(self, micro_batch: int) -> None:
        self._micro_batch = micro_batch
        self._prefilled_last = False
        self._slice = SLICE // 4  # tokens that SLICE_SECONDS are enough for

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
        return [(first, prefill_size(first.before_checkpoint, limit))]

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A prefill pass of so many tokens took so long."""
        fits = int(tokens * SLICE_SECONDS / max(seconds, 1e-6))
        self._slice = min(max(2 * SHORTEST, fits), SLICE) // ALIGN * ALIGN
