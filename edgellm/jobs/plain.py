"""Lines in edgellm's own words: a prompt or messages, and options of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgellm import Completion, GenerateParams, Model
from edgellm.arguments import is_int
from edgellm.errors import InvalidParameter
from edgellm.option import build
from edgellm.serve.ask import Ask, Message
from edgellm.serve.values import ELSEWHERE, taken

FIELDS = ("prompt", "messages", "id", "system", "raw", "thinking")  # beside the options of GenerateParams


@dataclass(frozen=True)
class Defaults:
    """What holds for plain lines that do not say otherwise.

    params: options of the answers. system: a system prompt, where a line is a prompt or its messages have none. raw:
    prompts are continued, without the chat template. thinking: of models that can choose.
    """

    params: GenerateParams = field(default_factory=GenerateParams)
    system: str | None = None
    raw: bool = False
    thinking: bool | None = None


def ask_of(body: Mapping[str, Any], defaults: Defaults, model: Model) -> Ask:
    """What a line asks for: as `edgellm run` would, a prompt goes through the model's chat template if it has one.
    Raises InvalidParameter."""
    system, raw = body.get("system", defaults.system), body.get("raw", defaults.raw)
    thinking = body.get("thinking", defaults.thinking)
    for name, value, kinds in (("system", system, str), ("raw", raw, bool), ("thinking", thinking, bool)):
        if value is not None and not isinstance(value, kinds):
            raise InvalidParameter(f"{name}: must be {'a string' if kinds is str else 'true or false'}")
    given = {ELSEWHERE.get(name, name): value for name, value in body.items() if name not in FIELDS}
    unknown = next((name for name in given if name not in GenerateParams.OPTIONS), None)
    if unknown is not None:
        raise InvalidParameter(f"unknown field {unknown[:100]!r}; `edgellm help options` lists those of an answer")
    options = {name: taken(name, value) for name, value in given.items()}
    params = build(GenerateParams, options, defaults.params)
    prompt, messages = body.get("prompt"), body.get("messages")
    if (prompt is None) == (messages is None):
        raise InvalidParameter("a line has a prompt or messages, one of them")
    if messages is not None:
        if raw and "raw" in body:
            raise InvalidParameter("raw: messages go through the chat template; give a prompt")
        listed = _messages(messages)
    elif _is_tokens(prompt):
        return Ask(prompt=prompt, params=params)
    elif not isinstance(prompt, str):
        raise InvalidParameter("prompt: must be a string, or a list of token ids")
    elif raw or model.info.chat_template is None:
        return Ask(prompt=prompt, params=params)
    else:
        listed = [{"role": "user", "content": prompt}]
    if system is not None and (not listed or listed[0].get("role") not in ("system", "developer")):
        listed = [{"role": "system", "content": system}, *listed]
    return Ask(messages=listed, params=params, thinking=thinking)


def answer_of(number: int, body: Mapping[str, Any], done: Completion) -> dict[str, Any]:
    """What is written: the words of `edgellm run --json`, but for how it was computed."""
    about = _head(number, body)
    about["text"] = done.text
    if done.reasoning:
        about["reasoning"] = done.reasoning
    about |= {"finish_reason": done.finish_reason, "usage": asdict(done.usage)}
    if done.logprobs is not None:
        about["logprobs"] = done.to_dict()["logprobs"]
    return about


def error_of(number: int, body: Mapping[str, Any], code: str, message: str) -> dict[str, Any]:
    """What is written where there is no answer."""
    return {**_head(number, body), "error": {"code": code, "message": message}}


def _head(number: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"line": number, **({"id": body["id"]} if "id" in body else {})}


def _messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise InvalidParameter("messages: must be a list of objects with role and content")
    return list(messages)


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(map(is_int, prompt))
