"""The three standard streams, so that no command fails where they are narrow, closed or full.

stdout carries the answer: what its encoding cannot show is replaced, and a failure to write ends the command with one
line. stderr carries what may be missed: a failure to write there is ignored. A stream that was closed before the start
keeps its number, so that no file which is opened later gets it, to be overwritten by somebody's message.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from edgellm.errors import InvalidParameter


class OutputLost(Exception):
    """stdout could not be written; the message says why."""


class _Stream:
    """A text stream whose failures to write go through `guard`; everything else is the stream's own."""

    def __init__(self, stream: TextIO, guard: Callable[[], Any]) -> None:
        self._stream = stream
        self._guard = guard

    def write(self, text: str) -> int:
        with self._guard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guard():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _answer() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has what it wanted
    except OSError as error:
        raise OutputLost(error.strerror or str(error)) from error


@contextmanager
def safe() -> Iterator[None]:
    """Streams that are safe to write to, for the length of the block."""
    _reopen()
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Stream(_open(sys.stdout, 1), _answer))
    sys.stderr = cast(TextIO, _Stream(_open(sys.stderr, 2), lambda: suppress(OSError, ValueError)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def read_text() -> str:
    """All of standard input, which must be UTF-8; "" where it is closed. Raises InvalidParameter."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"standard input: not UTF-8: {error}") from None
    except OSError as error:
        raise InvalidParameter(f"standard input: cannot be read: {error.strerror or error}") from None


def shows_everything() -> bool:
    """Whether stdout can show every character."""
    return codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")


def drop() -> None:
    """Forget what stdout has not written yet, so that the interpreter does not try again when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _reopen() -> None:
    """Open what was closed, for reading only: writing to it still fails."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def _open(stream: TextIO | None, number: int) -> TextIO:
    """The stream, which replaces what it cannot show; one on a file of that number where it was closed."""
    if stream is None:
        return open(number, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream
