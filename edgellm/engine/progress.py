"""Progress: how far something long has come, told at most twenty times a second."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.arguments import callback, refuse
from edgellm.pace import Pace

OnProgress = Callable[[int, int], None]
"""Called with the tokens that are done, and with all there are."""


class Progress:
    """Calls `tell(done, total)` when something begins and when it is done, and now and then between.

    `done` never goes back: what has to be done again is told once it is past where it was. tell: None tells nobody.
    """

    def __init__(self, tell: OnProgress | None, total: int) -> None:
        self._tell = tell
        self._total = total
        self._done = -1
        self._pace = Pace()

    def __call__(self, done: int) -> None:
        """So many tokens are done. What `tell` raises is passed on."""
        if self._tell is None or done <= self._done:
            return
        if self._pace.due(surely=self._done < 0 or done >= self._total):
            self._done = done
            self._tell(done, self._total)


def checked_progress(progress: OnProgress | None) -> OnProgress | None:
    """The callback as it is called: see `arguments.callback`. Raises InvalidParameter for what cannot be called."""
    if progress is not None and not callable(progress):
        raise refuse("progress", progress, "a function of two numbers, done and total")
    return progress and callback("progress", progress)
