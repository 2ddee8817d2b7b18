"""all_but: every string except for a few, as a pattern in the common form of regex.py."""

from __future__ import annotations

from collections.abc import Iterable

from edgellm.constrain.regex import ANYTHING, Chars, joined, letter, others, written


def all_but(words: Iterable[str]) -> str:
    """A pattern for the strings that are none of these: a tree of their beginnings, left at each letter."""
    return _but(sorted(set(words)))


def _but(words: list[str]) -> str:
    anything = written(ANYTHING) + "*"
    ends = "" in words
    heads = sorted({word[0] for word in words if word})
    ways = [] if ends else [""]
    other = others(joined(tuple((ord(head), ord(head)) for head in heads)))
    ways.append(written(Chars(other)) + anything)
    for head in heads:
        rest = _but([word[1:] for word in words if word[:1] == head])
        ways.append(letter(ord(head)) + rest)
    return f"(?:{'|'.join(ways)})"
