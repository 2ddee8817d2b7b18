"""Options of an answer in the requests of clients: those of GenerateParams, by their names, in every dialect."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from edgellm import GenerateParams
from edgellm.errors import InvalidParameter
from edgellm.option import Biases, Choice, Flag, Real, Rule, Strings, Whole
from edgellm.serve.settings import lasting
from edgellm.serve.values import ELSEWHERE as ELSEWHERE
from edgellm.serve.values import NAMES as NAMES
from edgellm.serve.values import taken as taken

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = 100  # characters of a duration
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")


def seconds_of(keep: Any) -> Any:
    """`keep_alive` in seconds, or None: a number of them, or a duration as Go writes it, such as "1h30m"; what is below
    zero is for ever. Raises InvalidParameter. https://pkg.go.dev/time#ParseDuration"""
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
    if not isinstance(keep, (int, float)):
        raise InvalidParameter(f"keep_alive={str(keep)[:50]}: must be a number of seconds")
    return lasting(float(keep))


Keep = Annotated[float | None, BeforeValidator(seconds_of, json_schema_input_type=float | str | None)]
"""How long a model stays, as every protocol's clients may say it."""


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
