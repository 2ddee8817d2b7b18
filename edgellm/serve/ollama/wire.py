"""What the routes of Ollama's protocol have in common."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from edgellm import Completion
from edgellm.errors import InvalidParameter, ModelNotFound
from edgellm.serve.ask import EFFORT, Answering
from edgellm.serve.dialects import OLLAMA
from edgellm.serve.endpoint import Call, line
from edgellm.serve.models import Listed, Models
from edgellm.serve.refusal import NO_MODEL, Refusal
from edgellm.serve.settings import lasting

VERSION = "0.12.10"
"""Of the protocol: the first one whose calls of tools have ids."""
REASONS = {"stop": "stop", "length": "length", "tool_calls": "stop", "cancelled": "stop", "timeout": "length"}

LONGEST = 100  # characters of a duration
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")

Keep = float | str | None


def stamp(seconds: float | None = None) -> str:
    """A time, of now by default, as RFC 3339 has it."""
    at = datetime.fromtimestamp(time.time() if seconds is None else seconds, timezone.utc)
    return at.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def seconds_of(keep: Keep) -> float | None:
    """`keep_alive` in seconds: a number of them, or a duration as Go writes it, such as "1h30m"; what is below zero is
    for ever. Raises InvalidParameter. https://pkg.go.dev/time#ParseDuration"""
    if keep is None or keep == "":
        return None
    if isinstance(keep, str):
        text = keep.strip().removeprefix("+")
        size = text.removeprefix("-")
        try:
            number = float(size)
        except ValueError:
            if len(size) > LONGEST or _DURATION.sub("", size) or not size:  # it takes the square of a length
                wanted = "seconds, or a duration such as 5m or 1h30m"
                raise InvalidParameter(f"keep_alive={keep[:50]!r}: must be {wanted}") from None
            number = sum(float(count) * _UNITS[unit] for count, unit in _DURATION.findall(size))
        keep = -number if text.startswith("-") else number
    return lasting(float(keep))


def found(models: Models, name: str | None) -> Listed:
    """The model that a client means. Raises Refusal in the words that clients look for."""
    try:
        return models.find(name)
    except ModelNotFound as error:
        said = f'model "{(name or "")[:200]}" not found, try pulling it first: {error}'
        raise Refusal(404, said, NO_MODEL, "model") from None


def full_name(name: str) -> str:
    """With a tag, as Ollama's names have one: clients put `:latest` behind those that lack it."""
    return name if ":" in name else f"{name}:latest"


def failed(why: Refusal) -> bytes:
    """The last line of an answer that failed in its midst."""
    return line(OLLAMA.error(why))


def nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def measured(answering: Answering, done: Completion) -> dict[str, Any]:
    """How an answer ended, and what it took. prompt_eval_count counts all tokens of the prompt; prompt_eval_cached of
    them, which is edgellm's own, did not have to be computed."""
    now = time.monotonic()
    return {
        "done": True,
        "done_reason": REASONS[done.finish_reason],
        "total_duration": round((now - answering.begun) * 1e9),
        "load_duration": round((answering.loaded - answering.begun) * 1e9),
        "prompt_eval_count": done.usage.prompt_tokens,
        "prompt_eval_cached": done.usage.cached_tokens,
        "prompt_eval_duration": nanoseconds(done.timings.prefill_ms),
        "eval_count": done.usage.completion_tokens,
        "eval_duration": nanoseconds(done.timings.decode_ms),
    }


async def kept(call: Call[Any], listed: Listed, keep: float | None) -> str:
    """Load a model that nothing is asked of, or unload it where it is to be kept for no time; says which."""
    models = call.state.models
    if keep != 0:
        async with models.use(listed, keep):
            return "load"
    resident = models.resident(listed)
    if resident is not None and resident.users:
        resident.keep = 0.0  # it goes when they are done
    else:
        await models.unload(listed)
    return "unload"


def think_of(think: bool | str | None) -> tuple[bool | None, Mapping[str, Any]]:
    """Whether the model shall think, and variables of its template. Raises InvalidParameter."""
    if think is None or think == "":
        return None, {}
    if isinstance(think, bool):
        return think, {}
    if think not in ("low", "medium", "high"):
        raise InvalidParameter(f"think={think[:50]!r}: must be true, false, low, medium or high")
    return True, {EFFORT: think}


def form_of(form: Any) -> Any:
    """The schema that `format` asks for: that itself, or "json", which is any object. Raises InvalidParameter."""
    if form is None or form == "":
        return None
    if form == "json":
        return {"type": "object"}
    if not isinstance(form, Mapping):
        raise InvalidParameter("format: must be 'json' or a JSON schema")
    return form
