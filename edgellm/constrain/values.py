"""JSON values: what may stand in a schema, and when two of them are the same."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import Any

from edgellm.constrain import patience
from edgellm.errors import InvalidParameter

DEEPEST = 64  # values in values: every level costs several calls of Python, here and where an answer is read
MOST = 50_000  # values in a schema, counted one by one

LARGEST = 300  # digits of a whole number: a double holds 308

_RAW = {8, 9, 10, 12, 13}  # control characters that JSON spells without \u


def name_of(value: object) -> str:
    """The type of a JSON value, as JSON Schema calls it; "integer" is not among them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def same(one: object, other: object) -> bool:
    """Equality as JSON Schema means it: 1 is 1.0, and is not true."""
    return key(one) == key(other)


def key(value: object) -> Hashable:
    """Equal for two values exactly when JSON Schema calls them equal."""
    kind = name_of(value)
    if isinstance(value, list):
        return kind, tuple(map(key, value))
    if isinstance(value, dict):
        return kind, frozenset((name, key(each)) for name, each in value.items())
    if kind == "number":
        return kind, Fraction(str(value))
    return kind, value


def is_whole(value: object) -> bool:
    """Whether it is an integer to JSON Schema: 1.0 is one, true is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or value.is_integer()


def writable(text: str) -> bool:
    """Whether a string can be written into JSON without `\\u`: no control characters but \\b \\t \\n \\f \\r."""
    return all((code >= 32 and code != 127) or code in _RAW for code in map(ord, text))


def pointer(path: tuple[str | int, ...]) -> str:
    """A JSON pointer (RFC 6901), the root being "#"."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def plain(value: object) -> Any:
    """A copy of a JSON value in Python's own types. Raises InvalidParameter, by pointer, for what is none."""
    left = MOST

    def copied(value: object, path: tuple[str | int, ...]) -> Any:
        nonlocal left
        left -= 1
        patience.step()
        if left < 0:
            raise InvalidParameter(f"schema: more than {MOST:,} values; make it smaller")
        if len(path) > DEEPEST * 2:
            raise InvalidParameter(
                f"schema: more than {DEEPEST} schemas in schemas, or one that contains itself; use $ref"
            )
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < 10**LARGEST:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, str):
            return _text(value, path)
        if isinstance(value, (list, tuple)):
            return [copied(each, (*path, at)) for at, each in enumerate(value)]
        if isinstance(value, Mapping):
            return {_text(name, path): copied(each, (*path, _text(name, path))) for name, each in value.items()}
        raise InvalidParameter(f"schema: {pointer(path)}: a {type(value).__name__} is no JSON value; write JSON's own")

    return copied(value, ())


def _text(value: object, path: tuple[str | int, ...]) -> str:
    if not isinstance(value, str):
        raise InvalidParameter(f"schema: {pointer(path)}: a {type(value).__name__} as a key; JSON's are strings")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidParameter(f"schema: {pointer(path)}: half of a surrogate pair; write valid Unicode") from None
    return str(value)
