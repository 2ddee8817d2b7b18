"""CancelToken: stop a generation from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import NoReturn

from edgellm.arguments import function
from edgellm.errors import Unsupported


class CancelToken:
    """Hand it to one or more calls as `cancel=`; `cancel()` ends them with finish reason `cancelled`."""

    # No lock: a signal handler or a finalizer may meet any of this half done on its own thread. Each step on the
    # dictionary is whole, and whoever takes a callback out of it calls it.

    def __init__(self) -> None:
        self._cancelled = False
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._numbers = count()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Stop. From any thread, a signal handler or a finalizer, any number of times.

        All callbacks are called; what one of them raises is raised behind the last.
        """
        self._cancelled = True
        with ExitStack() as stack:  # which calls the last one first
            for number in reversed(list(self._callbacks)):
                stack.callback(self._call, number)

    def __reduce__(self) -> NoReturn:
        raise Unsupported("a CancelToken is neither copied nor sent to another process: make one there")

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` on cancel (at once if that was before). Returns the function that ends the subscription."""
        function("callback", callback)
        number = next(self._numbers)
        self._callbacks[number] = callback
        if self._cancelled:
            self._call(number)
        return lambda: self._drop(number)

    def _call(self, number: int) -> None:
        callback = self._callbacks.pop(number, None)
        if callback is not None:
            callback()

    def _drop(self, number: int) -> None:
        self._callbacks.pop(number, None)
