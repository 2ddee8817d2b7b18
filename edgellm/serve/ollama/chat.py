"""/api/chat."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from edgellm import Completion, ToolCall
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.ask import BEAT_SECONDS, HEADERS_SECONDS, Answering, Ask, Waiting
from edgellm.serve.endpoint import LINES, Call, Reply, Stream
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.options import Asking, ignored
from edgellm.serve.openai.wire import choice_of, logprob, names_of

EMPTY = {"message": {"role": "assistant", "content": ""}, "done": False}


class OllamaChatRequest(Asking):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#generate-a-chat-completion"""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None  # as OpenAI has it


async def chat(call: Call[OllamaChatRequest]) -> Reply | Stream:
    body = call.body
    listed = wire.found(call.state.models, body.model)
    name = body.model or listed.name
    keep = wire.seconds_of(body.keep_alive)
    if not body.messages:
        reason = await wire.kept(call, listed, keep)
        about = {"model": name, "created_at": wire.stamp(), **EMPTY, "done": True, "done_reason": reason}
        return Reply(about, headers=ignored(call, listed))
    tools = body.tools or []
    thinking, variables = wire.think_of(body.think)
    ask = Ask(
        messages=messages_of(body.messages),
        params=body.params(),
        tools=tools,
        tool_choice=choice_of(body.tool_choice, names_of(tools)),
        thinking=thinking,
        variables=variables,
        keep=keep,
    )
    answering = call.answering(listed, ask)
    if body.stream is not False:
        await answering.begin(patience=HEADERS_SECONDS)
        return Stream(_lines(name, answering), wire.failed, LINES, ignored(call, listed))
    await answering.begin()
    done = await answering.whole()
    about = {"model": name, "created_at": wire.stamp(), "message": _message(done), **wire.measured(answering, done)}
    if done.logprobs is not None:
        about["logprobs"] = list(map(logprob, done.logprobs))
    return Reply(about, headers=ignored(call, listed))


def messages_of(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates take them. Calls get ids where they have none, and results those of the calls that they
    answer: by the name of the tool, and in the order of the calls. Raises Unsupported for what is no text."""
    open_calls: list[dict[str, Any]] = []
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
            open_calls = list(new["tool_calls"])
        if message.get("role") == "tool":
            _answer(new, message.get("tool_name") or message.get("name"), open_calls)
        found.append(new)
    return found


def _call(call: dict[str, Any], id: str) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        function = {key: value for key, value in function.items() if key != "index"}
    return {"id": call.get("id") or id, "type": "function", "function": function}


def _answer(result: dict[str, Any], name: Any, open_calls: list[dict[str, Any]]) -> None:
    """Give a result the id and the name of the call that it answers."""
    id = result.get("tool_call_id")
    for call in open_calls:
        function = call["function"] if isinstance(call["function"], dict) else {}
        if call["id"] == id if id else name in (None, "", function.get("name")):
            open_calls.remove(call)
            result["tool_call_id"], name = call["id"], name or function.get("name")
            break
    if name:
        result["name"] = name


def calls_of(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "function": {"index": at, "name": call.name, "arguments": call.arguments}}
        for at, call in enumerate(calls)
    ]


def _message(done: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": done.text}
    if done.reasoning:
        message["thinking"] = done.reasoning
    if done.tool_calls:
        message["tool_calls"] = calls_of(done.tool_calls)
    return message


async def _lines(model: str, answering: Answering) -> AsyncGenerator[bytes]:
    """The lines of a stream; one without content while there is nothing to tell, which clients skip."""
    made = wire.lines_of(model)
    written = time.monotonic()
    async with aclosing(answering.events()) as events:
        async for item in events:
            if isinstance(item, Waiting):
                yield made(EMPTY)
                continue
            message: dict[str, Any] = {"role": "assistant", "content": item.text}
            if item.reasoning:
                message["thinking"] = item.reasoning
            done = item.completion
            if done is not None and done.tool_calls:
                message["tool_calls"] = calls_of(done.tool_calls)
            about: dict[str, Any] = {"message": message, "done": False}
            if item.logprobs:
                about["logprobs"] = list(map(logprob, item.logprobs))
            if item.text or len(message) > 2 or item.logprobs or time.monotonic() - written > BEAT_SECONDS / 2:
                written = time.monotonic()
                yield made(about)
            if done is not None:
                yield made({**EMPTY, **wire.measured(answering, done)})
