"""SharedTokenizer: the tokenizer of an opened model, which ends with its backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgellm.backends.base import INSIDE, Tokenizer
from edgellm.errors import Closed

PATIENCE = 2.0  # seconds for which closing it waits for the texts that are being read


class SharedTokenizer(Tokenizer):
    """The tokenizer of an opened model, which all threads use until its backend closes it.

    Then every call raises Closed, from whichever thread; those in flight end as they would have. So does every call in
    a forked child, where a lock may be held for ever by a thread that is not there.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.begin, self.end = tokenizer.begin, tokenizer.end
        self._tokenizer = tokenizer
        self._pid = os.getpid()
        self._left = threading.Condition()  # a call has ended; guards the three below
        self._open = True
        self._calls = 0
        self._free: Callable[[], None] | None = None  # what the last call in flight has to do

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        with self._call():
            return self._tokenizer.encode(text, special=special, bos=bos)

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        with self._call():
            return self._tokenizer.piece(token, special=special, before=before)

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """End it, and call `free` once nothing uses it any more: now, or, behind a text that takes longer than a few
        seconds, from the thread that reads it. Closing twice is harmless."""
        with self._left:
            if not self._open:
                return
            self._open = False
            if not self._left.wait_for(lambda: not self._calls, PATIENCE):
                self._free = free
                return
        free()

    @contextmanager
    def _call(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise Closed("a model does not survive os.fork(); load it in the child, or start children with 'spawn'")
        with self._left:
            if not self._open:
                raise Closed("this model was closed")
            self._calls += 1
        try:
            yield
        finally:
            with self._left:
                self._calls -= 1
                free, self._free = (None, self._free) if self._calls else (self._free, None)
                self._left.notify_all()
            if free is not None:
                free()
