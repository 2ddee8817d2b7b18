"""holds: whether a value satisfies a schema, by the specification's own words; it decides which values of an enum stay.

Annotations are followed as far as unevaluatedProperties and unevaluatedItems need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from edgellm.constrain import library, patience
from edgellm.constrain.document import Document, Place
from edgellm.constrain.formats import fits
from edgellm.constrain.regex import translate
from edgellm.constrain.values import is_whole, key, name_of, same

State = tuple[tuple[Place, bool], ...]  # schemas that all hold, or do not where False stands


@dataclass
class _Seen:
    """Which keys and items of a value some schema has looked at."""

    names: set[str] = field(default_factory=set)
    items: set[int] = field(default_factory=set)

    def add(self, other: _Seen) -> bool:
        self.names |= other.names
        self.items |= other.items
        return True


def holds(document: Document, state: State, value: Any) -> bool:
    return all((_Check(document).seen(place, value) is not None) is wanted for place, wanted in state)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern of a schema occurs in a text."""
    patience.step()
    return library.fits(translate(pattern), text)


class _Check:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._within: set[tuple[Place, int]] = set()  # a reference that comes back to the same value says nothing

    def seen(self, place: Place, value: Any) -> _Seen | None:
        """What the schema looked at; None where the value breaks it."""
        patience.step()
        if isinstance(place.schema, bool):
            return _Seen() if place.schema else None
        at = (place, id(value))
        if at in self._within:
            return _Seen()
        self._within.add(at)
        try:
            found = _Seen()
            return found if self._holds(place, place.schema, value, found) else None
        finally:
            self._within.discard(at)

    def _holds(self, place: Place, schema: dict[str, Any], value: Any, found: _Seen) -> bool:
        if "type" in schema:
            types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
            if name_of(value) not in types and not ("integer" in types and is_whole(value)):
                return False
        if "enum" in schema and key(value) not in place.listed:
            return False
        if "const" in schema and not same(value, schema["const"]):
            return False
        if not self._combined(place, schema, value, found):
            return False
        if isinstance(value, str):
            return text_holds(schema, value)
        if isinstance(value, list):
            return self._list(place, schema, value, found)
        if isinstance(value, dict):
            return self._object(place, schema, value, found)
        return isinstance(value, bool) or value is None or number_holds(schema, exact(value))

    def _combined(self, place: Place, schema: dict[str, Any], value: Any, found: _Seen) -> bool:
        def sub(*steps: str | int) -> _Seen | None:
            return self.seen(self._document.inner(place, *steps), value)

        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                inner = self.seen(self._document.target(place, keyword), value)
                if inner is None:
                    return False
                found.add(inner)
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword in schema:
                each = [sub(keyword, at) for at in range(len(schema[keyword]))]
                good = [inner for inner in each if inner is not None]
                wanted = {"allOf": len(good) == len(each), "anyOf": bool(good), "oneOf": len(good) == 1}
                if not wanted[keyword]:
                    return False
                for inner in good:
                    found.add(inner)
        if "not" in schema and sub("not") is not None:
            return False
        if "if" in schema:
            condition = sub("if")
            branch = "then" if condition is not None else "else"
            inner = sub(branch) if branch in schema else _Seen()
            if inner is None:
                return False
            found.add(inner)
            found.add(condition or _Seen())
        for name in schema.get("dependentSchemas", {}):
            if isinstance(value, dict) and name in value:
                inner = sub("dependentSchemas", name)
                if inner is None:
                    return False
                found.add(inner)
        return True

    def _list(self, place: Place, schema: dict[str, Any], value: list[Any], found: _Seen) -> bool:
        prefix = len(schema.get("prefixItems", ()))
        for at, each in enumerate(value):
            steps: tuple[str | int, ...] = ("prefixItems", at) if at < prefix else ("items",)
            if steps[0] in schema:
                if self.seen(self._document.inner(place, *steps), each) is None:
                    return False
                found.items.add(at)
        if "contains" in schema:
            inner = self._document.inner(place, "contains")
            good = [at for at, each in enumerate(value) if self.seen(inner, each) is not None]
            if not schema.get("minContains", 1) <= len(good) <= schema.get("maxContains", len(good)):
                return False
            found.items |= set(good)
        if "unevaluatedItems" in schema:
            inner = self._document.inner(place, "unevaluatedItems")
            if any(self.seen(inner, value[at]) is None for at in range(len(value)) if at not in found.items):
                return False
            found.items |= set(range(len(value)))
        return within(schema, "Items", len(value)) and not (
            schema.get("uniqueItems") and len(set(map(key, value))) < len(value)
        )

    def _object(self, place: Place, schema: dict[str, Any], value: dict[str, Any], found: _Seen) -> bool:
        for name, each in value.items():
            places = list(self._declared(place, schema, name))
            if not places and "additionalProperties" in schema:
                places = [self._document.inner(place, "additionalProperties")]
            if any(self.seen(inner, each) is None for inner in places):
                return False
            found.names |= {name} if places else set()
        if "propertyNames" in schema:
            inner = self._document.inner(place, "propertyNames")
            if any(self.seen(inner, name) is None for name in value):
                return False
        if "unevaluatedProperties" in schema:
            inner = self._document.inner(place, "unevaluatedProperties")
            if any(self.seen(inner, value[name]) is None for name in value.keys() - found.names):
                return False
            found.names |= value.keys()
        needs = [need for name, each in schema.get("dependentRequired", {}).items() if name in value for need in each]
        return within(schema, "Properties", len(value)) and {*schema.get("required", ()), *needs} <= value.keys()

    def _declared(self, place: Place, schema: dict[str, Any], name: str) -> Iterator[Place]:
        if name in schema.get("properties", {}):
            yield self._document.inner(place, "properties", name)
        for pattern in schema.get("patternProperties", {}):
            if matches(pattern, name):
                yield self._document.inner(place, "patternProperties", pattern)


def text_holds(schema: dict[str, Any], text: str) -> bool:
    if "pattern" in schema and not matches(schema["pattern"], text):
        return False
    return within(schema, "Length", len(text)) and ("format" not in schema or fits(schema["format"], text))


def number_holds(schema: dict[str, Any], value: Fraction) -> bool:
    def limit(name: str) -> Fraction | None:
        return exact(schema[name]) if name in schema else None

    low, above = limit("minimum"), limit("exclusiveMinimum")
    high, below = limit("maximum"), limit("exclusiveMaximum")
    if (low is not None and value < low) or (above is not None and value <= above):
        return False
    if (high is not None and value > high) or (below is not None and value >= below):
        return False
    step = limit("multipleOf")
    return step is None or (value / step).denominator == 1


def exact(value: float) -> Fraction:
    """A number as it was written: 0.1 is a tenth, not the nearest that a float can hold."""
    return Fraction(str(value)) if isinstance(value, float) else Fraction(value)


def within(schema: dict[str, Any], what: str, count: int) -> bool:
    return bool(schema.get(f"min{what}", 0) <= count <= schema.get(f"max{what}", count))
