"""checked: a grammar in Lark's form, where llguidance can be given it.

It has forms of its own whose meaning is not this package's, or which would let an answer end before its form does.
"""

from __future__ import annotations

import re

from edgellm.constrain.nesting import DEEPEST, depth
from edgellm.errors import Unsupported

MOST_OPTIONAL = 4_000  # things that may be absent or come again: a mask looks at all that stand behind one another

_REFUSED = {
    "%json": "its keywords would not be checked; use schema= for an answer in JSON",
    "%lark": "a grammar in a grammar; write its rules beside the others",
    "%llguidance": "options of a library, which are not this package's to keep; remove it",
    "<[": "a token by its number is no text; write the text",
}
_PART = re.compile(
    r'"(?:\\.|[^"\\\n])*"|/(?!/)(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*|<\[|%\w+|[_?!]*[A-Za-z][\w-]*|[][():\n?*~]', re.ASCII
)


def checked(text: str) -> str:
    """The text. Raises Unsupported for rules too deep in one another, and for what is no grammar's business."""
    if sum(match[0] in ("?", "*", "~") for match in _PART.finditer(text)) > MOST_OPTIONAL:
        raise Unsupported(f"grammar: more than {MOST_OPTIONAL:,} of ?, * and ~; make it smaller")
    rules, brackets = _rules(text)
    deep = max(depth(rules, "start"), brackets)
    if deep > DEEPEST:
        raise Unsupported(f"grammar: {deep} rules and brackets in one another; at most {DEEPEST}: make it flatter")
    return text


def _rules(text: str) -> tuple[dict[str, list[tuple[str, int]]], int]:
    """What the rules refer to, by their names, and the most brackets in brackets."""
    rules: dict[str, list[tuple[str, int]]] = {"": []}
    rule, open_, most = rules[""], 0, 0
    line: list[tuple[str, int]] = []
    for match in _PART.finditer(text):
        part = match[0]
        if part in _REFUSED:
            raise Unsupported(f"grammar: {part}: {_REFUSED[part]}")
        if part == "\n":
            rule += line
            line = []
        elif part == ":" and line:  # what stands before it on the line is the head of a rule
            rule, line, open_ = rules.setdefault(line[0][0].lstrip("?!"), []), [], 0
        elif part in ("(", "["):
            open_ += 1
            most = max(most, open_)
        elif part in (")", "]"):
            open_ -= 1
        elif part[0] not in '"/#%:*~' and part != "?":
            line.append((part, open_))
    rule += line
    return rules, most
