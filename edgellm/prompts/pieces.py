"""What an answer consists of, piece by piece: text, reasoning and calls of tools."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgellm.prompts.cursor import Malformed

BLANKS = 256  # characters of white space that may turn out to stand in front of a call
ID = 9  # letters and digits of a call's id: what the strictest templates take


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what is said to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model says to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of the tool `name`, the index-th of the answer from 0 on."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments: JSON, an object when all pieces are joined."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is complete, and its arguments are a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The call that had begun was none: it is cut, or no JSON. text: it, as the model wrote it."""

    index: int
    text: str


Piece = Text | Reasoning | CallBegun | CallArguments | CallEnded | CallBroken


def new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def read_json(text: str) -> Any:
    """A value of JSON as the specification has it, that can be written again. Raises Malformed."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
        if "\\u" in text:  # maybe half of a pair of surrogates
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from None
    return value


class Pieces:
    """Takes what a reader finds, and makes pieces of it, for `taken`.

    White space in front of a call is part of how it is written, not of the text. make_id: of a call without one.
    """

    def __init__(self, make_id: Callable[[], str] = new_id) -> None:
        self._make_id = make_id
        self._found: list[Piece] = []
        self._blank = ""  # at the end of the text so far
        self._arguments: list[str] | None = None  # of the call that is open
        self._sent = False
        self.calls = 0  # that have begun
        self.complete = 0  # of those
        self.silent = True  # no text was there yet, but white space
        self.thinking = False  # reasoning is open

    def taken(self) -> list[Piece]:
        """The pieces since the last time."""
        found, self._found = self._found, []
        return found

    def text(self, text: str) -> None:
        text = self._blank + text
        said = len(text.rstrip())
        stop = max(said, len(text) - BLANKS)
        self._blank = text[stop:]
        if stop:
            self._found.append(Text(text[:stop]))
        self.silent = self.silent and not said

    def drop_blanks(self) -> None:
        """What follows begins without the white space that was there so far."""
        self._blank = ""

    def end_text(self) -> None:
        if self._blank:
            self._found.append(Text(self._blank))
            self._blank = ""

    def reasoning(self, text: str) -> None:
        if text:
            self._found.append(Reasoning(text))

    def begin(self, name: str, id: str = "") -> None:
        if self._arguments is not None:
            raise Malformed("a call in a call")
        self._arguments, self._sent = [], False
        self.drop_blanks()
        self._found.append(CallBegun(self.calls, id or self._make_id(), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """A piece of the arguments: of an object, or of a text that is the JSON of one."""
        if self._arguments is None:
            raise Malformed("arguments of nothing")
        self._arguments.append(text)
        if self._arguments[0][:1] == "{" and text:
            self._sent = True
            self._found.append(CallArguments(self.calls - 1, text))

    def end(self) -> None:
        """The call is complete. Raises Malformed where its arguments are no object."""
        text = "".join(self._arguments or ())
        value = read_json(text) if text else None
        if isinstance(value, str):  # an object, written into a text
            text, value = value, read_json(value)
        if value is None:
            text, value = "{}", {}
        if not isinstance(value, dict):
            raise Malformed("the arguments are no object")
        if not self._sent:
            self._found.append(CallArguments(self.calls - 1, text))
        self._arguments = None
        self.complete += 1
        self._found.append(CallEnded(self.calls - 1))

    def give_back(self, raw: str) -> None:
        """What was read for a call is none, from its beginning or from the end of the call before it on."""
        if self._arguments is not None:
            self._arguments = None
            self.silent = False
            self._found.append(CallBroken(self.calls - 1, raw))
        else:
            self.text(raw)
