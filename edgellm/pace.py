"""Pace: how often a progress callback is called."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from edgellm.arguments import callback

T = TypeVar("T")
SECONDS = 0.05  # between two calls


class Pace:
    """Says when a callback is due: twenty times a second at most, and whenever a report must not be missed.

    clock: seconds; None is the system's.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._next = -float("inf")

    def due(self, *, surely: bool = False) -> bool:
        """Whether to call now. surely: it is the last report, or the first of its kind."""
        now = self._clock()
        if now < self._next and not surely:
            return False
        self._next = now + SECONDS
        return True


def paced(progress: Callable[[T], object], last: Callable[[T], bool]) -> Callable[[T], None]:
    """`progress`, called as often as somebody can look, and for what `last` says is the last report of its kind."""
    tell, pace = callback("progress", progress), Pace()

    def report(item: T) -> None:
        if pace.due(surely=last(item)):
            tell(item)

    return report
