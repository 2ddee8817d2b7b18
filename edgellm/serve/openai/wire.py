"""What the routes of OpenAI's protocol have in common."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgellm import Completion, ToolCall, __version__
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.events import TokenLogprob
from edgellm.serve.ask import Answering, Waiting
from edgellm.serve.endpoint import Call
from edgellm.serve.ledger import Entry
from edgellm.serve.options import Request

REASONS = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "cancelled": "stop", "timeout": "length"}
IGNORED = "x-edgellm-ignored"  # header: fields of a request that have no effect here
WORDS = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
"""What may be said of the tools that a model has; the last one is Mistral's and Anthropic's."""
TOLERATED = {
    *("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("prediction", "verbosity", "add_generation_prompt", "cache_prompt", "chat_id", "session_id"),
}
"""Fields that change nothing of an answer, and are not worth a word."""


class StreamOptions(Request):
    include_usage: bool | None = None


def wants_usage(options: StreamOptions | None) -> bool:
    """Whether a stream ends with a chunk that has the usage; the others say that it is null then."""
    return options is not None and bool(options.include_usage)


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


def fingerprint(answering: Answering) -> str:
    return f"edgellm-{__version__}-{answering.model.info.fingerprint[:8]}"


def unused(body: Request, more: Iterable[str] = ()) -> list[str]:
    """The fields of a request that nobody knows, and more that has no effect."""
    return sorted({*(name for name in body.unknown() if name not in TOLERATED), *more})


def ignored(body: Request, more: Iterable[str] = ()) -> dict[str, str]:
    """The header that names them."""
    said = ", ".join(name for name in unused(body, more) if name.isascii() and name.isprintable())[:500]
    return {IGNORED: said} if said else {}


def usage(done: Sequence[Completion]) -> dict[str, Any]:
    """Of the choices of one answer, whose prompt counts once."""
    first = done[0].usage
    produced = sum(each.usage.completion_tokens for each in done)
    reasoning = sum(each.usage.reasoning_tokens for each in done)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": produced,
        "total_tokens": first.prompt_tokens + produced,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def timings(done: Completion) -> dict[str, Any]:
    """In the words of llama.cpp's server, which its clients show."""
    each = done.timings
    return {
        "cache_n": done.usage.cached_tokens,
        "prompt_n": done.cache.computed,
        "prompt_ms": each.prefill_ms,
        "prompt_per_second": each.prefill_tokens_per_second,
        "predicted_n": done.usage.completion_tokens,
        "predicted_ms": each.decode_ms,
        "predicted_per_second": each.decode_tokens_per_second,
    }


def report(done: Completion) -> dict[str, Any]:
    """What edgellm knows of an answer: where its prompt came from and why, and how long it took."""
    about = {"cache": asdict(done.cache), "timings": asdict(done.timings), "seed": done.seed}
    return {**about, "backend": done.backend, "dropped": len(done.dropped)}


def progress(waiting: Waiting, milliseconds: float) -> dict[str, Any]:
    """How far a prompt is read, in the words of llama.cpp's server."""
    tokens = {"total": waiting.total, "cache": waiting.known, "processed": waiting.done}
    return {**tokens, "time_ms": round(milliseconds)}


def call_of(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)  # spaced as in a stream
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def logprob(each: TokenLogprob) -> dict[str, Any]:
    top = [_logprob(text, value) for _, text, value in each.top]
    return {**_logprob(each.text, each.logprob), "top_logprobs": top}


def _logprob(text: bytes, value: float) -> dict[str, Any]:
    return {"token": text.decode("utf-8", "replace"), "bytes": list(text), "logprob": max(value, -9999.0)}


def keep_report(call: Call[Any], id: str) -> Any:
    """A follower: the report of an answer can be asked for by its id."""

    def keep(answering: Answering, done: Completion) -> None:
        call.state.ledger.add(Entry.of(id, answering, done))

    return keep


def schema_of(form: Mapping[str, Any] | None, field: str = "response_format") -> Any:
    """The schema that the `field` of a request asks for. Raises InvalidParameter, Unsupported."""
    kind = (form or {}).get("type", "text")
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise Unsupported(f"{field}: type {kind!r}; there are text, json_object and json_schema")
    schema = form.get("json_schema", form)
    schema = schema.get("schema") if isinstance(schema, Mapping) else None
    if not isinstance(schema, (Mapping, bool)):
        raise InvalidParameter(f"{field}: json_schema needs a schema")
    return schema


def names_of(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of functions, which stand in `function` or by themselves."""
    functions = [each.get("function", each) for each in tools]
    return [str(each.get("name")) for each in functions if isinstance(each, Mapping)]


def choice_of(choice: Any, names: Sequence[str]) -> str:
    """`tool_choice` in one word: auto, none, required or the name of a tool. Raises InvalidParameter."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in WORDS:
            raise InvalidParameter(f"tool_choice={choice[:50]!r}: must be auto, none, required or a function")
        return WORDS[choice]
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            return choice_of(allowed.get("mode", "auto"), names)
        if choice.get("type") in WORDS:  # as other protocols write them
            return choice_of(choice["type"], names)
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name in names:
            return name
        raise InvalidParameter(f"tool_choice: there is no tool {str(name)[:100]!r}")
    raise InvalidParameter("tool_choice: must be auto, none, required or a function")
