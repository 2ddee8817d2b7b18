"""What is typed while nobody asks for it, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm import CancelToken


@contextmanager
def stopping() -> Iterator[CancelToken]:
    """A token that Ctrl-C cancels, so that what came of an answer is told; a second Ctrl-C is raised at once. Where the
    signal is ignored, as a shell's script has it for its jobs in the background, it stays so."""
    from edgellm import CancelToken

    token = CancelToken()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if token.cancelled:
            raise KeyboardInterrupt
        token.cancel()

    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield token
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield token
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def unseen() -> Iterator[None]:
    """Keys that are pressed in the block do not show up in the middle of an answer; they wait for the next prompt.

    Ctrl-C works as ever. Does nothing where standard input is no POSIX terminal (Windows echoes only what is read).
    """
    try:
        import termios
    except ImportError:
        yield
        return
    try:
        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (AttributeError, OSError, ValueError, termios.error):
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(number, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
