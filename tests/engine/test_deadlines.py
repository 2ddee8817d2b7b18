"""One thread calls what is due, in order, and nothing that was dropped."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from edgellm.engine.deadlines import Deadlines
from edgellm.errors import NotEnoughMemory

Trace = Callable[[FrameType, str, Any], Any]


def test_functions_are_called_in_the_order_of_their_times() -> None:
    deadlines = Deadlines()
    called: list[str] = []
    done = threading.Event()
    deadlines._thread = threading.current_thread()  # its own starts when all are there
    deadlines.add(0.02, lambda: called.append("late"))
    dropped = deadlines.add(0.01, lambda: called.append("never"))
    deadlines.add(0.0, lambda: called.append("early"))
    dropped()
    deadlines._thread = None
    deadlines.add(0.5, done.set)
    assert done.wait(10)
    assert called == ["early", "late"]


def test_one_thread_for_all_keeps_nothing_that_was_dropped() -> None:
    deadlines = Deadlines()
    before = threading.active_count()
    drops = [deadlines.add(1e9 + i, lambda: None) for i in range(1000)]
    assert threading.active_count() == before + 1
    for drop in drops:
        drop()
        drop()
    assert len(deadlines._functions) == 0


def test_what_was_dropped_is_forgotten_at_once() -> None:
    class Held:
        def end(self) -> None: ...

    deadlines, held = Deadlines(), Held()
    drop, known = deadlines.add(1e9, held.end), weakref.ref(held)
    for _ in range(5):
        deadlines.add(1e9, lambda: None)
    del held
    drop()
    assert known() is None


def test_a_function_that_fails_stops_no_other() -> None:
    deadlines, done = Deadlines(), threading.Event()
    deadlines.add(0.0, lambda: [][0])
    deadlines.add(0.01, done.set)
    assert done.wait(10)


def test_a_thread_that_cannot_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    deadlines, done = Deadlines(), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NotEnoughMemory, match="edgellm-deadlines cannot be started"):
            deadlines.add(0.0, done.set)
        assert not deadlines._functions
    deadlines.add(0.0, done.set)
    assert done.wait(10)


def test_what_a_signal_begins_in_the_midst_of_adding() -> None:
    deadlines, done = Deadlines(), threading.Event()

    def everywhere(frame: FrameType, event: str, _: object) -> Trace:
        if event == "line":
            sys.settrace(None)
            deadlines.add(1e9, lambda: None)()
            sys.settrace(everywhere)
        return everywhere

    sys.settrace(everywhere)
    try:
        deadlines.add(0.0, done.set)
    finally:
        sys.settrace(None)
    assert done.wait(10)
    assert not deadlines._functions
