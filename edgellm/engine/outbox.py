"""Outbox: what the engine's thread has for event loops, handed over pass by pass.

Waking a loop from another thread costs more than the chunk that it is woken for: a pass wakes each loop once, however
many readers it has there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


Calls = list[tuple[Callable[[Any], object], object]]


class Outbox:
    """For the engine's thread alone."""

    def __init__(self) -> None:
        self._calls: dict[AbstractEventLoop, Calls] = {}

    def put(self, loop: AbstractEventLoop, receive: Callable[[Any], object], item: object) -> None:
        """Have `loop` call `receive(item)`, once the outbox is flushed."""
        self._calls.setdefault(loop, []).append((receive, item))

    def flush(self) -> None:
        """Hand over what waits, in its order."""
        if not self._calls:
            return
        waiting, self._calls = self._calls, {}
        for loop, calls in waiting.items():
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Calls) -> None:
    for receive, item in calls:
        receive(item)
