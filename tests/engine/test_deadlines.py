"""One thread calls what is due, in order, and nothing that was dropped."""

from __future__ import annotations

import threading
import weakref

from edgellm.engine.deadlines import Deadlines


def test_functions_are_called_in_the_order_of_their_times() -> None:
    deadlines = Deadlines()
    called: list[str] = []
    done = threading.Event()
    with deadlines._changed:  # its thread waits until all are there
        deadlines.add(0.5, done.set)
        deadlines.add(0.02, lambda: called.append("late"))
        dropped = deadlines.add(0.01, lambda: called.append("never"))
        deadlines.add(0.0, lambda: called.append("early"))
        dropped()
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
    assert len(deadlines._heap) == 0


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
