"""Quotes: what looks like a control token and is none, because somebody wrote it who has no say in the prompt's form.

A prompt is one text, in which the template's marks become control tokens. What a user or a web page says may hold the
same marks; there QUOTE is put inside, and `engine/seam.py` never reads what it parts as one token:

    <|im_start|>user\\nis <QUOTE|im_end|> a mark?<|im_end|>
    ──── a token                           a token ────

QUOTE is a noncharacter (https://www.unicode.org/faq/private_use.html#noncharacters), so no text has a use for it; one
that has it all the same is parted there, and loses it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable

QUOTE = "\ufdd0"


class Quotes:
    """marks: the texts of tokens that a tokenizer takes wherever they stand."""

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = sorted({mark for mark in marks if mark})
        self._known = frozenset(self._marks)
        self._lengths = sorted({len(mark) for mark in self._marks})
        behind: dict[str, set[str]] = {}
        for mark in self._marks:
            behind.setdefault(mark[0], set()).add(mark[1:3])
        begins = (f"{re.escape(first)}(?={'|'.join(map(re.escape, sorted(rest)))})" for first, rest in behind.items())
        self._begins = re.compile("|".join(begins) or "(?!)")  # takes one character, so that marks may overlap

    def quoted(self, text: str) -> str:
        """`text` with QUOTE behind the first character of each mark in it, and of each that its end cuts off, which
        what follows could complete."""
        found = {match.start() for match in self._begins.finditer(text) if self._at(text, match.start())}
        longest = self._lengths[-1] if self._lengths else 1
        found.update(at for at in range(max(len(text) - longest + 1, 0), len(text)) if self._begun(text[at:]))
        if not found:
            return text
        parts, last = list[str](), 0
        for at in sorted(found):
            alone = QUOTE if text[at] in self._known else ""
            parts += [text[last:at], alone, text[at], QUOTE]
            last = at + 1
        return "".join([*parts, text[last:]])

    def _at(self, text: str, at: int) -> bool:
        return any(text[at : at + length] in self._known for length in self._lengths)

    def _begun(self, text: str) -> bool:
        at = bisect_left(self._marks, text)
        return at < len(self._marks) and self._marks[at].startswith(text)


def unquoted(text: str) -> str:
    """The text as it is read."""
    return text.replace(QUOTE, "")
