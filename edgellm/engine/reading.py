"""Reading: how an answer is told into text, reasoning and calls while it comes; Hearing does so for one answer.

What the marks of a model are is not known here: `edgellm/reading.py` is what a prompt made of messages brings along.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgellm.events import Heard, ToolCall


class Reader(Protocol):
    """Reads one answer."""

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning."""

    @property
    def calls(self) -> Sequence[ToolCall]:
        """The complete ones so far."""

    def feed(self, text: str) -> Heard:
        """What is known with the next piece of text."""

    def finish(self) -> Heard:
        """The rest."""


class Reading(Protocol):
    """How the answer to a prompt is read, and what form it must have."""

    @property
    def controls(self) -> Mapping[int, bytes]:
        """Control tokens whose texts the reader must see."""

    @property
    def closing(self) -> Sequence[int]:
        """Tokens that end reasoning."""

    @property
    def never(self) -> Sequence[int]:
        """Tokens that the answer must not have."""

    def reader(self) -> Reader: ...

    def grammar(self, form: bool) -> str:
        """The grammar of the answer, in llguidance's form of Lark, or "" where it is free. form: what the options of
        the answer ask for is the rule `@form` of it, or all of it where this is ""."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a prompt is made of. title: what people are shown of it; "" is how it begins."""

    title: str = ""
    reading: Reading | None = None


UNKNOWN = Source()


class Hearing:
    """What one answer has brought so far. reading: None where all of it is text.

    budget: tokens of reasoning; where it is used up, `due` has the tokens that come next, whatever the model would say.
    reasoning_tokens: those that came while reasoning was open, so those that closed it are among them.
    """

    def __init__(self, reading: Reading | None, budget: int | None) -> None:
        self.controls: Mapping[int, bytes] = {} if reading is None else reading.controls
        self.never: Sequence[int] = () if reading is None else reading.never
        self.due: deque[int] = deque()
        self.reasoning_tokens = 0
        self._reader = None if reading is None else reading.reader()
        self._closing = () if reading is None else tuple(reading.closing)
        self._left = budget
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._close()

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def calls(self) -> list[ToolCall]:
        return [] if self._reader is None else list(self._reader.calls)

    def hear(self, text: str, *, inside: bool = False) -> Heard:
        """The text that a token brings. inside: it ends within a character, where nothing can be closed."""
        thinking = self._reader is not None and self._reader.thinking
        heard = Heard(text) if self._reader is None else self._reader.feed(text)
        self.reasoning_tokens += thinking
        if self._left is not None and thinking:
            self._left -= 1
            if not inside:
                self._close()
        return self._kept(heard)

    def finish(self, text: str) -> Heard:
        """The last text, which no token brings."""
        if self._reader is None:
            return self._kept(Heard(text))
        first, rest = self._reader.feed(text), self._reader.finish()
        calls = first.tool_calls + rest.tool_calls
        return self._kept(Heard(first.text + rest.text, first.reasoning + rest.reasoning, calls))

    def _kept(self, heard: Heard) -> Heard:
        self._text.append(heard.text)
        self._reasoning.append(heard.reasoning)
        return heard

    def _close(self) -> None:
        if self._left is not None and self._left <= 0 and self._reader is not None and self._reader.thinking:
            self.due.extend(self._closing)
            self._left = None
