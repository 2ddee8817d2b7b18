"""Which tokens of which request go into the next pass.

The pass shape is what makes reuse exact. The same token computed in a pass of another size gives other logits (other
kernels), but prefill passes that start at a multiple of `ALIGN` and hold at least `SHORTEST` tokens agree bit for bit
on llama.cpp. So every prefill pass does, and a known prefix is cut (`reusable`) so that the passes after it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.engine.request import Request

ALIGN = 4  # tokens; a prefill pass starts at a multiple of it
SHORTEST = 8  # tokens; no prefill pass is shorter, unless the whole prompt is


def prefill_size(pending: int, micro_batch: int) -> int:
    """Tokens of the next prefill pass when `pending` are to be fed, so that the last pass is not too short."""
    if pending <= micro_batch:
        return pending
    return micro_batch if pending - micro_batch >= SHORTEST else micro_batch - SHORTEST


def reusable(matched: int, prompt: int) -> int:
    """How many of `matched` known tokens of a `prompt` (both in tokens) to keep: at least the last one is fed again."""
    return max(0, min(matched, prompt - SHORTEST)) // ALIGN * ALIGN


class RoundRobin:
    """One request's share per pass, in turn: a long prompt holds the others up for one micro-batch at most.

    A request that runs alone therefore always sees the same passes, and gives the same text for the same seed.
    """

    def __init__(self) -> None:
        self._last: Request | None = None

    def next(self, running: Sequence[Request]) -> Request:
        """The request after the one served last. `running` is not empty."""
        if len(running) > 1 and self._last in running:
            at = running.index(self._last) + 1
            self._last = running[at % len(running)]
        else:
            self._last = running[0]
        return self._last
