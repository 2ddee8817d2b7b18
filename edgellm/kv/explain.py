"""Why a known prefix ended where it did, in words."""

from __future__ import annotations

import re
from collections.abc import Callable

from edgellm.events import CacheReport

SHOWN = 16  # tokens of text on each side of the break
CONTEXT = 64  # tokens before the break that are looked at for what surrounds it

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    rf"\d{{4}}-\d\d-\d\d|\d{{1,2}}[:.]\d\d|(?:\d{{1,2}}\.? )?\b{_MONTH}\b(?: \d{{1,2}})?|\b20\d\d\b", re.I
)
_ROLE = re.compile(
    r"(?:^|[<>\[\]|}\n])\s*(system|user|assistant|model|tool)\b"
)  # as templates write it, behind a marker
_NAMES = {
    "system": "the system prompt",
    "user": "the user's message",
    "assistant": "the assistant's answer",
    "model": "the assistant's answer",
    "tool": "the tool's result",
}


def explain(prompt: list[int], matched: int, next_known: list[int], decode: Callable[[list[int]], str]) -> CacheReport:
    """Where and why a prompt left the nearest known text: what was known after `matched` tokens, and what it has there.

    decode: token ids to text, control tokens included.
    """
    if not matched and not next_known:
        return CacheReport(reason="nothing that begins like this prompt is known")
    if matched >= len(prompt):
        return CacheReport(reason="the whole prompt is known")
    if not next_known:
        return CacheReport(reason="the prompt goes on where the known text ends")
    before = decode(prompt[max(0, matched - CONTEXT) : matched])
    expected, found = decode(next_known[:SHOWN]), decode(prompt[matched : matched + SHOWN])
    reason = f"{_cause(before, expected, found)} at token {matched}"
    return CacheReport(broke_at=matched, expected=expected, found=found, reason=reason)


def _cause(before: str, expected: str, found: str) -> str:
    if _date_across(before, expected) and _date_across(before, found):
        return "the template or the prompt put another date or time"
    roles = _ROLE.findall(before)
    return f"{_NAMES[roles[-1]] if roles else 'the text'} differs"


def _date_across(before: str, after: str) -> bool:
    """Whether a date or a time begins at the end of `before` or at once in `after`, and goes on into `after`."""
    tail = before[-12:]
    return any(m.end() > len(tail) and m.start() <= len(tail) + 1 for m in _DATE.finditer(tail + after))
