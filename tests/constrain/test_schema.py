"""What prepare refuses, by place, keyword and advice, and that what it rewrites means the same."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from masks import accepts, matcher

from edgellm.constrain.instances import exact, number_holds
from edgellm.constrain.schema import prepare
from edgellm.errors import InvalidParameter, Unsupported


def _loop(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (3, "a schema is a dict"),
        ({"type": "text"}, "#: 'type' is 'text'; it must be one of null, boolean"),
        ({"properties": {"a/b": {"minimum": "1"}}}, "#/properties/a~1b: 'minimum' is '1'; it must be a number"),
        ({"required": ["a", "a"]}, "'required' is .* each once"),
        ({"enum": []}, "'enum' is .* not empty"),
        ({"anyOf": []}, "'anyOf' is .* not empty"),
        ({"multipleOf": 0}, "above 0"),
        ({"minLength": -1}, "at least 0"),
        ({"const": {1, 2}}, "#/const: a set is no JSON value"),
        ({"const": float("nan")}, "#/const: a float is no JSON value"),
        ({"properties": {"a": 1}}, "an object of schemas"),
        ({"$ref": "#/$defs/a"}, "there is nothing"),
        ({"$ref": "#a"}, 'no such "\\$anchor"'),
        ({"const": "\ud800"}, "surrogate"),
        (_loop(300), "more than 64 schemas in schemas"),
    ],
)
def test_what_is_no_schema_is_an_invalid_parameter(schema: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        prepare(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"minLenght": 3}, "'minLenght' is no keyword.*did you mean 'minLength'"),
        ({"properties": {"a": {"x-guidance": {"lenient": True}}}}, "#/properties/a: 'x-guidance' would not"),
        ({"type": "string", "nullable": True}, "nullable.*null"),
        ({"contentEncoding": "base64"}, "contentEncoding.*pattern"),
        ({"format": "emial"}, "did you mean 'email'"),
        ({"format": "regex"}, "not known"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "2020-12"),
        ({"$ref": "https://example.com/other"}, "nothing is fetched"),
        ({"$ref": "#"}, "refers to itself"),
        ({"allOf": [{"$ref": "#"}], "type": "object"}, "refers to itself"),
        ({"pattern": r"(?=a)b"}, "look-ahead"),
        ({"pattern": r"(a)\1"}, "backreference"),
        ({"pattern": r"\bword"}, "boundary"),
        ({"pattern": "a(b"}, r"a \( without its \)"),
        ({"items": {"contains": {"type": "integer"}}}, '#/items: "contains" is enforced once'),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, '"uniqueItems" is enforced for'),
        ({"type": "string", "not": {"pattern": "a"}}, "must not fit a pattern"),
        ({"not": {"type": "integer"}}, "must not be whole"),
        ({"patternProperties": {"a": {"type": "null"}, "b": {"type": "string"}}}, "'b' fit the same keys"),
        ({"type": "object", "not": {"additionalProperties": False}}, '"additionalProperties" where'),
        ({"const": 2**60}, "beyond"),
        ({"minimum": 1e300}, "beyond"),
        ({"const": "a\u0000"}, "control character"),
        ({"exclusiveMinimum": 1, "maximum": 1.5}, "excluded bound"),
    ],
)
def test_what_would_not_be_enforced_is_unsupported(schema: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        prepare(schema)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"not": {}},
        {"allOf": [{"type": "string"}, {"type": "number"}]},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"enum": ["a", 1], "type": "boolean"},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"oneOf": [{"type": "string"}, {"type": "string"}], "type": "string"},
        {"multipleOf": 10, "minimum": 11, "maximum": 19, "type": "number"},
        {"const": 1, "if": {"const": 1}, "then": False},
    ],
)
def test_a_contradiction_is_refused(schema: Any) -> None:
    with pytest.raises(Unsupported, match="no value is valid"):
        prepare(schema)


BOMBS = {
    "pattern of bounds": {"pattern": "([a-z]{1,50} ?){1,200}"},
    "pattern of ways": {"pattern": "^(a|aa|aaa){1,300}$"},
    "long pattern": {"pattern": "a" * 3_000},
    "deep pattern": {"pattern": "(" * 60 + "a" + ")" * 60},
    "patterns at once": {"type": "string", "allOf": [{"pattern": f"^(.{{{n}}})*$"} for n in (7, 11, 13, 17)]},
    "enum": {"enum": list(range(20_000))},
    "not enum": {"type": "integer", "not": {"enum": list(range(1_000))}},
    "optional properties": {"type": "object", "properties": {f"p{n}": True for n in range(300)}},
    "properties": {"properties": {f"p{n}": True for n in range(3_000)}},
    "values": {"const": [0] * 100_000},
    "counts": {"maxItems": 10**9},
    "lengths": {"minLength": 10**12},
    "steps": {"type": "integer", "multipleOf": 123_456_789},
    "steps that multiply": {"type": "integer", "allOf": [{"multipleOf": 4999}, {"multipleOf": 4993}]},
    "ways of ways": {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(20)]},
    "dependents": {"type": "object", "dependentRequired": {f"a{n}": [f"b{n}"] for n in range(20)}},
    "anyOf": {"anyOf": [{"required": [f"k{n}"]} for n in range(2_000)]},
    "lists of few": {"type": "array", "uniqueItems": True, "items": {"enum": list(range(20))}},
    "counted properties": {"type": "object", "properties": {f"p{n}": True for n in range(20)}, "minProperties": 10},
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    with pytest.raises((Unsupported, InvalidParameter)):
        prepare(BOMBS[name])


INSTANCES: list[Any] = [
    *(None, True, False, 0, 1, 2, -3, 7, 1.5, "", "a", "ab", "abc", "b1", [], [1], [1, 2], [2, 1, 2], ["a"], [None, 1]),
    *(
        {},
        {"a": 1},
        {"b": "x"},
        {"a": "x"},
        {"a": 1, "b": 2},
        {"a": None, "c": [1]},
        {"c": 1},
        {"a": 1, "b": "x", "c": 0},
    ),
]
PARTS: list[Any] = [
    *({"type": "integer"}, {"type": ["string", "null"]}, {"minimum": 1}, {"exclusiveMaximum": 2}, {"multipleOf": 2}),
    *({"minLength": 2}, {"maxLength": 1}, {"pattern": "^a"}, {"enum": [1, "a", None, [1]]}, {"const": {"a": 1}}),
    *({"minItems": 2}, {"maxItems": 1}, {"prefixItems": [{"type": "integer"}]}, {"items": {"type": "integer"}}),
    *({"properties": {"a": {"type": "integer"}}}, {"required": ["a"]}, {"additionalProperties": False}),
    *({"properties": {"a": {"type": "integer"}, "b": True}, "additionalProperties": False}, {"minProperties": 2}),
    *({"maxProperties": 1}, {"dependentRequired": {"a": ["b"]}}, {"propertyNames": {"enum": ["a", "b"]}}),
    *({"contains": {"const": 1}, "maxItems": 2}, {"uniqueItems": True, "items": {"enum": [1, 2]}}, {"type": "object"}),
]


def _combined(chance: random.Random) -> dict[str, Any]:
    """A schema that combines a few of the parts."""
    one, other, third = (chance.choice(PARTS) for _ in range(3))
    ways: list[dict[str, Any]] = [
        {"allOf": [one, other]},
        {"anyOf": [one, other], **third},
        {"oneOf": [one, other, third]},
        {"not": one, **other},
        {"if": one, "then": other, "else": third},
        {"dependentSchemas": {"a": one}, **other},
        {"properties": {"a": one, "b": other}, **({} if "properties" in third else third)},
        {"items": one, "maxItems": 2, "not": other},
        {"$ref": "#/$defs/x", "$defs": {"x": one}, "not": {"allOf": [other, third]}},
        {"allOf": [one, {"properties": {"b": other}}], "unevaluatedProperties": third},
    ]
    return chance.choice(ways)


def _spellings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for order in itertools.permutations(value.items()):
            yield json.dumps(dict(order))
    else:
        yield json.dumps(value)


@pytest.mark.parametrize("seed", range(8))
def test_combinations_mean_what_they_say(seed: int) -> None:
    chance, supported = random.Random(seed), 0
    for _ in range(40):
        schema = _combined(chance)
        validator = jsonschema.Draft202012Validator(schema)
        valid = [value for value in INSTANCES if validator.is_valid(value)]
        try:
            prepared = prepare(schema)
        except Unsupported as error:
            if valid and "no value is valid" in str(error):
                raise
            continue
        start = matcher(prepared)
        assert not start.is_error(), (schema, prepared, start.get_error())
        supported += 1
        for value in INSTANCES:
            passes = any(accepts(start, text) for text in _spellings(value))
            assert passes == (value in valid and not _is_flag(value, valid)), (schema, value, prepared)
    assert supported > 10


def _is_flag(value: Any, valid: list[Any]) -> bool:
    """`1 in [True]` is true to Python."""
    return not any(type(each) is type(value) and each == value for each in valid)


def test_numbers_keep_their_bounds_and_steps() -> None:
    chance, tried = random.Random(7), 0
    for _ in range(150):
        schema: dict[str, Any] = {"type": chance.choice(["number", "integer"])}
        for keywords in (["minimum", "exclusiveMinimum"], ["maximum", "exclusiveMaximum"]):
            if chance.random() < 0.7:
                schema[chance.choice(keywords)] = round(chance.uniform(-30, 30), chance.choice([0, 0, 1, 2]))
        if chance.random() < 0.3:
            schema["multipleOf"] = chance.choice([1, 3, 0.5, 0.1, 0.01, 0.25, 1.5])
        try:
            start = matcher(prepare(schema))
        except Unsupported:
            continue
        bounds = [exact(value) for name, value in schema.items() if name.endswith("mum")] or [Fraction(0)]
        points = {bound + Fraction(step, 100) for bound in bounds for step in (-100, -10, -1, 0, 1, 10, 100)}
        for point in points:
            right = number_holds(schema, point) and (schema["type"] == "number" or point.denominator == 1)
            plain = str(int(point)) if point.denominator == 1 else f"{float(point):.2f}"
            texts = [plain, plain.rstrip("0") if "." in plain else plain]
            assert any(accepts(start, text) for text in texts) == right, (schema, point)
            tried += 1
    assert tried > 500


@pytest.mark.parametrize(
    ("schema", "good"),
    [
        ({"properties": {"a": {"not": {"items": {"enum": [1]}}, "items": {"enum": [1]}, "maxItems": 2}}}, "{}"),
        (
            {"items": {"minProperties": 2, "properties": {"a": True}, "additionalProperties": False, "type": "object"}},
            "[]",
        ),
        ({"anyOf": [{"type": "null"}, {"type": "object", "propertyNames": False, "required": ["a"]}]}, "null"),
    ],
)
def test_what_may_be_absent_may_be_impossible(schema: Any, good: str) -> None:
    assert accepts(matcher(prepare(schema)), good)


@pytest.mark.parametrize(
    "schema", [{"type": "integer"}, {"type": ["integer", "null"]}, {"type": "integer", "minimum": -(2**53)}]
)
def test_whole_numbers_have_an_end(schema: Any) -> None:
    """Small models go on with digits for as long as they may."""
    start = matcher(prepare(schema))
    for number in (0, 7, 2**53, -(2**53)):
        assert accepts(start, str(number))
    for number in (2**53 + 1, -(2**53) - 1, 10**16, -(10**400)):
        assert not accepts(start, str(number))


def test_annotations_change_nothing() -> None:
    notes = {"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c", "deprecated": True}
    assert prepare({**notes, "type": "null", "readOnly": True, "writeOnly": False}) == {"type": "null"}
    assert prepare(True) == prepare({"title": "anything"}) == {}


def test_references_by_id_anchor_and_pointer() -> None:
    schema = {
        "$id": "https://example.com/a",
        "type": "array",
        "prefixItems": [{"$ref": "b"}, {"$ref": "#c"}, {"$ref": "#/$defs/d~1e"}, {"$ref": "https://example.com/b#f"}],
        "minItems": 4,
        "items": False,
        "$defs": {
            "b": {"$id": "b", "const": 1, "$defs": {"f": {"$anchor": "f", "const": 4}}},
            "c": {"$anchor": "c", "const": 2},
            "d/e": {"const": 3},
        },
    }
    assert [each["enum"] for each in prepare(schema)["prefixItems"]] == [[1], [2], [3], [4]]


def test_the_schema_that_is_given_stays_as_it_is() -> None:
    schema = {"items": [{"type": "null"}], "additionalItems": False, "type": "array"}
    prepare(schema)
    assert schema == {"items": [{"type": "null"}], "additionalItems": False, "type": "array"}
    assert re.search("prefixItems", str(prepare(schema)))
