"""parse: the text of an answer as an instance of what was asked for."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin

from edgellm.arguments import shown
from edgellm.constrain.document import Document
from edgellm.constrain.instances import holds
from edgellm.constrain.kinds import (
    LISTS,
    TEXTS,
    as_pydantic,
    fields_of,
    is_constant,
    is_typed_dict,
    parameter_schema,
    schema_of,
    schema_of_type,
)
from edgellm.constrain.values import plain
from edgellm.errors import GenerationError

__all__ = ["parse", "schema_of", "strict_json"]


def strict_json(text: str, number: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text, in which no object has a key twice. Raises GenerationError.

    A grammar holds keys that are declared to one time each; of those that are not, only this knows.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in found if keys.count(key) > 1)
            raise GenerationError(f"the answer has the key {shown(twice)} twice in one object; ask again")
        return found

    def constant(word: str) -> Any:
        raise GenerationError(f"the answer holds {word}, which is no JSON; ask again")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=number or _double, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, an endless number
        raise GenerationError(f"the answer is no JSON: {str(error)[:200]}; ask again") from None


def _double(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise GenerationError(f"the answer holds the number {shown(text)}, beyond what a float can hold; ask again")
    return value


def parse(kind: Any, text: str) -> Any:
    """The answer as `kind`, anything that schema_of takes: an instance, or the JSON value where it is a dict or True.

    Raises GenerationError for what is not valid, which no answer is that ended under the constraint, but for: keys that
    an object repeats and its schema does not name; what validators of a pydantic model refuse that its schema does not
    say; numbers beyond a double.
    """
    value = strict_json(text)
    model = as_pydantic(kind)
    if model is not None:
        try:
            return model.model_validate_json(text)
        except Exception as error:  # pydantic's, or a validator's own
            raise GenerationError(f"{model.__name__} refuses the answer: {error}") from error
    schema = schema_of(kind)
    if not _valid(schema, value):
        raise GenerationError("the answer does not satisfy its schema; ask again")
    return value if isinstance(kind, Mapping) else _instance(kind, value)


def instance(kind: Any, value: Any) -> Any:
    """A value of JSON as any type that a field may have. Raises GenerationError for what is none of it, Unsupported."""
    if not _valid(parameter_schema(kind), value):
        raise GenerationError(f"{shown(value)} is not valid")
    return _instance(kind, value)


def _instance(kind: Any, value: Any) -> Any:
    """An instance of a value that is valid; what a class raises as it is made refuses the value."""
    try:
        return _made(kind, value)
    except GenerationError:
        raise
    except Exception as error:
        raise GenerationError(str(error) or type(error).__name__) from error


def _valid(schema: dict[str, Any], value: Any) -> bool:
    document = Document(plain(schema))
    return holds(document, ((document.root, True),), value)


def _made(kind: Any, value: Any) -> Any:
    """An instance of a value that is valid."""
    model = as_pydantic(kind)
    if model is not None:
        try:
            return model.model_validate_json(json.dumps(value))
        except Exception as error:  # pydantic's, or a validator's own
            raise GenerationError(f"{model.__name__} refuses it: {error}") from error
    if isinstance(kind, type):
        if kind in TEXTS:
            return _text(kind, value)
        if issubclass(kind, enum.Enum):
            return next(member for member in kind if is_constant(_plain(member.value), value))
        if dataclasses.is_dataclass(kind):
            names = {name: hint for name, hint, _, _ in fields_of(kind, kind.__name__)}
            return kind(**{name: _made(names[name], each) for name, each in value.items()})
        if is_typed_dict(kind):
            names = {name: hint for name, hint, _, _ in fields_of(kind, kind.__name__)}
            return {name: _made(names[name], each) for name, each in value.items()}
        if kind in (int, float) and not isinstance(value, bool):
            return kind(value)
    return _generic(kind, get_origin(kind) or kind, get_args(kind), value)


def _generic(kind: Any, origin: Any, inner: tuple[Any, ...], value: Any) -> Any:
    if origin is typing.Annotated:
        return _made(inner[0], value)
    if origin is typing.Literal:
        return next(each for each in inner if is_constant(_plain(each), value))
    if origin in (Union, types.UnionType):
        return _made(next(each for each in inner if _fits(each, value)), value)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return tuple(_made(each, part) for each, part in zip(inner, value, strict=True))
    if origin in LISTS or origin is tuple:
        items = [_made(inner[0], each) for each in value] if inner else value
        return origin(items) if origin in (set, frozenset, tuple) else items
    if origin in (dict, Mapping) and inner:
        return {name: _made(inner[1], each) for name, each in value.items()}
    return value


def _text(kind: type, value: str) -> Any:
    try:
        return TEXTS[kind][1](value)
    except ValueError as error:
        raise GenerationError(f"{shown(value)} is no {kind.__name__}: {error}") from error


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of one type of a union."""
    return _valid(schema_of_type(kind, "a union"), value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value
