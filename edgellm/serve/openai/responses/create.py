"""POST /v1/responses, and how many tokens one would have."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

from edgellm import Chunk, Completion
from edgellm.errors import ContextOverflow
from edgellm.serve.ask import Answering
from edgellm.serve.endpoint import Call, Reply, Stream
from edgellm.serve.openai.responses import stored
from edgellm.serve.openai.responses.answer import Answer, cut
from edgellm.serve.openai.responses.output import Output
from edgellm.serve.openai.responses.request import Asked, ResponseRequest, asked_of
from edgellm.serve.openai.responses.stream import Events
from edgellm.serve.refusal import refusal


def _asked(call: Call[ResponseRequest]) -> Asked:
    body, ledger = call.body, call.state.ledger
    before = stored.before(ledger, body.previous_response_id)
    return asked_of(body, before, stored.finder(ledger))


async def create(call: Call[ResponseRequest]) -> Reply | Stream:
    body = call.body
    asked = _asked(call)
    answering = call.answering(call.state.models.find(body.model), asked.ask)
    options = body.prompt_cache_options
    compared = None if options is None else options.comparison_response_id
    answer = Answer(asked, answering, None if compared is None else call.state.ledger.get(compared))
    output = Output(asked.ids, asked.tools.named)

    def finished(done: Completion) -> dict[str, Any]:
        """The Response; it is remembered."""
        response = answer.ended(output.items, done)
        kept = None if body.store is False else stored.Kept(response, asked.items)
        call.state.ledger.add(answer.entry(done, kept, 0 if kept is None else kept.nbytes))
        return response

    if body.stream:
        events = Events(answering, output, answer, finished)
        await events.begin()
        return Stream(events.pieces(), events.failed, headers=asked.headers)
    try:
        await answering.begin(stream=answering.ask.params.logprobs is not None)
    except ContextOverflow as error:
        raise replace(refusal(error), param="input") from None
    return Reply(finished(await _whole(answering, output)), headers=asked.headers)


async def _whole(answering: Answering, output: Output) -> Completion:
    done: Completion | None = None
    if answering.ask.params.logprobs is None:
        done = await answering.whole()
        output.whole(done)
    else:  # which token belongs to which item is known while they come
        async with aclosing(answering.events()) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    output.heard(event)
                    done = event.completion
        assert done is not None
    output.ended(cut=cut(done))
    return done


async def input_tokens(call: Call[ResponseRequest]) -> Reply:
    """Tokens of the prompt, exactly, also of one that is too long."""
    asked = _asked(call)
    ask = replace(asked.ask, params=replace(asked.ask.params, overflow="error"))
    answering = call.answering(call.state.models.find(call.body.model), ask)
    try:
        await answering.prepare()
        count = len(answering.tokens)
    except ContextOverflow as error:
        count = error.needed - 1
    return Reply({"object": "response.input_tokens", "input_tokens": count}, headers=asked.headers)
