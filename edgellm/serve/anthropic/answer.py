"""The Message that answers, whole or as it begins."""

from __future__ import annotations

import secrets
from typing import Any

from edgellm import Completion
from edgellm.serve.anthropic.diagnosis import diagnosis, parts_of
from edgellm.serve.anthropic.history import CALL, signature_of
from edgellm.serve.anthropic.request import MessagesRequest
from edgellm.serve.ask import Answering
from edgellm.serve.endpoint import Call
from edgellm.serve.ledger import Entry

REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "cancelled": "end_turn", "timeout": "max_tokens"}


class Answer:
    """What is told of an answer. Its report can be asked for by its id, and later requests can be compared with it."""

    def __init__(self, call: Call[MessagesRequest], answering: Answering) -> None:
        self.id = f"msg_{secrets.token_hex(12)}"
        self.omits = call.body.omits
        self._body = call.body
        self._ledger = call.state.ledger
        self._answering = answering
        answering.followers.append(self._keep)

    def _keep(self, answering: Answering, done: Completion) -> None:
        self._ledger.add(Entry.of(self.id, answering, done, parts=parts_of(answering.ask)))

    def begun(self) -> dict[str, Any]:
        """Before anything is said, once the prompt is made."""
        tokens, known = len(self._answering.tokens), self._answering.news.latest.known
        return self._message([], None, None, _usage(tokens, known, 0, 0))

    def whole(self, done: Completion) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if done.reasoning:
            content.append(thinking(done.reasoning, self.omits))
        if done.text:
            content.append({"type": "text", "text": done.text})
        for each in done.tool_calls:
            content.append({"type": "tool_use", "id": CALL + each.id, "name": each.name, "input": each.arguments})
        return self._message(content, *self.reason(done), usage(done))

    def reason(self, done: Completion) -> tuple[str, str | None]:
        """Why it ended, and at which of the texts to stop at."""
        if done.finish_reason == "stop" and done.stop_string is not None:
            return "stop_sequence", done.stop_string
        if done.finish_reason == "length":
            cut = done.usage.completion_tokens >= self._body.max_tokens
            return "max_tokens" if cut else "model_context_window_exceeded", None
        return REASONS[done.finish_reason], None

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._answering.listed.name,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "stop_details": None,
            "container": None,
            "diagnostics": diagnosis(self._ledger, self._body.diagnostics, self._answering),
            "usage": usage,
        }


def thinking(reasoning: str, omitted: bool) -> dict[str, Any]:
    """A block of it."""
    shown = "" if omitted else reasoning
    return {"type": "thinking", "thinking": shown, "signature": signature_of(reasoning, omitted)}


def usage(done: Completion) -> dict[str, Any]:
    each = done.usage
    return _usage(each.prompt_tokens, each.cached_tokens, each.completion_tokens, each.reasoning_tokens)


def _usage(prompt: int, cached: int, produced: int, thought: int) -> dict[str, Any]:
    """All that is computed counts in input_tokens: nothing costs more because its state is kept, as that of all is."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": produced,
        "output_tokens_details": {"thinking_tokens": thought},
        "service_tier": "standard",
    }
