"""/v1/messages, and how many tokens a request would have."""

from __future__ import annotations

from typing import Any

from edgellm.errors import ContextOverflow
from edgellm.serve.anthropic.answer import Answer
from edgellm.serve.anthropic.request import CountRequest, MessagesRequest, asked
from edgellm.serve.anthropic.stream import Events
from edgellm.serve.dialects import ANTHROPIC, REQUEST_ID, new_request_id
from edgellm.serve.endpoint import Call, Reply, Stream, event
from edgellm.serve.refusal import Refusal


async def messages(call: Call[MessagesRequest]) -> Reply | Stream:
    body = call.body
    wanted = asked(body)
    answering = call.answering(call.state.models.find(body.model), wanted.ask)
    answer = Answer(call, answering)
    await answering.begin(stream=bool(body.stream))
    headers = {**wanted.ignored, REQUEST_ID: new_request_id()}
    if not body.stream:
        return Reply(answer.whole(await answering.whole()), headers=headers)

    def failed(why: Refusal) -> bytes:
        error: dict[str, Any] = ANTHROPIC.error(why)
        return event({**error, "request_id": headers[REQUEST_ID]}, "error")

    return Stream(Events(answer, answering).pieces(), failed, headers=headers)


async def count_tokens(call: Call[CountRequest]) -> Reply:
    """As many as the usage of the same request, if it is asked, also where it is too long for that."""
    wanted = asked(call.body)
    answering = call.answering(call.state.models.find(call.body.model), wanted.ask)
    try:
        await answering.prepare()
        tokens = len(answering.tokens)
    except ContextOverflow as error:
        tokens = error.needed - 1
    return Reply({"input_tokens": tokens}, headers={**wanted.ignored, REQUEST_ID: new_request_id()})
