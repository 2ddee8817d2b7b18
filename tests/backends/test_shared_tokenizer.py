"""A tokenizer that is closed while texts are being read: nothing is freed under them, and nobody waits for ages."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from edgellm.backends import shared_tokenizer
from edgellm.backends.base import INSIDE, Tokenizer
from edgellm.backends.shared_tokenizer import SharedTokenizer
from edgellm.errors import Closed, InvalidParameter


class Slow(Tokenizer):
    """Reads a text until it is let go."""

    def __init__(self) -> None:
        self.begin, self.end = (), ()
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        self.begun.release()
        self.go_on.wait(60)
        if text == "bad":
            raise InvalidParameter(text)
        return [len(text), special, bos]

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        return b"%d" % token if special else b""

    def marks(self, template: str) -> set[str]:
        return {template}


class Reader(threading.Thread):
    """A thread in the midst of `use`; `outcome` is what came of it."""

    def __init__(self, slow: Slow, use: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._use = use
        self.outcome: object = None
        self.start()
        assert slow.begun.acquire(timeout=60)

    def run(self) -> None:
        try:
            self.outcome = self._use()
        except Exception as error:
            self.outcome = error


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go_on.set()


def test_closing_waits_for_texts_that_are_being_read(slow: Slow) -> None:
    tokenizer, freed = SharedTokenizer(slow), threading.Event()
    readers = [Reader(slow, lambda: tokenizer.encode("abc", special=True)) for _ in range(2)]
    closing = threading.Thread(target=tokenizer.close, args=(freed.set,))
    closing.start()
    while tokenizer._open:
        pass
    with pytest.raises(Closed):
        tokenizer.encode("late")
    assert not freed.is_set()
    slow.go_on.set()
    closing.join(60)
    assert freed.is_set()
    for reader in readers:
        reader.join(60)
        assert reader.outcome == [3, True, False]


def test_a_long_text_does_not_hold_closing_up(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tokenizer, "PATIENCE", 0.01)
    tokenizer, freed = SharedTokenizer(slow), threading.Event()
    readers = [Reader(slow, lambda text=text: tokenizer.encode(text)) for text in ("abc", "bad")]  # type: ignore[misc]
    tokenizer.close(freed.set)
    tokenizer.close(lambda: pytest.fail("closed twice"))
    assert not freed.is_set()
    slow.go_on.set()
    for reader in readers:
        reader.join(60)
    assert freed.wait(60)  # by the last of them, also where it fails
    assert readers[0].outcome == [3, False, False]
    assert isinstance(readers[1].outcome, InvalidParameter)


def test_pieces_go_with_the_rest(slow: Slow) -> None:
    tokenizer, freed = SharedTokenizer(slow), threading.Event()
    assert (tokenizer.piece(7, special=True), tokenizer.piece(7), tokenizer.marks("a")) == (b"7", b"", {"a"})
    tokenizer.close(freed.set)
    assert freed.is_set()
    with pytest.raises(Closed):
        tokenizer.piece(7, special=True)
    with pytest.raises(Closed):
        tokenizer.marks("a")


def closed_at_line(number: int) -> int:
    """Close one elsewhere and wait for that, as a signal handler may, at a line of a call. How many lines there are."""
    slow, freed, lines = Slow(), threading.Event(), 0
    slow.go_on.set()
    tokenizer = SharedTokenizer(slow)

    def trace(frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:
        nonlocal lines
        if not frame.f_code.co_filename.endswith("shared_tokenizer.py"):
            return None
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                closing = threading.Thread(target=tokenizer.close, args=(freed.set,), daemon=True)
                closing.start()
                closing.join(20)
                assert not closing.is_alive()
        return trace

    sys.settrace(trace)
    try:
        tokenizer.encode("abc")
    except Closed:
        pass
    finally:
        sys.settrace(None)
    assert freed.is_set() or not number
    return lines


def test_a_signal_may_close_it_in_the_midst_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tokenizer, "PATIENCE", 0.01)
    lines = closed_at_line(0)
    assert lines > 8
    for number in range(1, lines + 1):
        closed_at_line(number)
