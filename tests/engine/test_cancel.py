"""A CancelToken in signal handlers and finalizers, and with callbacks that fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from edgellm.engine.cancel import CancelToken


def cancelled_at_line(number: int) -> tuple[list[str], int]:
    """What was called when a token is cancelled, as a signal handler would, at a line of a subscription and its end;
    and how many lines there are."""
    token, called, lines = CancelToken(), list[str](), 0

    def trace(frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any]:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                token.cancel()
        return trace

    def program() -> None:
        token.subscribe(lambda: called.append("first"))
        sys.settrace(trace)
        try:
            drop = token.subscribe(lambda: called.append("second"))
            drop()
        finally:
            sys.settrace(None)
        token.cancel()

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), f"line {number} hangs"
    return called, lines


def test_it_may_be_cancelled_in_the_midst_of_anything() -> None:
    _, lines = cancelled_at_line(0)
    assert lines > 5
    for number in range(1, lines + 1):
        called, _ = cancelled_at_line(number)
        assert called in (["first"], ["first", "second"])


def test_all_callbacks_are_called_though_one_fails() -> None:
    token, called = CancelToken(), list[str]()
    token.subscribe(lambda: called.append("first"))
    token.subscribe(lambda: [][0])
    token.subscribe(lambda: called.append("last"))
    with pytest.raises(IndexError):
        token.cancel()
    assert (called, token.cancelled) == (["first", "last"], True)
    token.cancel()
    assert called == ["first", "last"]
