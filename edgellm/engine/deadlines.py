"""Deadlines: functions that are called at their time, by one thread for the whole process.

The engine's thread may be inside of a pass when a time limit is over, and the pass is to be interrupted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Deadlines:
    """A heap of times; its thread starts with the first one. Safe from any thread."""

    def __init__(self) -> None:
        self._numbers = count()
        self.renew()

    def renew(self) -> None:
        """Begin without any: in a forked child the thread is missing, and the lock may be held for ever."""
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int]] = []  # when, and the number of a function
        self._functions: dict[int, Callable[[], None]] = {}  # that are wanted; each holds the request that it ends
        self._thread: threading.Thread | None = None

    def add(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call `function` in so many seconds, unless the function that is returned was called before."""
        with self._changed:
            number = next(self._numbers)
            self._functions[number] = function
            heappush(self._heap, (time.monotonic() + seconds, number))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgellm-deadlines", daemon=True)
                self._thread.start()
            elif self._heap[0][1] == number:
                self._changed.notify()
        return lambda: self._drop(number)

    def _drop(self, number: int) -> None:
        with self._changed:
            self._functions.pop(number, None)
            if len(self._heap) > 2 * len(self._functions):
                self._heap = sorted(each for each in self._heap if each[1] in self._functions)  # a heap, too

    def _run(self) -> None:
        while True:
            with self._changed:
                while (left := self._heap[0][0] - time.monotonic() if self._heap else threading.TIMEOUT_MAX) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                function = self._functions.pop(heappop(self._heap)[1], None)
            if function is not None:
                function()
            del function


DEADLINES = Deadlines()  # of this process

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DEADLINES.renew)
