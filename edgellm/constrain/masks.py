"""Masks: a thread that finds the tokens which may come next, while the pass that chooses among them is computed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from edgellm import threads

Job = Callable[[], Any]


class Masks:
    """Calls functions in turn. Safe from any thread; the thread begins with the first and ends with this object."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Job, SimpleQueue[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = False

    def post(self, job: Job) -> SimpleQueue[Any]:
        """Have `job` called; what it returns, or the exception it raises, will be in the queue."""
        if not self._begun:
            with self._lock:
                if not self._begun:
                    thread = threading.Thread(target=_run, args=(self._jobs,), name="edgellm-masks", daemon=True)
                    threads.start(thread)
                    weakref.finalize(self, self._jobs.put, None).atexit = False
                    self._begun = True
        found: SimpleQueue[Any] = SimpleQueue()
        self._jobs.put((job, found))
        return found


def _run(jobs: SimpleQueue[tuple[Job, SimpleQueue[Any]] | None]) -> None:
    while (item := jobs.get()) is not None:
        job, found = item
        try:
            found.put(job())
        except BaseException as error:
            found.put(error)
        del item, job, found  # what they hold may end here
