"""patience: work on a schema goes in small steps, lets other threads in between, and ends where it takes too long.

Python lets a thread that computes go on for 5 ms before another one may: an engine that wants to begin its next pass
would wait so long every time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgellm.errors import Unsupported

LONGEST = 0.6  # seconds of the processor
SLICE = 1e-3  # seconds between two pauses
PAUSE = 5e-5


class _Work(threading.local):
    until: float | None = None  # of the processor's clock for this thread
    paused = 0.0


_work = _Work()


@contextmanager
def limited() -> Iterator[None]:
    """What is done within ends after LONGEST."""
    if _work.until is not None:
        yield
        return
    _work.until, _work.paused = time.thread_time() + LONGEST, time.perf_counter()
    try:
        yield
    finally:
        _work.until = None


def step() -> None:
    """Called between two steps of work, often. Raises Unsupported where they took too long."""
    if _work.until is None:
        return
    now = time.perf_counter()
    if now - _work.paused > SLICE:
        if time.thread_time() > _work.until:
            raise Unsupported("schema: #: it takes too long to be read; make it smaller, or say it more simply")
        time.sleep(PAUSE)
        _work.paused = time.perf_counter()
