"""denied: the contrary of what the keywords of one schema say by themselves, as alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgellm.constrain.document import Place
from edgellm.constrain.formats import LONGEST, pattern_of
from edgellm.constrain.instances import exact
from edgellm.constrain.regex import translate
from edgellm.constrain.shapes import ANY, Array, Contained, Layer, Number, Object, Shape, String
from edgellm.constrain.statements import NEVER, Inner, only
from edgellm.errors import Unsupported


def denied(place: Place, inner: Inner) -> Iterator[Shape]:
    """What breaks a keyword of the schema, one alternative for each way."""
    schema = place.schema
    assert isinstance(schema, dict)
    for keyword, value in schema.items():
        if keyword.startswith("unevaluated"):
            raise Unsupported(f'{place.where}: "{keyword}" where the schema must not hold (below not, oneOf or if)')
        yield from _untyped(value) if keyword == "type" else ()
        yield from _number(keyword, value)
        yield from _string(keyword, value)
        yield from _array(keyword, value, schema, inner, place)
        yield from _object(keyword, value, schema, inner, place)


def _untyped(types: str | list[str]) -> Iterator[Shape]:
    names = [types] if isinstance(types, str) else types
    number = None if "number" in names else Number(fractional=True) if "integer" in names else Number()
    yield Shape(
        "null" not in names,
        frozenset() if "boolean" in names else ANY.booleans,
        number,
        None if "string" in names else ANY.string,
        None if "array" in names else ANY.array,
        None if "object" in names else ANY.object,
    )


def _number(keyword: str, value: Any) -> Iterator[Shape]:
    if keyword in ("minimum", "exclusiveMinimum"):
        yield only(number=Number(high=exact(value), below=keyword == "minimum"))
    if keyword in ("maximum", "exclusiveMaximum"):
        yield only(number=Number(low=exact(value), above=keyword == "maximum"))
    if keyword == "multipleOf":
        yield only(number=Number(steps_not=frozenset((exact(value),))))


def _string(keyword: str, value: Any) -> Iterator[Shape]:
    if keyword == "minLength" and value > 0:
        yield only(string=String(most=int(value) - 1))
    if keyword == "maxLength":
        yield only(string=String(least=int(value) + 1))
    pattern = translate(value) if keyword == "pattern" else pattern_of(value) if keyword == "format" else None
    if pattern is not None:
        yield only(string=String(patterns_not=(pattern,)))
    if keyword == "format" and value in LONGEST:
        yield only(string=String(least=LONGEST[value] + 1))


def _array(keyword: str, value: Any, schema: dict[str, Any], inner: Inner, place: Place) -> Iterator[Shape]:
    if keyword == "minItems" and value > 0:
        yield only(array=Array(most=int(value) - 1))
    if keyword == "maxItems":
        yield only(array=Array(least=int(value) + 1))
    if keyword == "uniqueItems" and value:
        yield only(array=Array(least=2, repeated=True), marks=((keyword, place.where),))
    if keyword == "prefixItems":
        for at in range(len(value)):
            yield only(array=Array(((),) * at + (inner(keyword, at, wanted=False),), least=at + 1))
    if keyword == "items":
        state = inner(keyword, wanted=False)
        first = len(schema.get("prefixItems", ()))
        if state == NEVER:
            return
        if not state:
            yield only(array=Array(least=first + 1))
        elif first:
            raise Unsupported(f'{place.where}: "items" behind "prefixItems" where the schema must not hold')
        else:
            contained = (Contained(state, 1, None),)
            yield only(array=Array(least=1, contained=contained), marks=((keyword, place.where),))
    if keyword == "contains":
        fewest, most = int(schema.get("minContains", 1)), schema.get("maxContains")
        marks = ((keyword, place.where),)
        if fewest:
            yield only(array=Array(contained=(Contained(inner(keyword), 0, fewest - 1),)), marks=marks)
        if most is not None:
            contained = (Contained(inner(keyword), int(most) + 1, None),)
            yield only(array=Array(least=int(most) + 1, contained=contained), marks=marks)


def _object(keyword: str, value: Any, schema: dict[str, Any], inner: Inner, place: Place) -> Iterator[Shape]:
    marks = ((keyword, place.where),)
    if keyword == "required":
        for name in value:
            yield only(object=Object((Layer({name: NEVER}),)))
    if keyword == "properties":
        for name in value:
            state = inner(keyword, name, wanted=False)
            if state != NEVER:
                yield only(object=Object((Layer({name: state}),), (name,)))
    if keyword == "dependentRequired":
        for name, needs in value.items():
            for need in needs:
                yield only(object=Object((Layer({need: NEVER}),), (name,)))
    if keyword == "minProperties" and value > 0:
        yield only(object=Object(most=int(value) - 1), marks=marks)
    if keyword == "maxProperties":
        yield only(object=Object(least=int(value) + 1), marks=marks)
    if keyword == "additionalProperties":
        state = inner(keyword, wanted=False)
        layer = Layer(
            dict.fromkeys(schema.get("properties", {}), ()), dict.fromkeys(schema.get("patternProperties", {}), ())
        )
        if state != NEVER:
            yield only(object=Object(least=1, some=((layer, state),)), marks=marks)
    if keyword == "patternProperties" and value:
        raise Unsupported(f'{place.where}: "patternProperties" where the schema must not hold (below not, oneOf or if)')
    if keyword == "propertyNames":
        yield only(object=Object(least=1, key_not=(inner(keyword),)), marks=marks)
