"""Options of an answer in the requests of clients: those of GenerateParams, by their names, in every dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from edgellm import GenerateParams
from edgellm.errors import InvalidParameter
from edgellm.option import Biases, Choice, Flag, Real, Rule, Strings, Whole

NAMES = [name for name in GenerateParams.OPTIONS if name not in ("schema", "logprobs", "max_tokens")]
"""What requests may have beside the fields of their protocol, whose words for these three are their own."""
ELSEWHERE = {
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "penalty_last_n",
    "typ_p": "typical_p",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
}
"""What options are called by the clients of vLLM, llama.cpp and Hugging Face."""
STRINGS = 1 << 16
"""Characters of all stop strings of a request."""
UNSET: dict[str, int] = {"max_tokens": -1, "seed": -1, "top_k": -1}
"""By what clients say that an option is not set, or off."""


def _described(schema: dict[str, Any]) -> None:
    """The options in the JSON Schema of a request, for OpenAPI."""
    properties = schema.setdefault("properties", {})
    for name in NAMES:
        option = GenerateParams.OPTIONS[name]
        about = {"anyOf": [_of_rule(option.rule), {"type": "null"}], "description": option.meaning}
        properties.setdefault(name, about)


class Request(BaseModel):
    """A request: the fields of its protocol, and options by GenerateParams' names."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_described, protected_namespaces=())

    def options(self) -> dict[str, Any]:
        """Those that were given, as GenerateParams takes them. Raises InvalidParameter."""
        named = {ELSEWHERE.get(name, name): value for name, value in (self.model_extra or {}).items()}
        return {name: taken(name, value) for name, value in named.items() if name in NAMES}

    def unknown(self) -> list[str]:
        """Fields that nobody here knows."""
        return [name for name in self.model_extra or {} if ELSEWHERE.get(name, name) not in NAMES]


def taken(name: str, value: Any) -> Any:
    """The value of an option as JSON has it, as GenerateParams takes it: numbers have one kind there, keys are texts,
    and what is empty is not given."""
    rule = GenerateParams.OPTIONS[name].rule
    if isinstance(rule, Whole) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if UNSET.get(name) == value and not isinstance(value, bool):
        return 0 if name == "top_k" else None
    if isinstance(rule, Strings):
        listed = [value] if isinstance(value, str) else value
        return _strings(name, listed) if isinstance(listed, list) else value
    if isinstance(rule, Biases) and isinstance(value, Mapping):
        try:
            return {int(token): bias for token, bias in value.items()}
        except ValueError:
            raise InvalidParameter(f"{name}: its keys must be token ids") from None
    return value


def _strings(name: str, listed: list[Any]) -> list[Any]:
    """Those that say something. Raises InvalidParameter where they are so many or so long that what is made of them,
    which is done on the event loop, holds others up."""
    size = sum(len(each) for each in listed if isinstance(each, str))
    if name != "choices" and size > STRINGS:  # which have a limit of their own
        raise InvalidParameter(f"{name}: {size:,} characters; {STRINGS:,} is the most")
    return [each for each in listed if each != ""]


def _of_rule(rule: Rule) -> dict[str, Any]:
    if isinstance(rule, Whole):
        return {"type": "integer", "minimum": rule.low, "maximum": rule.high}
    if isinstance(rule, Real):
        return {"type": "number", "minimum": rule.low}
    if isinstance(rule, Flag):
        return {"type": "boolean"}
    if isinstance(rule, Choice):
        return {"enum": list(rule.choices)}
    if isinstance(rule, Strings):
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return {"type": "object"} if isinstance(rule, Biases) else {"type": "string"}
