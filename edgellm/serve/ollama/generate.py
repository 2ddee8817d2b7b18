"""/api/generate: an answer to one prompt, or a text that goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from edgellm import Completion, Model
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.prompter import Turn
from edgellm.serve.ask import BEAT_SECONDS, HEADERS_SECONDS, Answering, Ask, Waiting, prompt_of
from edgellm.serve.endpoint import LINES, Call, Reply, Stream
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.options import Asking, ignored
from edgellm.serve.openai.wire import logprob

REFUSED = {
    "suffix": "text between a beginning and an end is not written here",
    "template": "the model's own template is used; with raw=true there is none",
    "images": "this model reads text alone",
}
EMPTY = {"response": "", "done": False}
MARK = "edgellmAnswer"  # stands for an answer, so that what a template puts behind one is found


class GenerateRequest(Asking):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#generate-a-completion"""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


async def generate(call: Call[GenerateRequest]) -> Reply | Stream:
    body = call.body
    listed = wire.found(call.state.models, body.model)
    name = body.model or listed.name
    keep = wire.seconds_of(body.keep_alive)
    for field, why in REFUSED.items():
        if getattr(body, field):
            raise Unsupported(f"{field}: {why}")
    more = ("system",) if body.system and (body.context or not body.prompt) else ()
    if not body.prompt:
        reason = await wire.kept(call, listed, keep)
        about = {"model": name, "created_at": wire.stamp(), **EMPTY, "done": True, "done_reason": reason}
        return Reply(about, headers=ignored(call, listed, *more))
    answering = call.answering(listed, _ask(body, keep))
    if body.stream is not False:
        await answering.begin(patience=HEADERS_SECONDS)
        return Stream(_lines(name, body, answering), wire.failed, LINES, ignored(call, listed, *more))
    await answering.begin()
    done = await answering.whole()
    about = {"model": name, "created_at": wire.stamp(), "response": done.text, **_end(body, answering, done)}
    if done.reasoning:
        about["thinking"] = done.reasoning
    if done.logprobs is not None:
        about["logprobs"] = list(map(logprob, done.logprobs))
    return Reply(about, headers=ignored(call, listed, *more))


def _ask(body: GenerateRequest, keep: float | None) -> Ask:
    if body.raw and (body.system or body.context):
        raise InvalidParameter("raw: a raw prompt takes neither system nor context; put them into it")
    thinking, variables = wire.think_of(body.think)
    ask = Ask(params=body.params(), thinking=thinking, variables=variables, keep=keep)
    prompt = body.prompt or ""
    if body.raw:
        return replace(ask, prompt=prompt)
    system = [{"role": "system", "content": body.system}] if body.system and not body.context else []
    asked = replace(ask, messages=[*system, {"role": "user", "content": prompt}])
    return replace(ask, make=_maker(asked, prompt, body.context or []))


def _maker(asked: Ask, prompt: str, context: list[int]) -> Callable[[Model], list[int] | Turn]:
    """What makes the prompt, behind the tokens of an earlier exchange."""

    def make(model: Model) -> list[int] | Turn:
        wrong = next((token for token in context if not 0 <= token < model.info.n_vocab), None)
        if wrong is not None:
            raise InvalidParameter(f"context: token {wrong} is outside the vocabulary of {model.info.n_vocab}")
        if model.info.chat_template is None:
            if len(asked.messages) > 1:
                raise Unsupported(f"system: {model.info.name} has no chat template; put it into the prompt")
            return [*context, *model.encode(prompt, bos=not context)]
        if not context:
            return prompt_of(model, asked)
        before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": MARK}]
        turn = prompt_of(model, replace(asked, messages=[*before, *asked.messages]))
        assert isinstance(turn, Turn)
        _, marked, tail = turn.written.partition(MARK)
        if not marked:
            raise Unsupported("context: the chat template of this model does not show earlier answers; send messages")
        return replace(turn, tokens=[*context, *turn.said.tokens(tail, (), bos=False)], title=prompt)

    return make


def _end(body: GenerateRequest, answering: Answering, done: Completion) -> dict[str, Any]:
    about = wire.measured(answering, done)
    return about if body.raw else {**about, "context": [*answering.tokens, *done.tokens]}


async def _lines(model: str, body: GenerateRequest, answering: Answering) -> AsyncGenerator[bytes]:
    made = wire.lines_of(model)
    written = time.monotonic()
    async with aclosing(answering.events()) as events:
        async for item in events:
            if isinstance(item, Waiting):
                yield made(EMPTY)
                continue
            about: dict[str, Any] = {"response": item.text, "done": False}
            if item.reasoning:
                about["thinking"] = item.reasoning
            if item.logprobs:
                about["logprobs"] = list(map(logprob, item.logprobs))
            if item.text or len(about) > 2 or time.monotonic() - written > BEAT_SECONDS / 2:
                written = time.monotonic()
                yield made(about)
            if item.completion is not None:
                yield made({**EMPTY, **_end(body, answering, item.completion)})
