"""Reply: what is said to a model, and its answer on the way into the conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from edgellm import arguments
from edgellm.errors import InvalidParameter
from edgellm.events import Chunk, Completion
from edgellm.prompter import Turn
from edgellm.prompts.messages import Message, check_content, plain

Content = str | Sequence[Mapping[str, Any]]
"""What a message says: a text, or parts of the form {"type": "text", "text": ...}."""

Ask = Callable[[list[Message]], list[Message]]
"""From the messages of a conversation to those that are answered next."""


class Reply:
    """An answer to `turn`. remember: takes it into the conversation, as its text and its tokens."""

    def __init__(self, turn: Turn, remember: Callable[[Turn, str, list[int]], None]) -> None:
        self.turn = turn
        self._remember = remember
        self._text, self._tokens = "", list[int]()

    def take(self, chunk: Chunk) -> Chunk:
        """A piece of it as it comes."""
        self._text += chunk.text
        self._tokens += chunk.tokens
        return chunk if chunk.completion is None else replace(chunk, completion=self.end(chunk.completion))

    def end(self, done: Completion) -> Completion:
        """All of it. What was stopped before the first token leaves the conversation as it was."""
        self._text = ""
        if done.tokens or done.finish_reason in ("stop", "length"):
            self._remember(self.turn, done.text, done.tokens)
        return replace(done, dropped=deepcopy(self.turn.dropped))

    def cut(self) -> None:
        """No more of it is coming: it is in the conversation as far as it came."""
        if self._text:
            self._remember(self.turn, self._text, self._tokens)


def message(role: str, content: object, name: str) -> Message:
    """A message that shares nothing with what was given. name: of the argument. Raises InvalidParameter."""
    check_content(content, name)
    return {"role": role, "content": plain(content, name)}


def asking(content: Content, at: int | None) -> Ask:
    """`content` is said behind the other messages, or in place of the user's message at an index. Raises
    InvalidParameter, there too."""
    said = message("user", content, "content")
    if at is not None and not arguments.is_int(at):
        raise arguments.refuse("at", at, "the position of a message")

    def ask(messages: list[Message]) -> list[Message]:
        if at is not None and (not 0 <= at < len(messages) or messages[at].get("role") != "user"):
            raise InvalidParameter(f"messages[{arguments.shown(at)}] is not a message of the user")
        return [*messages[:at], said]

    return ask


def asked_last(messages: list[Message]) -> list[Message]:
    """A conversation up to the last message of the user. Raises InvalidParameter."""
    asked = next((at for at in reversed(range(len(messages))) if messages[at].get("role") == "user"), None)
    if asked is None:
        raise InvalidParameter("nothing was asked yet, so there is no answer to regenerate")
    return messages[: asked + 1]
