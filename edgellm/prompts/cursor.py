"""Cursor: text that arrives in pieces, read by code that is written as if all of it were there.

A reader is a generator: it yields where it needs more text and goes on when there is some. So what it finds does not
depend on where the pieces were cut. Nothing is read twice, and what is held back is never longer than a mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A reader that ends with a T."""
Out = Callable[[str], None]

MOST = 1 << 20  # characters of one call
DEEPEST = 64  # brackets inside one another, in what a model writes as a value
_PLAIN = re.compile(r"[\s0-9A-Za-z+\-.,:]*")  # of JSON, outside of texts and brackets
_QUOTED = re.compile(r'[^"\\]*')
_BLANKS = re.compile(r"\s*")
_OPENED = {"]": "[", "}": "{"}


class Malformed(Exception):
    """The text is not what was to be read."""


class Cursor:
    """`feed` gives it text, readers take it. `ended`: there will be no more."""

    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._at = 0
        self._taken: list[str] | None = None  # what was read since `record`
        self._size = 0  # of that

    def feed(self, text: str) -> None:
        self._text = self._text[self._at :] + text if self._at < len(self._text) else text
        self._at = 0

    def left(self) -> str:
        """What no reader has taken."""
        return self._text[self._at :]

    # What was read may have to be given back as text

    def record(self, so_far: str = "") -> None:
        """Keep what is read from here on, behind `so_far`."""
        self._taken, self._size = [so_far], len(so_far)

    def recorded(self) -> str:
        """What was read since `record`, which ends here."""
        taken, self._taken = self._taken or [], None
        return "".join(taken)

    def _take(self, stop: int) -> str:
        if self._taken is not None:
            stop = min(stop, self._at + MOST - self._size)
        text = self._text[self._at : stop]
        self._at = stop
        if self._taken is not None:
            self._taken.append(text)
            self._size += len(text)
            if self._size == MOST:
                raise Malformed("too long")
        return text

    # Readers

    def some(self) -> Steps[bool]:
        """Wait until there is text; False where none comes any more."""
        while self._at == len(self._text):
            if self.ended:
                return False
            yield
        return True

    def rest(self, out: Out) -> Steps[None]:
        """Pass on what is there."""
        if (yield from self.some()):
            out(self._take(len(self._text)))

    def peek(self) -> Steps[str]:
        """The next character, which stays; "" at the end."""
        return self._text[self._at] if (yield from self.some()) else ""

    def blanks(self) -> Steps[str]:
        """White space, as far as it goes."""
        found = ""
        while (yield from self.some()):
            match = _BLANKS.match(self._text, self._at)
            found += self._take(match.end() if match else self._at)
            if self._at < len(self._text):
                break
        return found

    def starts(self, mark: str) -> Steps[bool]:
        """Whether `mark` comes next; then it is read. Else nothing is."""
        while not self._text.startswith(mark, self._at):
            left = len(self._text) - self._at
            if self.ended or left >= len(mark) or not mark.startswith(self._text[self._at :]):
                return False
            yield
        self._take(self._at + len(mark))
        return True

    def expect(self, mark: str) -> Steps[None]:
        if not (yield from self.starts(mark)):
            raise Malformed(f"no {mark!r}")

    def upto(self, marks: Sequence[str], out: Out, most: int | None = None) -> Steps[str]:
        """Pass on the text before the first of `marks`, and read that; "" where the text ends before one comes.

        The marks must not begin with each other. Raises Malformed where none comes within `most` characters.
        """
        pattern, parts = _search(tuple(marks))
        while True:
            end = (
                len(self._text) if most is None else self._at + most + parts[1]
            )  # no further: marks may be tried often
            match = pattern.search(self._text, self._at, end)
            held = 0 if self.ended else _begun(self._text, self._at, parts)
            stop = match.start() if match else len(self._text) - held
            if most is not None:
                stop = min(stop, self._at + most)
                most -= stop - self._at
            if stop > self._at:
                out(self._take(stop))
            if most == 0:
                raise Malformed("too long")
            if match:
                return self._take(match.end())
            if self.ended:
                return ""
            yield

    def until(self, *marks: str, most: int = MOST) -> Steps[tuple[str, str]]:
        """The text before the first of `marks`, and which it is. Raises Malformed where none comes within `most`."""
        found: list[str] = []
        mark = yield from self.upto(marks, found.append, most)
        if not mark:
            raise Malformed(f"no {marks[0]!r}")
        return "".join(found), mark

    def word(self, pattern: re.Pattern[str], most: int = 256) -> Steps[str]:
        """Characters as far as each of them matches; most of them at most."""
        found = ""
        while len(found) < most and (yield from self.some()):
            if not pattern.match(self._text[self._at]):
                break
            found += self._take(self._at + 1)
        return found

    def value(self, out: Out) -> Steps[None]:
        """Pass on a value of JSON that has brackets or quotation marks around it; what is inside is not checked beyond
        that they match."""
        opened: list[str] = []
        quoted = False
        while True:
            if not (yield from self.some()):
                raise Malformed("unfinished")
            text, at = self._text, self._at
            done, wrong = False, ""
            while at < len(text) and not done and not wrong:
                at = _run(_QUOTED if quoted else _PLAIN, text, at)
                if at == len(text):
                    break
                char = text[at]
                if quoted and char == "\\":
                    if at + 1 == len(text):
                        break
                    at += 2
                    continue
                at += 1
                if char == '"':
                    quoted = not quoted
                elif char in "[{":
                    opened.append(char)
                    wrong = "too deep" if len(opened) > DEEPEST else ""
                elif not opened or opened.pop() != _OPENED.get(char):
                    wrong = "not JSON"
                done = not quoted and not opened
            if at > self._at:
                out(self._take(at))
            if wrong:
                raise Malformed(wrong)
            if done:
                return
            if self.ended:
                raise Malformed("unfinished")
            if self._at < len(self._text):  # half of an escape
                yield


def _run(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


@lru_cache(maxsize=64)
def _search(marks: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[frozenset[str], int]]:
    """What finds the first of several marks, and what they may begin with, for `_begun`."""
    pattern = re.compile("|".join(map(re.escape, marks)))
    return pattern, (frozenset(mark[:size] for mark in marks for size in range(1, len(mark))), max(map(len, marks)))


def _begun(text: str, at: int, parts: tuple[frozenset[str], int]) -> int:
    """How many characters at the end of the text may be the beginning of a mark."""
    begins, longest = parts
    sizes = range(min(longest - 1, len(text) - at), 0, -1)
    return next((size for size in sizes if text[len(text) - size :] in begins), 0)
