"""How an answer goes back: whole, or in lines of JSON."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from edgellm import Chunk, Completion, ToolCall
from edgellm.serve.ask import BEAT_SECONDS, Answering, Waiting
from edgellm.serve.endpoint import LINES, Call, Reply, Stream, line
from edgellm.serve.models import Listed
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.options import Asking, ignored
from edgellm.serve.openai.wire import logprob

Shape = Callable[[str, str, Sequence[ToolCall]], dict[str, Any]]
NOTHING = Chunk("")


@dataclass(frozen=True)
class Form:
    """model: as the client calls it. shape: how text, reasoning and calls stand in a line. context: whether the tokens
    so far are given at the end."""

    model: str
    shape: Shape
    context: bool = False

    def line(self, text: str = "", reasoning: str = "", calls: Sequence[ToolCall] = (), **more: Any) -> dict[str, Any]:
        about = {"model": self.model, "created_at": wire.stamp(), **self.shape(text, reasoning, calls), "done": False}
        return {**about, **more}

    def end(self, answering: Answering, done: Completion) -> dict[str, Any]:
        about = wire.measured(answering, done)
        return {**about, "context": [*answering.tokens, *done.tokens]} if self.context else about


async def loaded(call: Call[Any], listed: Listed, form: Form, keep: float | None, *more: str) -> Reply:
    """What there is to say where nothing is asked: the model is loaded, or unloaded. more: fields without effect."""
    reason = await wire.kept(call, listed, keep)
    return Reply(form.line(done=True, done_reason=reason), headers=ignored(call, listed, *more))


async def answered(call: Call[Any], answering: Answering, form: Form, *more: str) -> Reply | Stream:
    """The answer as the request wants it. more: fields without effect."""
    body: Asking = call.body
    if body.stream is not False:
        await answering.begin(stream=True)
        headers = ignored(call, answering.listed, *more)
        return Stream(_lines(answering, form), wire.failed, LINES, headers)
    await answering.begin()
    done = await answering.whole()
    about = form.line(done.text, done.reasoning, done.tool_calls, **form.end(answering, done))
    if done.logprobs is not None:
        about["logprobs"] = list(map(logprob, done.logprobs))
    return Reply(about, headers=ignored(call, answering.listed, *more))


async def _lines(answering: Answering, form: Form) -> AsyncGenerator[bytes]:
    """The lines of a stream; one without content, which clients skip, where there was nothing to tell for a while."""
    written = time.monotonic()
    async with aclosing(answering.events()) as events:
        async for item in events:
            chunk, waiting = (NOTHING, True) if isinstance(item, Waiting) else (item, False)
            done = chunk.completion
            calls = done.tool_calls if done is not None else ()
            late = waiting or time.monotonic() - written > BEAT_SECONDS / 2
            if late or chunk.text or chunk.reasoning or chunk.logprobs or calls:
                written = time.monotonic()
                more = {"logprobs": list(map(logprob, chunk.logprobs))} if chunk.logprobs else {}
                yield line(form.line(chunk.text, chunk.reasoning, calls, **more))
            if done is not None:
                yield line(form.line(**form.end(answering, done)))
