"""/api/chat."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from edgellm import ToolCall
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.ask import Ask
from edgellm.serve.endpoint import Call, Reply, Stream
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.answer import Form, answered, loaded
from edgellm.serve.ollama.options import Asking
from edgellm.serve.openai.wire import choice_of, names_of


class OllamaChatRequest(Asking):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#generate-a-chat-completion"""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None  # as OpenAI has it


async def chat(call: Call[OllamaChatRequest]) -> Reply | Stream:
    body = call.body
    listed = wire.found(call.state.models, body.model)
    form = Form(body.model or listed.name, _message)
    if not body.messages:
        return await loaded(call, listed, form, body.keep_alive)
    tools = body.tools or []
    thinking, variables = wire.think_of(body.think)
    ask = Ask(
        messages=messages_of(body.messages),
        params=body.params(),
        tools=tools,
        tool_choice=choice_of(body.tool_choice, names_of(tools)),
        thinking=thinking,
        variables=variables,
        keep=body.keep_alive,
    )
    return await answered(call, call.answering(listed, ask), form)


def messages_of(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates take them. Calls get ids where they have none, and results those of the calls that they
    answer: by the name of the tool, and in the order of the calls. Raises Unsupported for what is no text."""
    unanswered = _Calls([])
    found = []
    for at, message in enumerate(given):
        if message.get("images"):
            raise Unsupported(f"messages[{at}].images: this model reads text alone")
        kept = ("role", "content", "thinking", "tool_call_id")
        new = {key: message[key] for key in kept if message.get(key) is not None}
        new.setdefault("content", "")
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            if not isinstance(calls, list) or not all(isinstance(each, dict) for each in calls):
                raise InvalidParameter(f"messages[{at}].tool_calls: a list of calls is needed")
            new["tool_calls"] = [_call(each, f"call_{at}_{nth}") for nth, each in enumerate(calls)]
            unanswered = _Calls(new["tool_calls"])
        if message.get("role") == "tool":
            _answer(new, message.get("tool_name") or message.get("name"), unanswered)
        found.append(new)
    return found


def _call(call: dict[str, Any], id: str) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        function = {key: value for key, value in function.items() if key != "index"}
    return {"id": call.get("id") or id, "type": "function", "function": function}


class _Calls:
    """Calls of a message that have no result yet, found however many there are."""

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self._calls = dict(enumerate(calls))
        self._by: dict[tuple[str, ...], deque[int]] = {}
        for at, call in self._calls.items():
            function = call["function"] if isinstance(call["function"], dict) else {}
            for key in (("id", repr(call["id"])), ("name", repr(function.get("name"))), ()):
                self._by.setdefault(key, deque()).append(at)

    def take(self, id: Any, name: Any) -> dict[str, Any] | None:
        """The first one with this id; without one, with this name; without either, the first."""
        waiting = self._by.get(("id", repr(id)) if id else ("name", repr(name)) if name else (), deque())
        while waiting:
            call = self._calls.pop(waiting.popleft(), None)
            if call is not None:
                return call
        return None


def _answer(result: dict[str, Any], name: Any, unanswered: _Calls) -> None:
    """Give a result the id and the name of the call that it answers."""
    call = unanswered.take(result.get("tool_call_id"), name)
    if call is not None:
        function = call["function"] if isinstance(call["function"], dict) else {}
        result["tool_call_id"], name = call["id"], name or function.get("name")
    if name:
        result["name"] = name


def _message(text: str, reasoning: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": at, "name": call.name, "arguments": call.arguments}}
            for at, call in enumerate(calls)
        ]
    return {"message": message}
