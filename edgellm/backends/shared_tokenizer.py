"""SharedTokenizer: the tokenizer of an opened model, which ends with its backend."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

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
        # No lock, which closing would wait for where a signal handler does that in the midst of a call.
        self._open = True
        self._calls: set[object] = set()
        self._left: SimpleQueue[None] = SimpleQueue()  # a call has ended while it was closed
        self._free: list[Callable[[], None]] = []  # what whoever takes it out has to do

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        call = object()
        try:
            self._begin(call)
            return self._tokenizer.encode(text, special=special, bos=bos)
        finally:
            self._done(call)

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        call = object()
        try:
            self._begin(call)
            return self._tokenizer.piece(token, special=special, before=before)
        finally:
            self._done(call)

    def joined(self, first: list[int], second: list[int]) -> tuple[list[int], int]:
        call = object()
        try:
            self._begin(call)
            return self._tokenizer.joined(first, second)
        finally:
            self._done(call)

    def marks(self, template: str) -> set[str]:
        call = object()
        try:
            self._begin(call)
            return self._tokenizer.marks(template)
        finally:
            self._done(call)

    def close(self, free: Callable[[], None] = lambda: None) -> None:
        """End it, and call `free` once nothing uses it any more: now, or, behind a text that takes longer than a few
        seconds, from the thread that reads it. Closing twice is harmless."""
        if not self._open:
            return
        self._open = False
        until = time.monotonic() + PATIENCE
        while self._calls and (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                self._left.get(timeout=left)
        self._free.append(free)
        self._end()

    def _end(self) -> None:
        if self._calls:
            return
        try:
            free = self._free.pop()
        except IndexError:  # nothing yet, or another thread was faster
            return
        free()

    def _begin(self, call: object) -> None:
        """A call begins; `_done` follows in any case."""
        if os.getpid() != self._pid:
            raise Closed("a model does not survive os.fork(); load it in the child, or start children with 'spawn'")
        self._calls.add(call)
        if not self._open:  # behind it: whoever closes it says so before looking for calls
            raise Closed("this model was closed")

    def _done(self, call: object) -> None:
        self._calls.discard(call)
        if not self._open:
            self._left.put(None)
            self._end()
