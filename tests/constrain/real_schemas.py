"""Schemas as programs have them: some here, each also in a list, an object, or null; others by what they are for."""

from __future__ import annotations

from constrain.schema_parts import COUNT, PRICE, TEXT, Json, closed, form, of, tagged
from constrain.schemas_extraction import extraction
from constrain.schemas_requests import requests
from constrain.schemas_settings import settings
from constrain.schemas_written import written


def _documents() -> dict[str, Json]:
    line = closed(description=TEXT, quantity=COUNT, unit_price=PRICE, tax={"enum": [0, 7, 19.5]})
    address = closed(["street", "city"], street=TEXT, city=TEXT, zip={"type": "string", "pattern": r"^\d{5}(-\d{4})?$"})
    return {
        "invoice": closed(
            number={"type": "string", "pattern": "^INV-[0-9]{4,6}$"},
            date=form("date"),
            currency=of("EUR", "USD", "GBP"),
            lines={"type": "array", "items": line, "minItems": 1, "maxItems": 3},
            total=PRICE,
        ),
        "person": closed(["name"], name=TEXT, age=COUNT, email=form("email"), address=address),
        "event": closed(
            ["title", "start"], title=TEXT, start=form("date-time"), end=form("date-time"), all_day={"type": "boolean"}
        ),
        "resume": closed(
            name=TEXT,
            skills={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 4},
            jobs={
                "type": "array",
                "maxItems": 2,
                "items": closed(["role"], role=TEXT, since={"type": "integer", "minimum": 1950, "maximum": 2030}),
            },
        ),
        "recipe": closed(
            title=TEXT,
            minutes={"type": "integer", "exclusiveMinimum": 0, "multipleOf": 5, "maximum": 600},
            steps={"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 20}, "maxItems": 3},
        ),
        "review": closed(
            sentiment=of("positive", "negative", "neutral"),
            score={"type": "number", "minimum": 0, "maximum": 1},
            topics={"type": "array", "items": of("price", "quality", "service"), "uniqueItems": True},
        ),
        "receipt": {
            "type": "object",
            "properties": {"paid": {"type": "boolean"}, "card": TEXT, "billing_address": address},
            "required": ["paid"],
            "dependentRequired": {"card": ["billing_address"]},
            "additionalProperties": False,
        },
        "shipping": {
            **closed(["country", "zip"], country=of("US", "DE", "FR"), zip={"type": "string"}),
            "if": {"properties": {"country": {"const": "US"}}, "required": ["country"]},
            "then": {"properties": {"zip": {"pattern": r"^\d{5}$"}}},
            "else": {"properties": {"zip": {"pattern": r"^[A-Z0-9 ]{4,8}$"}}},
        },
    }


def _bodies() -> dict[str, Json]:
    error = closed(code={"type": "integer", "minimum": -32768, "maximum": -32000}, message=TEXT)
    return {
        "page": closed(
            ["items"],
            items={"type": "array", "items": closed(id=form("uuid"), name=TEXT), "maxItems": 2},
            next={"type": ["string", "null"], "maxLength": 8},
        ),
        "rpc": {
            "type": "object",
            "properties": {
                "jsonrpc": {"const": "2.0"},
                "id": {"type": ["integer", "string"]},
                "result": COUNT,
                "error": error,
            },
            "required": ["jsonrpc", "id"],
            "oneOf": [{"required": ["result"]}, {"required": ["error"]}],
            "additionalProperties": False,
        },
        "pet": tagged(
            "kind",
            cat=closed(lives={"type": "integer", "minimum": 0, "maximum": 9}),
            dog=closed(breed=TEXT),
            fish=closed(salt={"type": "boolean"}),
        ),
        "shape": {"anyOf": [closed(radius=PRICE), closed(width=PRICE, height=PRICE)]},
        "geometry": tagged(
            "type",
            Point=closed(
                coordinates={
                    "type": "array",
                    "prefixItems": [{"type": "number"}, {"type": "number"}],
                    "items": False,
                    "minItems": 2,
                }
            ),
            LineString=closed(
                coordinates={
                    "type": "array",
                    "items": {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2},
                    "minItems": 2,
                    "maxItems": 3,
                }
            ),
        ),
        "tool": tagged(
            "name",
            search=closed(query=TEXT, limit={"type": "integer", "minimum": 1, "maximum": 50}),
            stop={"type": "object", "properties": {}, "required": [], "additionalProperties": False},
        ),
        "patch": {
            "type": "array",
            "maxItems": 3,
            "items": tagged(
                "op", add=closed(path=form("json-pointer"), value=True), remove=closed(path=form("json-pointer"))
            ),
        },
        "filter": {
            "type": "object",
            "properties": {"eq": COUNT, "lt": COUNT, "gt": COUNT},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 2,
        },
        "webhook": closed(
            ["url"],
            url=form("uri"),
            secret={"type": "string", "minLength": 8, "maxLength": 16},
            retries={"type": "integer", "minimum": 0, "maximum": 5},
        ),
        "settings": {
            "type": "object",
            "properties": {"theme": of("light", "dark"), "size": COUNT},
            "minProperties": 1,
            "additionalProperties": False,
        },
        "answer": closed(
            reasoning=TEXT, answer={"oneOf": [{"type": "number"}, {"type": "string", "maxLength": 5}, {"type": "null"}]}
        ),
        "flags": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
    }


def _configurations() -> dict[str, Json]:
    return {
        "server": closed(
            ["host"],
            host=form("hostname"),
            port={"type": "integer", "minimum": 1, "maximum": 65535},
            address={"anyOf": [form("ipv4"), form("ipv6")]},
        ),
        "environment": {
            "type": "object",
            "patternProperties": {"^[A-Z][A-Z0-9_]*$": {"type": "string", "maxLength": 6}},
            "additionalProperties": False,
            "maxProperties": 2,
        },
        "versions": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z][a-z0-9-]{0,20}$"},
            "additionalProperties": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
            "maxProperties": 2,
        },
        "headers": {
            "type": "object",
            "properties": {"x": TEXT},
            "additionalProperties": {"type": "string", "maxLength": 4},
        },
        "levels": {
            "type": "object",
            "propertyNames": {"enum": ["debug", "info", "error"]},
            "additionalProperties": {"type": "boolean"},
        },
        "schedule": closed(
            every={"type": "string", "pattern": r"^([1-9]|[1-5]\d)[smh]$"}, at=form("time"), timeout=form("duration")
        ),
        "color": {"type": "string", "pattern": "^#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"},
        "limits": {
            "type": "object",
            "properties": {"low": COUNT, "high": COUNT},
            "dependentSchemas": {"low": {"required": ["high"]}},
            "unevaluatedProperties": False,
        },
        "logger": {
            "allOf": [
                {"$ref": "#/$defs/base"},
                {"properties": {"path": {"type": "string", "maxLength": 5}}, "required": ["path"]},
            ],
            "unevaluatedProperties": False,
            "$defs": {"base": {"type": "object", "properties": {"level": of(1, 2, 3)}, "required": ["level"]}},
        },
        "older": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"pair": {"type": "array", "items": [COUNT, TEXT], "additionalItems": False}},
            "type": "object",
            "properties": {"pair": {"$ref": "#/definitions/pair"}, "mode": TEXT},
            "dependencies": {"mode": ["pair"]},
            "additionalProperties": False,
        },
        "not_root": {
            "type": "object",
            "properties": {"user": {"type": "string", "maxLength": 6, "not": {"enum": ["root", "admin", ""]}}},
            "required": ["user"],
            "additionalProperties": False,
        },
        "roles": {
            "type": "array",
            "items": of("admin", "user", "guest"),
            "contains": {"const": "admin"},
            "maxItems": 3,
        },
    }


def _recursive() -> dict[str, Json]:
    return {
        "tree": {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": closed(
                    ["value"], value=COUNT, children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
                )
            },
        },
        "list": {
            "$ref": "#/$defs/cell",
            "$defs": {"cell": closed(head=COUNT, tail={"anyOf": [{"$ref": "#/$defs/cell"}, {"type": "null"}]})},
        },
        "expression": {
            "$ref": "#/$defs/e",
            "$defs": {
                "e": {
                    "oneOf": [
                        {"type": "number", "minimum": 0, "maximum": 9},
                        closed(op=of("+", "*"), left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
                    ]
                }
            },
        },
        "menu": {
            "$id": "https://example.com/menu",
            "$anchor": "menu",
            **closed(["title"], title=TEXT, items={"type": "array", "maxItems": 2, "items": {"$ref": "#menu"}}),
        },
    }


def _wrapped(name: str, schema: Json) -> dict[str, Json]:
    """The schema in each of its surroundings; its references move with it."""
    if "$ref" in schema or "$id" in schema or "$schema" in schema or "$defs" in schema:
        return {name: schema}
    return {
        name: schema,
        f"{name}, listed": {"type": "array", "items": schema, "minItems": 1, "maxItems": 2},
        f"{name}, enveloped": closed(["ok"], ok={"type": "boolean"}, data={"$ref": "#/$defs/it"})
        | {"$defs": {"it": schema}},
        f"{name}, or null": {"anyOf": [schema, {"type": "null"}], "title": name, "description": "or nothing"},
    }


def real_schemas() -> dict[str, Json]:
    surrounded = (_documents(), _bodies(), _configurations(), _recursive())
    wrapped = (_wrapped(name, schema) for group in surrounded for name, schema in group.items())
    groups = (*wrapped, extraction(), requests(), settings(), written())
    named = [(name, schema) for group in groups for name, schema in group.items()]
    found = dict(named)
    assert len(found) == len(named)  # no two of one name
    return found
