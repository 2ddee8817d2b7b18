"""CancelToken: stop a generation from anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NoReturn

from edgellm.arguments import function
from edgellm.errors import Unsupported


class CancelToken:
    """Hand it to one or more calls as `cancel=`; `cancel()` ends them with finish reason `cancelled`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Stop. From any thread, any number of times."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = list(self._callbacks.values()), {}
        for callback in callbacks:
            callback()

    def __reduce__(self) -> NoReturn:
        raise Unsupported("a CancelToken is neither copied nor sent to another process: make one there")

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` on cancel (at once if that was before). Returns the function that ends the subscription."""
        function("callback", callback)
        with self._lock:
            if not self._cancelled:
                key, self._next = self._next, self._next + 1
                self._callbacks[key] = callback
                return lambda: self._drop(key)
        callback()
        return lambda: None

    def _drop(self, key: int) -> None:
        with self._lock:
            self._callbacks.pop(key, None)
