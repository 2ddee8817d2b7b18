"""A line on a terminal's stderr that says what is going on, and goes away."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from edgellm import threads
from edgellm.errors import NotEnoughMemory

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PATIENCE = 0.4  # seconds before it appears: what is over sooner needs no line
REDRAW = 0.1  # seconds


class Status:
    """Shown while the block runs, unless stderr is no terminal; `say` changes the text, from any thread.

    `clear` takes it away for good: call it before anything else is written to the screen.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._frames = FRAMES if _can_show(FRAMES) else "-\\|/"
        self._over = threading.Event()
        self._drawing = threading.Lock()
        self._thread: threading.Thread | None = None

    def say(self, text: str) -> None:
        self._text = text

    def clear(self) -> None:
        """Harmless when it is gone already."""
        with self._drawing:
            if self._over.is_set():
                return
            self._over.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Status:
        if sys.stderr.isatty():
            with suppress(NotEnoughMemory):  # then there is no line
                self._thread = threads.start(threading.Thread(target=self._draw, name="edgellm-status", daemon=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def _draw(self) -> None:
        if self._over.wait(PATIENCE):
            return
        started, shown = time.monotonic(), False
        while not self._over.is_set():
            frame = self._frames[int((time.monotonic() - started) / REDRAW) % len(self._frames)]
            with self._drawing:
                if not self._over.is_set():
                    # A line that wraps could not be taken away.
                    fitting = self._text[: max(10, shutil.get_terminal_size().columns - 4)]
                    sys.stderr.write(f"\r{frame} {fitting}\x1b[K")
                    sys.stderr.flush()
                    shown = True
            self._over.wait(REDRAW)
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stderr.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
