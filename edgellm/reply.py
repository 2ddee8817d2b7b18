"""Reply: what is said to a model, and its answer on the way into the conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from edgellm import arguments
from edgellm.engine.control import CallOptions
from edgellm.errors import InvalidParameter
from edgellm.events import Chunk, Completion, ToolCallDelta
from edgellm.prompter import Turn
from edgellm.prompts.messages import Message, check_content, copied, plain
from edgellm.prompts.parts import answered, complete

Content = str | Sequence[Mapping[str, Any]]
"""What a message says: a text, or parts of the form {"type": "text", "text": ...}. Or messages with the results of
calls, of the form {"role": "tool", "tool_call_id": ..., "content": ...}."""

Ask = Callable[[list[Message]], list[Message]]
"""From the messages of a conversation to those that are answered next."""


class ChatOptions(CallOptions, total=False):
    """The options of an answer in a conversation, as keywords.

    tools: functions, or JSON objects that describe some. tool_choice: "auto" leaves it to the model whether it calls
    some, with "none" it is told of them and calls none, with "required" it must call one, and with a name that one.
    """

    tools: Sequence[Any] | None
    tool_choice: str | None


class Reply:
    """An answer to `turn`. remember: takes it into the conversation, as its message and its tokens."""

    def __init__(self, turn: Turn, remember: Callable[[Turn, Message, list[int]], None]) -> None:
        self.turn = turn
        self._remember = remember
        self._text, self._reasoning, self._tokens = "", "", list[int]()
        self._calls: list[ToolCallDelta] = []

    def take(self, chunk: Chunk) -> Chunk:
        """A piece of it as it comes."""
        self._text += chunk.text
        self._reasoning += chunk.reasoning
        self._calls += chunk.tool_calls
        self._tokens += chunk.tokens
        return chunk if chunk.completion is None else replace(chunk, completion=self.end(chunk.completion))

    def end(self, done: Completion) -> Completion:
        """All of it. What was stopped before the first token leaves the conversation as it was."""
        self._text, self._reasoning, self._calls = "", "", []
        if done.tokens or done.finish_reason in ("stop", "length"):
            self._remember(self.turn, answered(done.text, done.reasoning, done.tool_calls), done.tokens)
        return replace(done, dropped=deepcopy(self.turn.dropped))

    def cut(self) -> None:
        """No more of it is coming: it is in the conversation as far as it came."""
        calls = complete(self._calls)
        if self._text or self._reasoning or calls:
            self._remember(self.turn, answered(self._text, self._reasoning, calls), self._tokens)


def message(role: str, content: object, name: str) -> Message:
    """A message that shares nothing with what was given. name: of the argument. Raises InvalidParameter."""
    check_content(content, name)
    return {"role": role, "content": plain(content, name)}


def asking(content: Content, at: int | None) -> Ask:
    """`content` is said behind the other messages, or in place of the user's message at an index; results of calls
    behind them. Raises InvalidParameter, there too."""
    if _are_results(content):
        results = copied(content)  # type: ignore[arg-type]  # a list of mappings, as that says
        if at is not None:
            raise InvalidParameter(f"at={arguments.shown(at)}: results of calls stand behind them, in no other place")
        return lambda messages: [*messages, *results]
    said = message("user", content, "content")
    if at is not None and not arguments.is_int(at):
        raise arguments.refuse("at", at, "the position of a message")

    def ask(messages: list[Message]) -> list[Message]:
        if at is not None and (not 0 <= at < len(messages) or messages[at].get("role") != "user"):
            raise InvalidParameter(f"messages[{arguments.shown(at)}] is not a message of the user")
        return [*messages[:at], said]

    return ask


def _are_results(content: object) -> bool:
    if isinstance(content, str) or not isinstance(content, Sequence) or not content:
        return False
    return all(isinstance(each, Mapping) and each.get("role") == "tool" for each in content)


def asked_last(messages: list[Message]) -> list[Message]:
    """A conversation up to the last message of the user. Raises InvalidParameter."""
    asked = next((at for at in reversed(range(len(messages))) if messages[at].get("role") == "user"), None)
    if asked is None:
        raise InvalidParameter("nothing was asked yet, so there is no answer to regenerate")
    return messages[: asked + 1]
