"""The keywords of JSON Schema 2020-12, what each must hold, and the older ones that mean the same."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from edgellm.arguments import shown
from edgellm.constrain import formats
from edgellm.constrain.regex import Irregular, translate
from edgellm.constrain.values import is_whole, key, pointer
from edgellm.errors import InvalidParameter, Unsupported

Path = tuple[str | int, ...]
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

SCHEMA = (
    *("additionalProperties", "unevaluatedProperties", "propertyNames", "items", "unevaluatedItems", "contains"),
    *("not", "if", "then", "else"),
)
SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")

ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$anchor", "$dynamicAnchor", "$defs", "definitions"),
        "discriminator",  # OpenAPI's, which pydantic writes: the oneOf beside it says all
    )
)

# What is known and never enforced, and what to do instead.
_HINTS = {
    "x-guidance": "remove it: it would switch off what the schema demands",
    "contentEncoding": 'it says what is in a string and demands nothing; use "pattern"',
    "contentMediaType": 'it says what is in a string and demands nothing; use "pattern", or the schema of the content',
    "contentSchema": "it says what is in a string and demands nothing; use the schema in the string's place",
    "$recursiveRef": 'use "$ref"',
    "$recursiveAnchor": 'use "$anchor" and "$ref"',
    "$vocabulary": "it is for schemas of schemas; remove it",
    "additionalItems": 'use "prefixItems" for the first items and "items" for the others',
    "nullable": 'write "type": ["string", "null"], with the type that it is',
    "example": 'use "examples", a list',
    "id": 'it is "$id" since draft 6',
    "divisibleBy": 'use "multipleOf"',
    "extends": 'use "allOf"',
    "disallow": 'use "not"',
}

LONGEST_PATTERN = 2_000  # characters
# Counts above these make grammars that are compiled or asked for seconds, and no answer of a model is so long.
_MOST = {
    **dict.fromkeys(("minItems", "maxItems", "minContains", "maxContains"), 1_000),
    **dict.fromkeys(("minProperties", "maxProperties"), 1_000),
    **dict.fromkeys(("minLength", "maxLength"), 100_000),
}
MOST_VALUES = 2_000  # of an enum: 5,000 take llguidance 20 ms, and 20,000 take 0.3 s
MOST_NAMES = 1_000  # properties of one schema


def _count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_string, value)) and len(set(value)) == len(value)


def _types(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and each in TYPES for each in value) and _names(value)
    return isinstance(value, str) and value in TYPES


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _values(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _anything(value: Any) -> bool:
    return True


def _schema(value: Any) -> bool:
    return isinstance(value, (bool, dict))


def _schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_schema, value))


def _named(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_schema, value.values()))


def _dependents(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_names, value.values()))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(SCHEMA, (_schema, "a schema: an object, true or false")),
    **dict.fromkeys(SCHEMAS, (_schemas, "a list of schemas that is not empty")),
    **dict.fromkeys(NAMED, (_named, "an object of schemas")),
    **dict.fromkeys(
        (
            *("minLength", "maxLength", "minItems", "maxItems"),
            *("minProperties", "maxProperties", "minContains", "maxContains"),
        ),
        (_count, "a whole number, at least 0"),
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (_number, "a number")),
    "multipleOf": (lambda value: _number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(
        ("pattern", "format", "$ref", "$dynamicRef", "$id", "$anchor", "$dynamicAnchor"), (_string, "a string")
    ),
    **dict.fromkeys(("title", "description", "$comment", "$schema"), (_string, "a string")),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), (_flag, "true or false")),
    "required": (_names, "a list of names, each once"),
    "dependentRequired": (_dependents, "an object of lists of names, each once"),
    "type": (_types, f"one of {', '.join(TYPES)}, or a list of them, each once"),
    "enum": (_values, "a list of values that is not empty"),
    "examples": (_list, "a list"),
    **dict.fromkeys(("const", "default", "discriminator"), (_anything, "")),
}
KNOWN = tuple(_RULES)


def check(schema: dict[str, Any], path: Path) -> None:
    """Every keyword of this schema is known and holds what it may. Raises InvalidParameter or Unsupported."""
    for name, value in schema.items():
        where = f"schema: {pointer(path)}"
        if name in _HINTS:
            raise Unsupported(f"{where}: {shown(name)} would not be enforced; {_HINTS[name]}")
        if name not in _RULES:
            near = difflib.get_close_matches(name, KNOWN, 1, 0.6)
            hint = f"did you mean {shown(near[0])}?" if near else "remove it"
            raise Unsupported(f"{where}: {shown(name)} is no keyword of JSON Schema and would not be enforced; {hint}")
        holds, rule = _RULES[name]
        if not holds(value):
            raise InvalidParameter(f"{where}: {shown(name)} is {shown(value)}; it must be {rule}")
        _limited(name, value, where)


def _limited(name: str, value: Any, where: str) -> None:
    """Refuses what is too large, and formats and patterns that no grammar holds."""
    if name in _MOST and value > _MOST[name]:
        raise Unsupported(
            f'{where}: "{name}" is {value:,}; at most {_MOST[name]:,} are counted: lower it, or remove it'
        )
    if name == "enum" and len(value) > MOST_VALUES:
        raise Unsupported(f'{where}: "enum" of {len(value):,} values; at most {MOST_VALUES:,} are tried at once')
    if name in NAMED and name not in ("$defs", "definitions") and len(value) > MOST_NAMES:
        raise Unsupported(f'{where}: "{name}" of {len(value):,} names; at most {MOST_NAMES:,} are tried at once')
    if name == "format" and value not in formats.NAMES:
        near = difflib.get_close_matches(value, formats.NAMES, 1, 0.6)
        hint = f"did you mean {shown(near[0])}?" if near else 'write a "pattern" that says it'
        raise Unsupported(f'{where}: "format" {shown(value)} is not known and would not be enforced; {hint}')
    for pattern in [value] if name == "pattern" else value if name == "patternProperties" else ():
        if len(pattern) > LONGEST_PATTERN:
            raise Unsupported(
                f"{where}: a pattern of {len(pattern):,} characters; at most {LONGEST_PATTERN:,} are read"
            )
        try:
            translate(pattern)
        except Irregular as error:
            raise Unsupported(f'{where}: "{name}" {shown(pattern)}: {error}') from None


def translated(schema: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same schema with 2020-12's keywords in the place of older ones: item lists and `dependencies`."""
    found = dict(schema)
    if isinstance(found.get("items"), list):
        first, others = found.pop("items"), found.pop("additionalItems", True)
        if "prefixItems" in found:
            raise InvalidParameter(
                f'schema: {pointer(path)}: "items" is a list beside "prefixItems"; it must be a schema'
            )
        found |= ({"prefixItems": first} if first else {}) | {"items": others}
    if isinstance(found.get("dependencies"), dict):
        needs = found.pop("dependencies")
        if "dependentRequired" in found or "dependentSchemas" in found:
            raise Unsupported(f'schema: {pointer(path)}: "dependencies" beside what replaces it; use one of them')
        found["dependentRequired"] = {name: each for name, each in needs.items() if isinstance(each, list)}
        found["dependentSchemas"] = {name: each for name, each in needs.items() if not isinstance(each, list)}
    return found


def distinct(values: list[Any]) -> list[Any]:
    """The values, each once."""
    return list({key(value): value for value in values}.values())
