"""ResponseRequest: the body of a request; and Asked, what it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from edgellm import GenerateParams
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.ask import Ask
from edgellm.serve.openai import wire
from edgellm.serve.openai.responses.ids import Ids
from edgellm.serve.openai.responses.items import Find, Item, items_of, messages_of
from edgellm.serve.openai.responses.tools import Offered, offered
from edgellm.serve.options import Request

LOGPROBS = "message.output_text.logprobs"


class ResponseText(BaseModel):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseReasoning(BaseModel):
    effort: str | None = None
    summary: str | None = None


class ResponseCache(BaseModel):
    comparison_response_id: str | None = None
    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: Literal["30m", "12h"] = "30m"


class ResponseRequest(Request):
    """https://platform.openai.com/docs/api-reference/responses/create"""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    text: ResponseText | None = None
    reasoning: ResponseReasoning | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: ResponseCache | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    client_metadata: dict[str, Any] | None = None
    keep_alive: float | None = None


@dataclass(frozen=True)
class Asked:
    """items: the whole conversation, what it goes on from included. headers: what the answer says of the request."""

    body: ResponseRequest
    ids: Ids
    items: list[Item]
    tools: Offered
    ask: Ask
    headers: dict[str, str]


def asked_of(body: ResponseRequest, before: Sequence[Item], find: Find) -> Asked:
    """What the request asks for. before: the items that it goes on from. find: items by their ids.

    Raises InvalidParameter, Unsupported."""
    _refuse(body)
    ids = Ids()
    tools = offered(body.tools or (), body.tool_choice)
    items = [*before, *items_of(body.input, ids, find)]
    messages = messages_of(items, tools.told)
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    effort = body.reasoning.effort if body.reasoning is not None else None
    ask = Ask(
        messages=messages,
        params=params_of(body),
        tools=tools.functions,
        tool_choice=tools.choice,
        thinking=None if effort is None else effort not in ("none", "minimal"),
        variables={} if effort is None else {"reasoning_effort": effort},
        one_call=body.parallel_tool_calls is False,
        keep=body.keep_alive,
    )
    headers = wire.ignored(body, [f"tools.{kind}" for kind in tools.left_out])
    return Asked(body, ids, items, tools, ask, headers)


def _refuse(body: ResponseRequest) -> None:
    if body.background:
        raise Unsupported("background: answers are given while their client waits")
    if body.conversation is not None:
        raise Unsupported("conversation: none are kept here; previous_response_id goes on from an answer")
    if body.prompt is not None:
        raise Unsupported("prompt: there are no templates here; give instructions and input")


def params_of(body: ResponseRequest) -> GenerateParams:
    if body.max_output_tokens is not None and body.max_output_tokens < 0:
        raise InvalidParameter(f"max_output_tokens={body.max_output_tokens}: must not be negative")
    options = body.options()
    if body.truncation == "auto":
        options["overflow"] = "drop-oldest"
    wanted = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    return GenerateParams(
        **options,
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if wanted else None,
        schema=wire.schema_of(None if body.text is None else body.text.format, "text.format"),
    )
