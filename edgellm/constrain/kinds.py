"""schema_of: the JSON Schema of a Python type: a dict that is one, a pydantic model, a dataclass or a TypedDict."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import importlib
import sys
import types
import typing
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, Union, cast, get_args, get_origin

from edgellm.arguments import shown
from edgellm.constrain.values import name_of
from edgellm.errors import InvalidParameter, Unsupported

Json = dict[str, Any]

_PLAIN: dict[Any, Json] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}
# How each is written, and read again.
TEXTS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    datetime.date: ("date", datetime.date.fromisoformat),
    datetime.datetime: ("date-time", lambda text: datetime.datetime.fromisoformat(_zoned(text))),
    datetime.time: ("time", lambda text: datetime.time.fromisoformat(_zoned(text))),
    uuid.UUID: ("uuid", uuid.UUID),
}
LISTS = (list, set, frozenset, Sequence, Iterable, Collection)
PYDANTIC = "pydantic.json_schema"
_NO_DEMAND = ("path", "password")  # formats that pydantic writes and never looks at


class PydanticModel(Protocol):
    """What is used of a pydantic model (version 2), which is recognised by these."""

    @classmethod
    def model_json_schema(cls) -> Json: ...

    @classmethod
    def model_validate_json(cls, json_data: str) -> Any: ...


def _zoned(text: str) -> str:
    """An RFC 3339 time as every Python reads it: before 3.11 it knows no Z, and fractions of six digits alone."""
    text = text.upper().replace("Z", "+00:00")
    whole, point, rest = text.partition(".")
    if not point:
        return text
    digits = rest[: next((at for at, letter in enumerate(rest) if letter in "+-"), len(rest))]
    return f"{whole}.{digits[:6]:0<6}{rest[len(digits) :]}"


def as_pydantic(kind: object) -> type[PydanticModel] | None:
    names = ("model_json_schema", "model_validate_json")
    found = isinstance(kind, type) and all(callable(getattr(kind, name, None)) for name in names)
    return cast("type[PydanticModel]", kind) if found else None


def is_typed_dict(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def schema_of(kind: object) -> Json:
    """The JSON Schema of what an answer is to be; objects hold no more than the fields that are declared.

    Raises InvalidParameter for what is no such type, Unsupported for a type that cannot be said, by the field's path.
    """
    if isinstance(kind, Mapping):
        return dict(kind)
    model = as_pydantic(kind)
    if model is not None:
        try:
            return cast(Json, _tidied(_written(model)))
        except Exception as error:  # whatever pydantic and its users' hooks raise
            raise Unsupported(f"{model.__name__}: pydantic writes no JSON Schema of it: {error}") from error
    if not (isinstance(kind, type) and (dataclasses.is_dataclass(kind) or is_typed_dict(kind))):
        raise InvalidParameter(
            f"schema: {shown(kind)}: give a JSON Schema (a dict), a pydantic model, a dataclass or a TypedDict"
        )
    return schema_of_type(kind, kind.__name__)


def parameter_schema(kind: Any) -> Json:
    """The JSON Schema of the type of a parameter: a pydantic model, or what a field may have. Raises Unsupported."""
    return schema_of(kind) if as_pydantic(kind) is not None else schema_of_type(kind, "its type")


def schema_of_type(kind: Any, path: str) -> Json:
    """The JSON Schema of any type that a field may have; `path` names it in messages. Raises Unsupported."""
    described = _Described()
    root = described.of(kind, path)
    return {**root, "$defs": described.definitions}


def _written(model: type[PydanticModel]) -> Json:
    """pydantic's schema with Decimals as numbers alone, and sets as lists in which an item may come again."""
    pydantic: Any = importlib.import_module(PYDANTIC) if PYDANTIC in sys.modules else None
    if pydantic is None:  # something else with the same methods
        return model.model_json_schema()

    class Writer(pydantic.GenerateJsonSchema):  # type: ignore[misc]
        def decimal_schema(self, schema: Any) -> Any:
            found = super().decimal_schema(schema)
            return next((way for way in found.get("anyOf", ()) if way.get("type") == "number"), found)

        def set_schema(self, schema: Any) -> Any:
            return _repeatable(super().set_schema(schema))

        def frozenset_schema(self, schema: Any) -> Any:
            return _repeatable(super().frozenset_schema(schema))

    write: Any = model.model_json_schema
    return cast(Json, write(schema_generator=Writer))


def _repeatable(schema: Json) -> Json:
    """The list of a set: with no least size, an item that comes again changes nothing."""
    return {name: value for name, value in schema.items() if name != "uniqueItems" or schema.get("minItems")}


def _tidied(part: Any) -> Any:
    """pydantic's schema with objects that are closed, and without formats that demand nothing."""
    if isinstance(part, list):
        return [_tidied(each) for each in part]
    if not isinstance(part, dict):
        return part
    found = {
        name: part[name] if name in ("default", "examples", "const", "enum") else _tidied(part[name]) for name in part
    }
    if found.get("format") in _NO_DEMAND and found.get("type") == "string":
        del found["format"]
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


class _Described:
    """The schemas of types, those of classes in `definitions`: they may hold themselves."""

    def __init__(self) -> None:
        self.definitions: dict[str, Json] = {}
        self._names: dict[type, str] = {}

    def of(self, kind: Any, path: str) -> Json:
        if kind in _PLAIN if isinstance(kind, (type, types.NoneType)) or kind is Any else False:
            return dict(_PLAIN[kind])
        if kind in TEXTS if isinstance(kind, type) else False:
            return {"type": "string", "format": TEXTS[kind][0]}
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"enum": [self._constant(member.value, path) for member in kind]}
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or is_typed_dict(kind)):
            return self._class(kind, path)
        model = as_pydantic(kind)
        if model is not None:
            raise Unsupported(f"{path}: a pydantic model in a dataclass or TypedDict; make all of them pydantic models")
        return self._generic(kind, get_origin(kind) or kind, get_args(kind), path)

    def _generic(self, kind: Any, origin: Any, inner: tuple[Any, ...], path: str) -> Json:
        if origin is typing.Annotated:
            return self._annotated(self.of(inner[0], path), inner[1:], path)
        if origin is typing.Literal:
            return {"enum": [self._constant(value, path) for value in inner]}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.of(each, path) for each in inner]}
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            each = [self.of(part, f"{path}[{at}]") for at, part in enumerate(inner)]
            return {"type": "array", "prefixItems": each, "items": False, "minItems": len(each)}
        if origin in LISTS or origin is tuple:
            items = self.of(inner[0], f"{path}[]") if inner else {}
            return {"type": "array", "items": items}
        if origin in (dict, Mapping):
            if inner and inner[0] is not str:
                raise Unsupported(f"{path}: keys of the type {shown(inner[0])}; JSON's are strings: use dict[str, ...]")
            return {"type": "object", "additionalProperties": self.of(inner[1], f"{path}{{}}") if inner else True}
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise Unsupported(f"{path}: the type {name} has no form in JSON; use str, a dataclass, or what it is made of")

    def _annotated(self, schema: Json, notes: Iterable[Any], path: str) -> Json:
        """A text is a description, a dict has keywords of JSON Schema; other notes would not be enforced."""
        for note in notes:
            if isinstance(note, str):
                schema = {**schema, "description": note}
            elif isinstance(note, dict):
                schema = {**schema, **note}
            else:
                raise Unsupported(
                    f"{path}: Annotated with {shown(note)} would not be enforced; write a dict of keywords"
                )
        return schema

    def _constant(self, value: Any, path: str) -> Any:
        if isinstance(value, enum.Enum):
            value = value.value
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise Unsupported(
            f"{path}: the value {shown(value)} has no form in JSON; use texts, numbers, True, False or None"
        )

    def _class(self, kind: type, path: str) -> Json:
        if kind not in self._names:
            name, count = kind.__name__, 1
            while name in self.definitions:
                name, count = f"{kind.__name__}{count}", count + 1
            self._names[kind] = name
            self.definitions[name] = {}
            self.definitions[name].update(self._object(kind, path))
        return {"$ref": f"#/$defs/{self._names[kind]}"}

    def _object(self, kind: type, path: str) -> Json:
        properties, required = {}, []
        for name, hint, needed, default in fields_of(kind, path):
            properties[name] = self.of(hint, f"{path}.{name}")
            if needed:
                required.append(name)
            elif default is None or isinstance(default, (bool, int, float, str)):
                properties[name] = {**properties[name], "default": default}
        found: Json = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        documented = kind.__doc__ or ""
        if documented and not documented.startswith(f"{kind.__name__}("):  # what dataclasses write of themselves
            found["description"] = documented.strip()
        return found


def fields_of(kind: type, path: str) -> list[tuple[str, Any, bool, Any]]:
    """The fields of a dataclass or TypedDict: name, type, whether it must be there, and its default."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # names that are not there, and whatever else evaluating them raises
        raise Unsupported(f"{path}: its types cannot be read: {error}; declare them at the top of a module") from error
    if is_typed_dict(kind):
        always = getattr(kind, "__required_keys__", frozenset(hints))
        return [(name, *_needed(hint, name in always), ...) for name, hint in hints.items()]
    found = []
    for each in dataclasses.fields(cast(Any, kind)):
        if each.init:
            needed = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            found.append((each.name, hints[each.name], needed, each.default))
    return found


def _needed(hint: Any, needed: bool) -> tuple[Any, bool]:
    """The type within Required, NotRequired and ReadOnly, and whether the key must be there."""
    while str(getattr(get_origin(hint), "_name", "")) in ("Required", "NotRequired", "ReadOnly"):
        word = str(getattr(get_origin(hint), "_name", ""))
        needed = needed if word == "ReadOnly" else word == "Required"
        hint = get_args(hint)[0]
    return hint, needed


def is_constant(kind: Any, value: Any) -> bool:
    """Whether a JSON value is of a Literal's or an Enum's kind."""
    return name_of(kind) == name_of(value) and kind == value
