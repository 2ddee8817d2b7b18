"""Schemas as other tools write them: pydantic, OpenAPI, older drafts, generators; and keywords that are seldom used."""

from __future__ import annotations

from constrain.schema_parts import COUNT, FLAG, TEXT, Json, closed, form, like, number, of, some, text, whole

DRAFT7 = "http://json-schema.org/draft-07/schema#"
DRAFT2019 = "https://json-schema.org/draft/2019-09/schema"


def written() -> dict[str, Json]:
    return _of_classes() | _of_older_drafts() | _unusual()


def refused() -> dict[str, tuple[Json, str]]:
    """What would not be enforced, by the pointer that the error must name."""
    return {
        "base64 picture": (closed(png={"type": "string", "contentEncoding": "base64"}), "#/properties/png"),
        "strong password": (closed(password=like(r"^(?=.*[A-Z])(?=.*\d).{8,}$")), "#/properties/password"),
        "nullable of OpenAPI 3.0": (closed(nick={"type": "string", "nullable": True}), "#/properties/nick"),
        "distinct tags": ({"type": "array", "items": TEXT, "uniqueItems": True}, "#"),
        "international link": (closed(link=form("iri")), "#/properties/link"),
        "remote reference": ({"$ref": "https://example.com/person.json"}, "#"),
        "misspelt": (closed(name={"type": "string", "maxLenght": 5}), "#/properties/name"),
    }


def _of_classes() -> dict[str, Json]:
    return {
        "pydantic, optional fields": {
            "properties": {
                "name": {"title": "Name", "type": "string", "maxLength": 10},
                "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "Age"},
                "tags": {"default": [], "items": {"type": "string", "maxLength": 5}, "maxItems": 2, "type": "array"},
            },
            "required": ["name"],
            "title": "User",
            "type": "object",
            "additionalProperties": False,
        },
        "pydantic, nested models": {
            "$defs": {
                "Address": {
                    "properties": {
                        "city": {"title": "City", **TEXT},
                        "geo": {"anyOf": [{"$ref": "#/$defs/Geo"}, {"type": "null"}]},
                    },
                    "required": ["city", "geo"],
                    "title": "Address",
                    "type": "object",
                    "additionalProperties": False,
                },
                "Geo": {
                    "properties": {"lat": number(-90, 90), "lon": number(-180, 180)},
                    "required": ["lat", "lon"],
                    "title": "Geo",
                    "type": "object",
                    "additionalProperties": False,
                },
            },
            "properties": {
                "home": {"$ref": "#/$defs/Address"},
                "work": {"$ref": "#/$defs/Address", "description": "or home"},
            },
            "required": ["home", "work"],
            "title": "Person",
            "type": "object",
            "additionalProperties": False,
        },
        "pydantic, union by tag": {
            "$defs": {
                "Cat": closed(pet_type={"const": "cat", "title": "Pet Type", "type": "string"}, meows=COUNT),
                "Dog": closed(pet_type={"const": "dog", "title": "Pet Type", "type": "string"}, barks=number(0, 9.5)),
            },
            "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "pet_type"},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        },
        "pydantic, enums": {
            "$defs": {
                "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
                "Level": {"enum": [1, 2, 3], "title": "Level", "type": "integer"},
            },
            **closed(color={"$ref": "#/$defs/Color", "default": "red"}, levels=some({"$ref": "#/$defs/Level"}, 3)),
        },
        "pydantic, decimal": closed(
            price={"anyOf": [number(0, 100), like(r"^\d{1,4}(\.\d{1,2})?$")], "title": "Price"}
        ),
        "pydantic, tuple": closed(
            size={"maxItems": 2, "minItems": 2, "prefixItems": [whole(1, 99), whole(1, 99)], "type": "array"}
        ),
        "pydantic, any other field": {
            "additionalProperties": True,
            "properties": {"id": COUNT},
            "required": ["id"],
            "title": "Open",
            "type": "object",
            "maxProperties": 2,
        },
        "pydantic, recursive with null": {
            "$defs": {
                "Comment": closed(
                    ["text"],
                    text=TEXT,
                    reply={"anyOf": [{"$ref": "#/$defs/Comment"}, {"type": "null"}], "default": None},
                )
            },
            "$ref": "#/$defs/Comment",
        },
        "dataclass of dates": closed(
            ["day"], day=form("date"), at={**form("time"), "title": "At"}, lasts=form("duration"), id=form("uuid")
        ),
        "typed dict, not total": {
            "type": "object",
            "properties": {"x": number(0, 1), "y": number(0, 1)},
            "additionalProperties": False,
        },
        "literal types": closed(mode={"enum": ["r", "w", 0, True, None]}, kind={"const": ["a", 1]}),
        "openapi, composed": {
            "allOf": [
                {"type": "object", "properties": {"id": COUNT}, "required": ["id"]},
                {"type": "object", "properties": {"label": TEXT, "state": of("new", "done")}, "required": ["state"]},
                {"maxProperties": 3},
            ],
            "unevaluatedProperties": False,
        },
        "openapi, read and write": closed(
            ["login"],
            id={**COUNT, "readOnly": True},
            login=text(3, 8),
            secret={**text(8, 10), "writeOnly": True},
            old={**TEXT, "deprecated": True},
        ),
        "strict mode of a service": {
            "type": "object",
            "properties": {
                "steps": {
                    "type": "array",
                    "maxItems": 2,
                    "items": {"$ref": "#/properties/first"},
                },
                "first": closed(explanation=TEXT, output=TEXT),
            },
            "required": ["steps", "first"],
            "additionalProperties": False,
        },
    }


def _of_older_drafts() -> dict[str, Json]:
    return {
        "draft 7, conditional": {
            "$schema": DRAFT7,
            "definitions": {"zip": like("^[0-9]{5}$")},
            **closed(["country"], country=of("US", "IS"), zip={"$ref": "#/definitions/zip"}),
            "if": {"properties": {"country": {"const": "US"}}},
            "then": {"required": ["zip"]},
        },
        "draft 7, tuple with a rest": {
            "$schema": DRAFT7,
            "type": "array",
            "items": [of("GET", "POST"), text(1, 8)],
            "additionalItems": {"type": "integer", "minimum": 0, "maximum": 9},
            "minItems": 2,
            "maxItems": 4,
        },
        "draft 7, dependencies": {
            "$schema": DRAFT7,
            **closed(["user"], user=TEXT, two_factor=FLAG, device=TEXT),
            "dependencies": {"two_factor": {"required": ["device"]}, "device": ["two_factor"]},
        },
        "draft 6, exclusive bounds": {
            "$schema": "http://json-schema.org/draft-06/schema#",
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1.5,
        },
        "2019-09, dependents": {
            "$schema": DRAFT2019,
            **closed([], street=TEXT, city=TEXT, number=COUNT),
            "dependentRequired": {"number": ["street"], "street": ["city"]},
        },
        "an identifier within": {
            "$id": "https://example.com/order.json",
            "$defs": {"sku": {"$id": "sku.json", **like("^[A-Z]{2}[0-9]{3}$")}},
            **closed(main={"$ref": "sku.json"}, others=some({"$ref": "https://example.com/sku.json"})),
        },
        "a reference with company": {
            "$defs": {"small": whole(0, 100)},
            **closed(even={"$ref": "#/$defs/small", "multipleOf": 2}, large={"$ref": "#/$defs/small", "minimum": 90}),
        },
        "names that pointers escape": {
            "$defs": {"a/b": whole(1, 3), "c~d": of("x"), "e f": FLAG},
            **closed(
                **{
                    "a/b": {"$ref": "#/$defs/a~1b"},
                    "c~d": {"$ref": "#/$defs/c~0d"},
                    "e f": {"$ref": "#/$defs/e%20f"},
                }
            ),
        },
    }


def _unusual() -> dict[str, Json]:
    return {
        "names in other scripts": closed(
            **{"naïve": FLAG, "日本": of("東京", "大阪"), "emoji 🙂": TEXT, 'q"uote': COUNT}
        ),
        "empty name": closed(**{"": whole(0, 9)}),
        "not both": {
            **closed([], gift=FLAG, invoice=FLAG),
            "not": {"required": ["gift", "invoice"]},
        },
        "contains with counts": {
            "type": "array",
            "items": of("red", "green", "blue"),
            "contains": {"const": "red"},
            "minContains": 1,
            "maxContains": 2,
            "minItems": 2,
            "maxItems": 3,
        },
        "names of a format": {
            "type": "object",
            "propertyNames": {"format": "date"},
            "additionalProperties": whole(0, 9),
            "maxProperties": 2,
        },
        "two patterns": {
            "type": "object",
            "patternProperties": {"^s_[a-z]{1,4}$": TEXT, "^n_[a-z]{1,4}$": whole(-5, 5)},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 2,
        },
        "steps of a quarter": {
            "type": "array",
            "items": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
            "maxItems": 3,
        },
        "below zero": {"type": "integer", "exclusiveMinimum": -1000, "exclusiveMaximum": -10, "multipleOf": 5},
        "exactly one of three": {
            **closed([], file=TEXT, url=form("uri"), inline=TEXT),
            "oneOf": [{"required": ["file"]}, {"required": ["url"]}, {"required": ["inline"]}],
        },
        "overlapping oneOf": {"oneOf": [whole(0, 10), whole(5, 15), {"type": "string", "maxLength": 3}]},
        "no other items": {
            "allOf": [{"type": "array", "prefixItems": [TEXT, COUNT]}, {"minItems": 1}],
            "unevaluatedItems": False,
        },
        "nothing but null": {
            "type": "object",
            "properties": {"reserved": {"type": "null"}},
            "required": ["reserved"],
            "additionalProperties": False,
        },
        "a pattern and lengths": {"type": "string", "pattern": "^[a-z]+(_[a-z]+)*$", "minLength": 4, "maxLength": 12},
        "an unanchored pattern": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 8},
        "constants of all kinds": closed(
            a={"const": None}, b={"const": False}, c={"const": {"x": [1, 2.5]}}, d={"const": ""}
        ),
        "three levels of conditions": {
            **closed(["a"], a=whole(0, 2), b=whole(0, 2), c=whole(0, 2)),
            "if": {"properties": {"a": {"const": 0}}},
            "then": {"required": ["b"]},
            "else": {
                "if": {"properties": {"a": {"const": 1}}},
                "then": {"required": ["c"]},
                "else": {"required": ["b", "c"]},
            },
        },
        "two that recur in turn": {
            "$defs": {
                "even": closed([], next={"$ref": "#/$defs/odd"}),
                "odd": closed(["next"], next={"$ref": "#/$defs/even"}),
            },
            "$ref": "#/$defs/even",
        },
        "json within": {
            "$defs": {
                "json": {
                    "anyOf": [
                        {"type": ["null", "boolean"]},
                        whole(0, 9),
                        some({"$ref": "#/$defs/json"}),
                        {
                            "type": "object",
                            "propertyNames": {"enum": ["k", "v"]},
                            "additionalProperties": {"$ref": "#/$defs/json"},
                        },
                    ]
                }
            },
            "$ref": "#/$defs/json",
        },
    }
