"""What schemas of the tests are put together from."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def closed(required: list[str] | None = None, **properties: Any) -> Json:
    """An object of these properties, all required where nothing else is said."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


TEXT: Json = {"type": "string", "maxLength": 12}
COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 999}
PRICE: Json = {"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.01}
FLAG: Json = {"type": "boolean"}


def form(name: str) -> Json:
    return {"type": "string", "format": name}


def of(*values: Any) -> Json:
    return {"enum": list(values)}


def like(pattern: str) -> Json:
    return {"type": "string", "pattern": pattern}


def text(least: int, most: int) -> Json:
    return {"type": "string", "minLength": least, "maxLength": most}


def whole(low: int, high: int) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float) -> Json:
    return {"type": "number", "minimum": low, "maximum": high}


def some(items: Any, most: int = 2, least: int = 0) -> Json:
    """A list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def maybe(schema: Any) -> Json:
    """It, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Json:
    return {"$ref": f"#/$defs/{name}"}


def mapping(values: Any, keys: str | None = None, most: int = 2) -> Json:
    """An object of any names. keys: a pattern of them."""
    named = {} if keys is None else {"propertyNames": {"pattern": keys}}
    return {"type": "object", "additionalProperties": values, "maxProperties": most} | named


def tagged(tag: str, **kinds: Json) -> Json:
    """A union whose branches name themselves."""
    ways = []
    for kind, schema in kinds.items():
        properties = {tag: {"const": kind}, **schema["properties"]}
        ways.append({**schema, "properties": properties, "required": [tag, *schema["required"]]})
    return {"oneOf": ways, "discriminator": {"propertyName": tag}}
