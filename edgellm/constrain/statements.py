"""direct: what the keywords of one schema say by themselves, as a Shape; the others combine schemas (branches.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgellm.constrain.document import Place
from edgellm.constrain.formats import LONGEST, pattern_of
from edgellm.constrain.instances import State, exact
from edgellm.constrain.regex import translate
from edgellm.constrain.shapes import (
    ANY,
    NOTHING,
    Array,
    Contained,
    Layer,
    Number,
    Object,
    Shape,
    String,
    least_of,
    numbers,
    settled,
)
from edgellm.constrain.values import key, name_of

NEVER: State = ((Place(False, (), ""), True),)
MARKED = (
    "uniqueItems",
    "contains",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "patternProperties",
    "multipleOf",
)

Inner = Callable[..., State]


def only(rest_of: Shape = NOTHING, **types: Any) -> Shape:
    """A shape of the types that are given; of the others, what `rest_of` leaves."""
    return replace(rest_of, **types)


def direct(place: Place, inner: Inner) -> Shape:
    schema = place.schema
    assert isinstance(schema, dict)
    shape = _typed(schema["type"]) if "type" in schema else ANY
    found: dict[str, Any] = {}
    if shape.number:
        found["number"] = numbers(shape.number, number_of(schema))
    if shape.string:
        found["string"] = string_of(schema)
    if shape.array:
        found["array"] = array_of(schema, inner)
    if shape.object:
        found["object"] = object_of(schema, inner)
    marks = tuple((keyword, place.where) for keyword in MARKED if keyword in schema)
    return replace(shape, **found, marks=marks) if schema.keys() - {"type"} else shape


def _typed(types: str | list[str]) -> Shape:
    names = [types] if isinstance(types, str) else types
    return Shape(
        "null" in names,
        frozenset((False, True)) if "boolean" in names else frozenset(),
        Number() if "number" in names else settled(Number(integer=True)) if "integer" in names else None,
        String() if "string" in names else None,
        Array() if "array" in names else None,
        Object() if "object" in names else None,
    )


def number_of(schema: dict[str, Any]) -> Number:
    found: Number | None = Number()
    for keyword, value in schema.items():
        limit = number_limit(keyword, value)
        found = found and limit and numbers(found, limit)
    return found or _NO_NUMBER


_NO_NUMBER = Number(low=exact(1), high=exact(0))


def number_limit(keyword: str, value: Any) -> Number | None:
    if keyword in ("minimum", "exclusiveMinimum"):
        return Number(low=exact(value), above=keyword != "minimum")
    if keyword in ("maximum", "exclusiveMaximum"):
        return Number(high=exact(value), below=keyword != "maximum")
    return Number(step=exact(value)) if keyword == "multipleOf" else Number()


def string_of(schema: dict[str, Any]) -> String | None:
    patterns = [translate(schema["pattern"])] if "pattern" in schema else []
    most = int(schema["maxLength"]) if "maxLength" in schema else None
    if "format" in schema:
        patterns.append(pattern_of(schema["format"]))
        most = least_of(most, LONGEST.get(schema["format"]))
    least = int(schema.get("minLength", 0))
    return None if most is not None and least > most else String(least, most, tuple(dict.fromkeys(patterns)))


def array_of(schema: dict[str, Any], inner: Inner) -> Array | None:
    prefix = tuple(inner("prefixItems", at) for at in range(len(schema.get("prefixItems", ()))))
    rest = inner("items") if "items" in schema else ()
    least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
    contained: tuple[Contained, ...] = ()
    if "contains" in schema:
        fewest, limit = int(schema.get("minContains", 1)), schema.get("maxContains")
        if limit is not None and limit < fewest:
            return None
        if fewest or limit is not None:
            contained = (Contained(inner("contains"), fewest, None if limit is None else int(limit)),)
        least = max(least, fewest)
    if most is not None and least > most:
        return None
    return Array(
        prefix, rest, least, None if most is None else int(most), bool(schema.get("uniqueItems")), False, contained
    )


def object_of(schema: dict[str, Any], inner: Inner) -> Object | None:
    names = {name: inner("properties", name) for name in schema.get("properties", {})}
    patterns = {pattern: inner("patternProperties", pattern) for pattern in schema.get("patternProperties", {})}
    rest = inner("additionalProperties") if "additionalProperties" in schema else ()
    layers = (Layer(names, patterns, rest),) if names or patterns or rest else ()
    least, most = int(schema.get("minProperties", 0)), schema.get("maxProperties")
    required = tuple(schema.get("required", ()))
    if most is not None and max(least, len(required)) > most:
        return None
    keys = inner("propertyNames") if "propertyNames" in schema else ()
    return Object(layers, required, least, None if most is None else int(most), keys)


def kept(shape: Shape, value: Any, holds: Callable[[State, Any], bool]) -> bool:
    """Whether a value is of a shape that lists none."""
    if key(value) in set(map(key, shape.excluded)):
        return False
    kind = name_of(value)
    if kind == "null":
        return shape.null
    if kind == "boolean":
        return value in shape.booleans
    if kind == "number":
        return shape.number is not None and shape.number.holds(exact(value))
    if kind == "string":
        return shape.string is not None and shape.string.holds(value)
    if kind == "array":
        return shape.array is not None and _array_keeps(shape.array, value, holds)
    return shape.object is not None and _object_keeps(shape.object, value, holds)


def _array_keeps(array: Array, value: list[Any], holds: Callable[[State, Any], bool]) -> bool:
    if not array.least <= len(value) <= (len(value) if array.most is None else array.most):
        return False
    distinct = len(set(map(key, value))) == len(value)
    if (array.unique and not distinct) or (array.repeated and distinct):
        return False
    for each in array.contained:
        count = sum(holds(each.state, item) for item in value)
        if not each.least <= count <= (count if each.most is None else each.most):
            return False
    return all(holds(array.at(at), item) for at, item in enumerate(value))


def _object_keeps(found: Object, value: dict[str, Any], holds: Callable[[State, Any], bool]) -> bool:
    if not found.least <= len(value) <= (len(value) if found.most is None else found.most):
        return False
    if not set(found.required) <= value.keys():
        return False
    for layer, state in found.some:
        if not any(holds(state, item) for name, item in value.items() if not layer.declares(name)):
            return False
    if not all(any(not holds(state, name) for name in value) for state in found.key_not):
        return False
    return all(holds(found.of(name), item) and holds(found.keys, name) for name, item in value.items())
