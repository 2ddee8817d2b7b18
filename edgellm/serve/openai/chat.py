"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from edgellm import Chunk, Completion, GenerateParams
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.ask import Answering, Ask, Waiting
from edgellm.serve.dialects import OPENAI
from edgellm.serve.endpoint import Call, Reply, Stream, comment, dumped, event
from edgellm.serve.merge import merged
from edgellm.serve.openai import wire
from edgellm.serve.options import Request, taken

MOST = 32  # choices
REFUSED = {"audio": "audio", "modalities": "audio", "web_search_options": "the web", "chat_template": "other templates"}


class StreamOptions(Request):
    include_usage: bool | None = None


class ChatRequest(Request):
    """https://platform.openai.com/docs/api-reference/chat/create"""

    model: str | None = None
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    guided_json: dict[str, Any] | bool | None = None
    json_schema: dict[str, Any] | bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    return_progress: bool | None = None
    report: bool | None = None
    keep_alive: float | None = None


async def chat(call: Call[ChatRequest]) -> Reply | Stream:
    body = call.body
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MOST:
        raise InvalidParameter(f"n={count}: must be between 1 and {MOST}")
    ask = ask_of(body)
    listed = call.state.models.find(body.model)
    id = wire.new_id("chatcmpl")
    answers = [call.answering(listed, _nth(ask, at)) for at in range(count)]
    answers[0].followers.append(wire.keep_report(call, id))
    headers = wire.ignored(body)
    await asyncio.gather(*(each.begin(stream=bool(body.stream)) for each in answers))
    if body.stream:
        return Stream(_Chunks(id, body, answers).pieces(), lambda why: event(OPENAI.error(why)), headers=headers)
    done = await asyncio.gather(*(each.whole() for each in answers))
    return Reply(_whole(id, body, answers[0], done), headers=headers)


def ask_of(body: ChatRequest) -> Ask:
    """What the request asks for. Raises InvalidParameter, Unsupported."""
    for name, what in REFUSED.items():
        value = (body.model_extra or {}).get(name)
        if value not in (None, [], ["text"]):
            raise Unsupported(f"{name}: {what} cannot be had here")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs: needs logprobs=true")
    tools = [*(body.tools or ()), *({"type": "function", "function": each} for each in body.functions or ())]
    choice = body.tool_choice if body.function_call is None else body.function_call
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    variables = dict(body.chat_template_kwargs or {})
    thinking = variables.pop("enable_thinking", body.enable_thinking)
    if body.reasoning_effort is not None:
        thinking = body.reasoning_effort not in ("none", "minimal") if thinking is None else thinking
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    if body.continue_final_message:
        variables["continue_final_message"] = True
    params = GenerateParams(
        **body.options(),
        max_tokens=taken("max_tokens", most),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        schema=_schema(body),
    )
    return Ask(
        messages=[message_of(each, f"messages[{at}]") for at, each in enumerate(body.messages)],
        params=params,
        tools=tools,
        tool_choice=wire.choice_of(choice, wire.names_of(tools)),
        thinking=thinking,
        variables=variables,
        one_call=body.parallel_tool_calls is False,
        keep=body.keep_alive,
    )


def _schema(body: ChatRequest) -> Any:
    """Of the answer; llama.cpp's and vLLM's clients have words of their own for it."""
    asked = wire.schema_of(body.response_format)
    return next((each for each in (asked, body.json_schema, body.guided_json) if each is not None), None)


def message_of(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as templates take it. Raises Unsupported for what is no text."""
    role, content = message.get("role"), message.get("content")
    found = {key: value for key, value in message.items() if key not in ("refusal", "audio", "annotations")}
    if role == "function":
        found["role"] = "tool"
    if isinstance(content, list):
        parts = []
        for at, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "refusal":
                part = {"type": "text", "text": part.get("refusal")}
            elif kind != "text":
                raise Unsupported(
                    f"{where}.content[{at}]: a part of type {str(kind)[:50]!r}; this model reads text alone"
                )
            parts.append({"type": "text", "text": part.get("text")})
        found["content"] = parts
    if content is None and role == "assistant":
        found["content"] = message.get("refusal") or ""
    call = found.pop("function_call", None)
    if isinstance(call, dict) and not found.get("tool_calls"):
        found["tool_calls"] = [{"type": "function", "id": f"call_{where}", "function": call}]
    return found


def _nth(ask: Ask, at: int) -> Ask:
    """Choices differ by their seeds."""
    seed = ask.params.seed
    return ask if seed is None or not at else replace(ask, params=replace(ask.params, seed=(seed + at) % 2**64))


def _whole(id: str, body: ChatRequest, answering: Answering, done: Sequence[Completion]) -> dict[str, Any]:
    answer = {
        "id": id,
        "object": "chat.completion",
        "created": wire.now(),
        "model": answering.listed.name,
        "system_fingerprint": wire.fingerprint(answering),
        "choices": [_choice(body, at, each) for at, each in enumerate(done)],
        "usage": wire.usage(done),
        "timings": wire.timings(done[0]),
    }
    return {**answer, "edgellm": wire.report(done[0])} if body.report else answer


def _choice(body: ChatRequest, at: int, done: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": done.text, "refusal": None, "annotations": []}
    reason = wire.REASONS[done.finish_reason]
    if done.reasoning:
        message["reasoning_content"] = done.reasoning
    if done.tool_calls:
        message["content"] = done.text or None
        message["tool_calls"] = [wire.call_of(each) for each in done.tool_calls]
        if body.functions and not body.tools:
            message["function_call"] = message.pop("tool_calls")[0]["function"]
            reason = "function_call" if reason == "tool_calls" else reason
    logprobs = None if done.logprobs is None else {"content": list(map(wire.logprob, done.logprobs)), "refusal": None}
    return {"index": at, "message": message, "logprobs": logprobs, "finish_reason": reason}


class _Chunks:
    """The chunks of a stream."""

    def __init__(self, id: str, body: ChatRequest, answers: list[Answering]) -> None:
        self._body = body
        self._answers = answers
        self._begun = time.monotonic()
        self._head = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": wire.now(),
            "model": answers[0].listed.name,
        }
        self._start = b"data: " + dumped(self._head)[:-1]  # what most chunks begin with, made once

    async def pieces(self) -> AsyncGenerator[bytes]:
        for at in range(len(self._answers)):
            yield self._chunk(at, {"role": "assistant", "content": ""})
        done: dict[int, Completion] = {}
        async with aclosing(merged([each.events() for each in self._answers])) as events:
            async for at, item in events:
                if isinstance(item, Waiting):
                    yield self._waiting(at, item)
                    continue
                for piece in self._pieces(at, item):
                    yield piece
                if item.completion is not None:
                    done[at] = item.completion
                    yield self._chunk(at, {}, wire.REASONS[item.completion.finish_reason])
        last = self._last([done[at] for at in sorted(done)])
        if last is not None:
            yield event(last)
        yield b"data: [DONE]\n\n"

    def _waiting(self, at: int, item: Waiting) -> bytes:
        if not self._body.return_progress or not item.total:
            return comment(f"{item.done} of {item.total} tokens of the prompt are read" if item.total else "loading")
        about = wire.progress(item, 1e3 * (time.monotonic() - self._begun))
        choice = {"index": at, "delta": {}, "logprobs": None, "finish_reason": None}
        return event({**self._head, "choices": [choice], "prompt_progress": about})

    def _pieces(self, at: int, item: Chunk) -> list[bytes]:
        found = []
        if item.reasoning:
            found.append(self._chunk(at, {"reasoning_content": item.reasoning}))
        logprobs = None if item.logprobs is None else [wire.logprob(each) for each in item.logprobs]
        if item.text or logprobs:
            found.append(self._chunk(at, {"content": item.text}, logprobs=logprobs))
        for delta in item.tool_calls:
            call: dict[str, Any] = {"index": delta.index}
            if delta.id:
                call |= {"id": delta.id, "type": "function"}
            if delta.id or delta.arguments:
                function = {"name": delta.name} if delta.name else {}
                found.append(
                    self._chunk(at, {"tool_calls": [{**call, "function": {**function, "arguments": delta.arguments}}]})
                )
        return found

    def _chunk(
        self, at: int, delta: dict[str, Any], reason: str | None = None, logprobs: list[dict[str, Any]] | None = None
    ) -> bytes:
        about = None if logprobs is None else {"content": logprobs, "refusal": None}
        choice = {"index": at, "delta": delta, "logprobs": about, "finish_reason": reason}
        return b'%s,"choices":[%s]}\n\n' % (self._start, dumped(choice))

    def _last(self, done: list[Completion]) -> dict[str, Any] | None:
        """The chunk with what is known at the end, for those who asked for it."""
        more: dict[str, Any] = {}
        if self._body.stream_options is not None and self._body.stream_options.include_usage:
            more |= {"usage": wire.usage(done), "timings": wire.timings(done[0])}
        if self._body.report:
            more["edgellm"] = wire.report(done[0])
        return {**self._head, "choices": [], **more} if more else None
