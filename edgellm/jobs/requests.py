"""Lines in OpenAI's batch format, read and answered by the server's own routes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from edgellm import Model
from edgellm.errors import Unsupported
from edgellm.events import Usage
from edgellm.jobs.line import Answer, Request
from edgellm.jobs.only import Only
from edgellm.serve.ask import Ask
from edgellm.serve.dialects import OPENAI, new_request_id
from edgellm.serve.endpoint import Call, Reply, Stream, parsed
from edgellm.serve.openai.chat import ChatRequest, chat
from edgellm.serve.openai.chat import ask_of as asks_of_chat
from edgellm.serve.openai.completions import CompletionRequest, asks_of, completions
from edgellm.serve.openai.embeddings import EmbeddingRequest, embeddings
from edgellm.serve.refusal import Refusal
from edgellm.serve.state import State

Route = tuple[type[Any], Callable[[Call[Any]], Awaitable[Reply | Stream]]]
ROUTES: Mapping[str, Route] = {
    "/v1/chat/completions": (ChatRequest, chat),
    "/v1/completions": (CompletionRequest, completions),
    "/v1/embeddings": (EmbeddingRequest, embeddings),
}
SCOPE = {"method": "POST", "headers": ()}  # of a request that came by no network


def body_of(asked: Request) -> Any:
    """The body as its route takes it. Raises Refusal, Unsupported."""
    body = parsed(ROUTES[asked.url][0], json.dumps(asked.body).encode())
    if getattr(body, "stream", None):
        raise Unsupported("stream: a job has no streams; leave it out")
    return body


def asks(asked: Request) -> list[Ask]:
    """The answers that a request wants; none of one that wants vectors. Raises as `body_of`, and InvalidParameter."""
    body = body_of(asked)
    if isinstance(body, ChatRequest):
        return [asks_of_chat(body)] * max(1, body.n or 1)
    return asks_of(body) if isinstance(body, CompletionRequest) else []


def texts(asked: Request, model: Model) -> list[list[int]]:
    """The tokens of what shall become vectors. Raises what `body_of` does, Unsupported where the model gives none."""
    given = body_of(asked).input
    listed = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not model.info.can_embed:
        raise Unsupported(f"{model.info.name} gives no embeddings; ask an embedding model")
    return [model.encode(each) if isinstance(each, str) else each for each in listed]


def state_of(only: Only) -> State:
    """What the routes share."""
    return State(only.serving, only)


async def replied(state: State, asked: Request) -> Reply:
    """What the server would reply. Raises what a route raises."""
    async with AsyncExitStack() as stack:
        reply = await ROUTES[asked.url][1](Call(state, SCOPE, body_of(asked), stack))
    assert isinstance(reply, Reply)  # streams are refused
    return reply


def refused(why: Refusal) -> Reply:
    """What the server would reply then."""
    return OPENAI.refused(why)


def answer_of(number: int, asked: Request, reply: Reply) -> Answer:
    """The line of the output: https://platform.openai.com/docs/api-reference/batch/request-output"""
    response = {"status_code": reply.status, "request_id": new_request_id(), "body": reply.body}
    about = {"id": f"batch_req_{number}", "custom_id": asked.custom_id, "response": response, "error": None}
    said = reply.body.get("usage") or {}
    usage = Usage(
        said.get("prompt_tokens", 0),
        said.get("prompt_tokens_details", {}).get("cached_tokens", 0),
        said.get("completion_tokens", 0),
    )
    return Answer(number, about, usage, failed=reply.status != 200)
