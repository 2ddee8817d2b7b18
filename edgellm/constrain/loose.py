"""Loose: of a schema that cannot be enforced whole, what can be.

For parameters of tools: clients pass on the schemas of other programs, with formats, patterns and keywords that no
grammar holds, and want a call of the right shape.
"""

from __future__ import annotations

from typing import Any

from edgellm.constrain.grammars import enforced
from edgellm.errors import InvalidParameter, Unsupported

Json = dict[str, Any]

TRIES = 200  # of schemas in one; what is beyond may be anything
SHAPE = ("type", "properties", "required", "items", "enum", "const", "anyOf", "$ref", "additionalProperties")
"""What is kept of a schema that cannot be enforced whole."""
SHARED = ("$defs", "definitions")


def loosened(schema: Json) -> Json:
    """The schema of an object, itself if it can be enforced; else one that can be and lets all through that it does."""
    return _Loosening(schema).whole()


class _Loosening:
    """Of one schema, with those that it shares among its parts."""

    def __init__(self, schema: Json) -> None:
        self._schema = schema
        self._shared = {key: schema[key] for key in SHARED if isinstance(schema.get(key), dict)}
        self._tries = 0

    def whole(self) -> Json:
        if self._holds(self._schema):
            return self._schema
        inner = {key: value for key, value in self._schema.items() if key not in SHARED}
        before = self._shared
        self._shared = {
            key: {name: self._part(each) for name, each in schemas.items()} for key, schemas in before.items()
        }
        found = {**self._part(inner), **self._shared}
        if self._holds(found) and isinstance(found.get("properties", {}), dict):
            return found
        names = self._schema.get("properties")
        return {"type": "object", "properties": {name: {} for name in names} if isinstance(names, dict) else {}}

    def _holds(self, schema: Any) -> bool:
        """Whether it can be enforced."""
        self._tries += 1
        if self._tries > TRIES:
            return False
        try:
            enforced({**schema, **self._shared} if isinstance(schema, dict) else schema)
        except (InvalidParameter, Unsupported):
            return False
        return True

    def _part(self, schema: Any) -> Any:
        if not isinstance(schema, dict) or self._holds(schema):
            return schema if isinstance(schema, (dict, bool)) else {}
        found: Json = {key: schema[key] for key in SHAPE if schema.get(key) is not None}
        if isinstance(found.get("properties"), dict):
            found["properties"] = {name: self._part(each) for name, each in found["properties"].items()}
        if isinstance(found.get("anyOf"), list):
            found["anyOf"] = [self._part(each) for each in found["anyOf"]]
        for key in ("items", "additionalProperties"):
            if key in found:
                found[key] = self._part(found[key])
        if self._holds(found):
            return found
        kind = {"type": schema.get("type")}
        return kind if self._holds(kind) else {}
