"""What a request of Anthropic's protocol asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgellm import GenerateParams
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.anthropic.history import messages_of
from edgellm.serve.ask import Ask
from edgellm.serve.openai.wire import IGNORED
from edgellm.serve.options import Request, taken

V = TypeVar("V")

TOLERATED = {
    *("metadata", "service_tier", "container", "context_management", "betas", "anthropic_beta", "anthropic_version"),
    *("cache_control", "inference_geo", "speed", "user_profile_id", "workspace_id"),
}
"""Fields that change nothing of an answer, and are not worth a word."""
CHOICES = {"auto": "auto", "any": "required", "none": "none"}  # and "tool"
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
THINKS = {"enabled": True, "adaptive": True, "disabled": False, "between_tools": False}
"""The last one turns it off, and shows what is said between calls as thinking, which no model here does."""


class CountRequest(Request):
    """https://platform.claude.com/docs/en/api/messages/count_tokens"""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    keep_alive: float | None = None


class MessagesRequest(CountRequest):
    """https://platform.claude.com/docs/en/api/messages/create"""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    diagnostics: dict[str, Any] | None = None

    @property
    def omits(self) -> bool:
        """Whether reasoning is not to be shown."""
        return (self.thinking or {}).get("display") == "omitted"


@dataclass(frozen=True)
class Asked:
    """ask: what is wanted. ignored: the header that names what has no effect here."""

    ask: Ask
    ignored: Mapping[str, str]


def asked(body: CountRequest) -> Asked:
    """What a request asks for. Raises InvalidParameter, Unsupported."""
    names = {name for name in body.unknown() if name not in TOLERATED}
    messages = messages_of(body.system, body.messages, names)
    variables: dict[str, Any] = {}
    effort = (body.output_config or {}).get("effort")
    if effort is not None:
        variables["reasoning_effort"] = _meant(EFFORTS, effort, "output_config.effort")
    if messages and messages[-1]["role"] == "assistant":
        _prefill(messages, variables)
    tools = _tools(body.tools or (), names)
    choice = body.tool_choice or {}
    ask = Ask(
        messages=messages,
        params=_params(body),
        tools=tools,
        tool_choice=_choice(choice, tools),
        thinking=_thinking(body.thinking),
        variables=variables,
        one_call=choice.get("disable_parallel_tool_use") is True,
        keep=body.keep_alive,
    )
    said = ", ".join(name for name in sorted(names) if name.isascii() and name.isprintable())[:500]
    return Asked(ask, {IGNORED: said} if said else {})


def _prefill(messages: list[dict[str, Any]], variables: dict[str, Any]) -> None:
    """The answer goes on with the assistant's message at the end; with one that says nothing it begins."""
    if messages[-1].get("tool_calls"):
        raise InvalidParameter("messages: the last one calls tools; a tool_result for each of its calls must follow")
    if messages[-1]["content"].strip():
        variables["continue_final_message"] = True
    else:
        messages.pop()


def _params(body: CountRequest) -> GenerateParams:
    given = body.options()
    if isinstance(body, MessagesRequest):
        given["max_tokens"] = body.max_tokens
        if body.stop_sequences:
            given["stop"] = taken("stop", body.stop_sequences)
    budget = (body.thinking or {}).get("budget_tokens")
    if budget is not None:
        given.setdefault("thinking_budget", budget)
    return GenerateParams(**given, schema=_schema((body.output_config or {}).get("format") or body.output_format))


def _schema(form: Any) -> Any:
    if form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise Unsupported("output_config.format: must be of type json_schema")
    if not isinstance(form.get("schema"), Mapping):
        raise InvalidParameter("output_config.format: json_schema needs a schema")
    return form["schema"]


def _tools(tools: Sequence[dict[str, Any]], ignored: set[str]) -> list[dict[str, Any]]:
    """Those that have a schema; the others are Anthropic's own, which nobody here has."""
    found = []
    for tool in tools:
        if tool.get("type") in (None, "custom"):
            function = {key: tool[key] for key in ("name", "description") if tool.get(key) is not None}
            found.append({"type": "function", "function": {**function, "parameters": tool.get("input_schema")}})
        else:
            ignored.add(f"tools.{str(tool.get('name') or tool['type'])[:100]}")
    return found


def _choice(choice: Mapping[str, Any], tools: Sequence[dict[str, Any]]) -> str:
    kind = choice.get("type", "auto")
    if kind == "tool":
        name = choice.get("name")
        if name not in [tool["function"].get("name") for tool in tools]:
            raise InvalidParameter(f"tool_choice: there is no tool {str(name)[:100]!r}")
        return str(name)
    return _meant(CHOICES, kind, "tool_choice.type")


def _thinking(thinking: Mapping[str, Any] | None) -> bool | None:
    kind = (thinking or {}).get("type")
    if thinking is None or kind is None:
        return None
    return _meant(THINKS, kind, "thinking.type")


def _meant(words: Mapping[str, V], word: Any, where: str) -> V:
    if not isinstance(word, str) or word not in words:
        raise InvalidParameter(f"{where}={str(word)[:50]!r}: must be one of {', '.join(words)}")
    return words[word]
