"""Threads of edgellm's own."""

from __future__ import annotations

import threading

from edgellm.errors import NotEnoughMemory


def start(thread: threading.Thread) -> threading.Thread:
    """Start and return it. Raises NotEnoughMemory when the system has no more threads."""
    try:
        thread.start()
    except RuntimeError as error:
        raise NotEnoughMemory(
            f"the thread {thread.name} cannot be started ({error}); end other programs, or raise the limit on threads "
            "(ulimit -u, or the container's)"
        ) from error
    return thread
