"""Deadlines: functions that are called at their time, by one thread for the whole process.

The engine's thread may be inside of a pass when a time limit is over, and the pass is to be interrupted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue

from edgellm import threads

log = logging.getLogger("edgellm.engine")


class Deadlines:
    """Functions by their times; the thread starts with the first one. Safe from any thread, and in what the collector
    or a signal begins in the midst of it: each step on the dictionary is whole, and its thread holds no lock."""

    def __init__(self) -> None:
        self._numbers = count()
        self.renew()

    def renew(self) -> None:
        """Begin without any: in a forked child the thread is missing, and the lock may be held for ever."""
        self._starting = threading.RLock()
        self._functions: dict[tuple[float, int], Callable[[], None]] = {}  # each holds the request that it ends
        self._added: SimpleQueue[None] = SimpleQueue()  # wakes the thread
        self._thread: threading.Thread | None = None

    def add(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call `function` in so many seconds, unless the function that is returned was called before.

        Raises NotEnoughMemory when its thread cannot be started.
        """
        with self._starting:
            if self._thread is None:
                self._thread = threads.start(threading.Thread(target=self._run, name="edgellm-deadlines", daemon=True))
        due = time.monotonic() + seconds, next(self._numbers)
        self._functions[due] = function
        self._added.put(None)
        return lambda: self._drop(due)

    def _drop(self, due: tuple[float, int]) -> None:
        self._functions.pop(due, None)

    def _run(self) -> None:
        while True:
            first = min(list(self._functions), default=(threading.TIMEOUT_MAX, 0))  # of a few hundred at most
            left = first[0] - time.monotonic()
            if left > 0:
                with suppress(Empty):
                    self._added.get(timeout=min(left, threading.TIMEOUT_MAX))
                continue
            function = self._functions.pop(first, None)
            try:
                if function is not None:
                    function()
            except Exception:
                log.exception("what a time limit has to end failed")
            del function


DEADLINES = Deadlines()  # of this process

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DEADLINES.renew)
