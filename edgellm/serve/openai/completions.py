"""/v1/completions: a text goes on, without a chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from edgellm import Completion, GenerateParams
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.events import TokenLogprob
from edgellm.serve.ask import Answering, Ask, Waiting
from edgellm.serve.dialects import OPENAI
from edgellm.serve.endpoint import Call, Reply, Stream, comment, event
from edgellm.serve.merge import merged
from edgellm.serve.openai import wire
from edgellm.serve.options import Keep, Request, taken

MOST = 128  # choices of all prompts
USUAL = 16  # tokens of an answer, where the request does not say; as OpenAI has it
Prompt = str | list[int]


class CompletionRequest(Request):
    """https://platform.openai.com/docs/api-reference/completions/create"""

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    stream: bool | None = None
    stream_options: wire.StreamOptions | None = None
    max_tokens: int | None = USUAL
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    keep_alive: Keep = None


async def completions(call: Call[CompletionRequest]) -> Reply | Stream:
    body = call.body
    listed = call.state.models.find(body.model)
    asks = asks_of(body)
    id = wire.new_id("cmpl")
    answers = [call.answering(listed, ask) for ask in asks]
    answers[0].followers.append(wire.keep_report(call, id))
    headers = wire.ignored(body)
    await asyncio.gather(*(each.begin(stream=bool(body.stream)) for each in answers))
    if body.stream:
        return Stream(_chunks(id, body, answers), lambda why: event(OPENAI.error(why)), headers=headers)
    done = await asyncio.gather(*(each.whole() for each in answers))
    choices = [_choice(at, answers[at], _echoed(body, answers[at]) + each.text, each) for at, each in enumerate(done)]
    answer = {
        **_head(id, body, answers[0]),
        "choices": choices,
        "usage": _usage(body, done),
        "timings": wire.timings(done[0]),
    }
    return Reply(answer, headers=headers)


def asks_of(body: CompletionRequest) -> list[Ask]:
    """What the request asks for, prompt by prompt. Raises InvalidParameter, Unsupported."""
    if body.suffix:
        raise Unsupported("suffix: text between a beginning and an end is not written here; send a prompt alone")
    count = body.n or 1
    if (body.best_of or count) > count:
        raise Unsupported(f"best_of={body.best_of}: every answer is returned, none is picked; leave it out")
    if body.echo and body.logprobs is not None:
        raise Unsupported("echo with logprobs: those of a prompt are not given; leave one of them out")
    prompts: list[Prompt] = _prompts(body.prompt)
    if not 1 <= count * len(prompts) <= MOST:
        raise InvalidParameter(f"{count} answers to {len(prompts)} prompts: {MOST} at once is the most")
    schema = wire.schema_of(body.response_format)
    params = GenerateParams(
        **body.options(), max_tokens=taken("max_tokens", body.max_tokens), logprobs=body.logprobs, schema=schema
    )
    found = []
    for prompt in prompts:
        for nth in range(count):
            seed = None if params.seed is None else (params.seed + nth) % 2**64
            found.append(Ask(prompt=prompt, params=replace(params, seed=seed), keep=body.keep_alive))
    return found


def _prompts(prompt: Any) -> list[Prompt]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _usage(body: CompletionRequest, done: Sequence[Completion]) -> dict[str, Any]:
    """Each prompt counts once, however many answers it has."""
    count = body.n or 1
    every = [wire.usage(done[at : at + count]) for at in range(0, len(done), count)]
    total = dict(every[0])
    for more in every[1:]:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            total[name] += more[name]
        cached = more["prompt_tokens_details"]["cached_tokens"]
        details = total["prompt_tokens_details"]
        total["prompt_tokens_details"] = {**details, "cached_tokens": details["cached_tokens"] + cached}
    return total


def _head(id: str, body: CompletionRequest, answering: Answering) -> dict[str, Any]:
    model = body.model or answering.listed.name
    return {"id": id, "object": "text_completion", "created": wire.now(), "model": model}


def _echoed(body: CompletionRequest, answering: Answering) -> str:
    if not body.echo:
        return ""
    prompt = answering.ask.prompt
    return prompt if isinstance(prompt, str) else answering.model.decode(prompt or [])


def _choice(at: int, answering: Answering, text: str, done: Completion | None = None) -> dict[str, Any]:
    logprobs = None if done is None or done.logprobs is None else _logprobs(done.logprobs, 0)
    reason = None if done is None else wire.REASONS[done.finish_reason]
    return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(each: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """As this older protocol has them. offset: characters of the answer before the first."""
    texts = [token.text.decode("utf-8", "replace") for token in each]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [max(token.logprob, -9999.0) for token in each],
        "top_logprobs": [
            {text.decode("utf-8", "replace"): max(value, -9999.0) for _, text, value in token.top} for token in each
        ],
        "text_offset": offsets,
    }


async def _chunks(id: str, body: CompletionRequest, answers: list[Answering]) -> AsyncGenerator[bytes]:
    done: dict[int, Completion] = {}
    offsets = [0] * len(answers)
    begun = [False] * len(answers)
    head = _head(id, body, answers[0])
    if wire.wants_usage(body.stream_options):
        head["usage"] = None  # but in the last one
    yield comment("begun")
    async with aclosing(merged([each.events() for each in answers])) as events:
        async for at, item in events:
            if isinstance(item, Waiting):
                yield comment(f"{item.done} of {item.total} tokens of the prompt are read")
                continue
            text = item.text
            if not begun[at]:
                begun[at], text = True, _echoed(body, answers[at]) + text
            choice = _choice(at, answers[at], text)
            if item.logprobs is not None:
                choice["logprobs"] = _logprobs(item.logprobs, offsets[at])
            offsets[at] += len(item.text)
            if item.completion is not None:
                done[at] = item.completion
                choice["finish_reason"] = wire.REASONS[item.completion.finish_reason]
            if text or item.logprobs or item.completion is not None:
                yield event({**head, "choices": [choice]})
    if wire.wants_usage(body.stream_options):
        every = [done[at] for at in sorted(done)]
        yield event({**head, "choices": [], "usage": _usage(body, every), "timings": wire.timings(every[0])})
    yield b"data: [DONE]\n\n"
