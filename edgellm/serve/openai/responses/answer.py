"""Answer: the Response object of an answer, when it begins, when it is done, and when it fails."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from edgellm import Completion
from edgellm.serve.ask import Answering
from edgellm.serve.endpoint import dumped
from edgellm.serve.ledger import Entry, shared
from edgellm.serve.openai import wire
from edgellm.serve.openai.responses.items import Item
from edgellm.serve.openai.responses.request import Asked
from edgellm.serve.refusal import TOO_LONG, Refusal

SUMMARIES = ("auto", "concise", "detailed")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
VERBOSITIES = ("low", "medium", "high")
TOO_MANY = "rate_limit_exceeded"


class Answer:
    """Of one request. compared: the answer that its prompt is to be compared with."""

    def __init__(self, asked: Asked, answering: Answering, compared: Entry | None) -> None:
        self._asked = asked
        self._answering = answering
        self._compared = compared
        self._created = wire.now()

    def begun(self) -> dict[str, Any]:
        return self._response("in_progress", [])

    def failed(self, output: list[Item], why: Refusal) -> dict[str, Any]:
        told = why.code if why.code in (TOO_LONG, TOO_MANY) else "invalid_prompt" if why.status < 500 else ""
        return self._response("failed", output, error={"code": told or "server_error", "message": why.message})

    def ended(self, output: list[Item], done: Completion) -> dict[str, Any]:
        found: dict[str, Any] = {"usage": _usage(done, written=bool(self._asked.ask.params.cache))}
        options = self._asked.body.prompt_cache_options
        if options is not None and options.comparison_response_id is not None:
            found["prompt_cache_diagnostics"] = self._diagnostics(done)
        if cut(done):
            return self._response("incomplete", output, incomplete_details={"reason": "max_output_tokens"}, **found)
        return self._response("completed", output, completed_at=wire.now(), **found)

    def entry(self, done: Completion, kept: Any, size: int) -> Entry:
        """What is remembered of it."""
        return Entry.of(self._asked.ids.response, self._answering, done, parts=self._parts(), kept=kept, size=size)

    def _response(self, status: str, output: list[Item], **more: Any) -> dict[str, Any]:
        asked, body, params = self._asked, self._asked.body, self._asked.ask.params
        return {
            "id": asked.ids.response,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "background": False,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self._answering.listed.name,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": self._reasoning(),
            "safety_identifier": body.safety_identifier,
            "service_tier": None if body.service_tier is None else "default",
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": self._text(),
            "tool_choice": asked.tools.shown_choice,
            "tools": asked.tools.shown,
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
            **({} if body.prompt_cache_options is None else {"prompt_cache_options": self._cache_options()}),
            **more,
        }

    def _reasoning(self) -> dict[str, Any]:
        asked = self._asked.body.reasoning
        effort, summary = (None, None) if asked is None else (asked.effort, asked.summary)
        return {
            "effort": effort if effort in EFFORTS else None,
            "summary": summary if summary in SUMMARIES else None,
        }

    def _text(self) -> dict[str, Any]:
        asked = self._asked.body.text
        given = {} if asked is None or asked.format is None else asked.format
        form: dict[str, Any] = {"type": given.get("type", "text")}
        if form["type"] == "json_schema":
            inner = given.get("json_schema", given)
            schema = inner.get("schema")
            form |= {"name": str(inner.get("name", "answer")), "schema": schema if isinstance(schema, dict) else {}}
            form |= {"description": inner.get("description"), "strict": True}  # whatever was asked for
        verbosity = None if asked is None else asked.verbosity
        return {"format": form, "verbosity": verbosity if verbosity in VERBOSITIES else None}

    def _cache_options(self) -> dict[str, Any] | None:
        options = self._asked.body.prompt_cache_options
        return None if options is None else options.model_dump(exclude_none=True)

    def _parts(self) -> dict[str, bytes]:
        ask = self._asked.ask
        told = {"tools": list(ask.tools), "reasoning_effort": [ask.thinking, dict(ask.variables)]}
        return {name: hashlib.sha256(dumped(each)).digest() for name, each in told.items()}

    def _diagnostics(self, done: Completion) -> Mapping[str, Any]:
        """Where the prompt left the one that it is compared with, and why."""
        other, tokens = self._compared, self._answering.tokens
        if other is None:
            return {"type": "comparison_response_not_found"}
        same_model = other.model == self._answering.listed.name
        common = shared(other.prompt, tokens) if same_model else 0
        if common == min(len(other.prompt), len(tokens)):
            known = 2 * done.usage.cached_tokens > common  # what is on disk is known in blocks
            return {"type": "cache_hit" if known else "unavailable"}
        parts = self._parts()
        changed = next((name for name in parts if other.parts.get(name, parts[name]) != parts[name]), None)
        reason = "input_changed" if changed is None else f"{changed}_changed"
        if not same_model:
            reason = "model_changed"
        elif done.dropped:
            reason = "context_compacted"
        missed = {"cache_missed_tokens": len(tokens) - common, "comparison_reusable_tokens": common}
        return {"type": "cache_miss", "reason": reason, **missed}


def cut(done: Completion) -> bool:
    """Whether more was to come."""
    return wire.REASONS[done.finish_reason] == "length"


def _usage(done: Completion, *, written: bool) -> dict[str, Any]:
    usage = done.usage
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": computed if written else 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
