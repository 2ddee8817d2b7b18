"""Document: the schemas in a schema by their place, and what a $ref refers to. Nothing is ever fetched."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from edgellm.arguments import shown
from edgellm.constrain import keywords, patience
from edgellm.constrain.keywords import Path
from edgellm.constrain.values import key, pointer
from edgellm.errors import InvalidParameter, Unsupported

OLD = ("http://json-schema.org/draft-07/schema", "http://json-schema.org/draft-06/schema")
DRAFTS = ("https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2019-09/schema", *OLD)
_ROOT = "http://schema.invalid/"  # the base of what names none


@dataclass(frozen=True, eq=False)
class Place:
    """A schema in the document: its keywords in their 2020-12 form, where it stands, and the URI it resolves by."""

    schema: dict[str, Any] | bool
    path: Path
    base: str = field(repr=False)

    @cached_property
    def listed(self) -> frozenset[Hashable]:
        """The keys (values.key) of what its enum lists."""
        assert isinstance(self.schema, dict)
        return frozenset(map(key, self.schema["enum"]))

    @property
    def where(self) -> str:
        return f"schema: {pointer(self.path)}"


class Document:
    """All places of a schema, checked keyword by keyword. Raises InvalidParameter and Unsupported."""

    def __init__(self, root: dict[str, Any] | bool) -> None:
        self._raws: dict[Path, Any] = {}  # as they were written: that is what references point into
        self._places: dict[Path, Place] = {}
        self._roots: dict[str, Path] = {_ROOT: ()}
        self._anchors: dict[tuple[str, str], list[Path]] = {}
        self._dynamic: dict[str, int] = {}
        draft = str(root.get("$schema", DRAFTS[0])).rstrip("#") if isinstance(root, dict) else DRAFTS[0]
        if draft not in DRAFTS:
            raise Unsupported(f'schema: #: "$schema" is {shown(draft)}; write for 2020-12, 2019-09, draft 7 or draft 6')
        self._draft = draft
        self._walk(root, (), _ROOT)

    @property
    def root(self) -> Place:
        return self._places[()]

    def inner(self, place: Place, *steps: str | int) -> Place:
        """A schema inside of another."""
        return self._places[place.path + steps]

    def target(self, place: Place, keyword: str = "$ref") -> Place:
        """What a reference refers to."""
        assert isinstance(place.schema, dict)
        reference = place.schema[keyword]
        # urljoin knows no fragments of a URN.
        whole = place.base + reference if reference.startswith("#") else urljoin(place.base, reference)
        base, fragment = urldefrag(whole)
        path = self._roots.get(base)
        if path is None:
            raise Unsupported(
                f'{place.where}: "{keyword}" is {shown(reference)}, outside of this schema; nothing is fetched: copy '
                f'what it refers to into "$defs"'
            )
        fragment = unquote(fragment)
        if fragment.startswith("/"):
            path = self._pointed(place, path, fragment)
        elif fragment:
            found = self._anchors.get((base, fragment), [])
            if len(found) != 1:
                raise InvalidParameter(f'{place.where}: "{keyword}" is {shown(reference)}; there is no such "$anchor"')
            if keyword == "$dynamicRef" and self._dynamic.get(fragment, 0) > 1:
                raise Unsupported(f'{place.where}: "$dynamicRef" with several anchors of that name; use "$ref"')
            path = found[0]
        return self._places[path]

    def _pointed(self, place: Place, path: Path, fragment: str) -> Path:
        value, base = self._raws[path], self._places[path].base
        inside: dict[Any, Any]
        for part in fragment.split("/")[1:]:
            step: str | int = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and re.fullmatch("0|[1-9][0-9]{0,5}", part):
                step, inside = int(part), dict(enumerate(value))
            else:
                inside = value if isinstance(value, dict) else {}
            if step not in inside:
                raise InvalidParameter(f'{place.where}: "$ref" is {shown("#" + fragment)}; there is nothing')
            value, path = inside[step], self._renamed(path, step)
            base = self._places[path].base if path in self._places else base
        if path not in self._places:
            if not isinstance(value, (dict, bool)):
                raise InvalidParameter(f'{place.where}: "$ref" is {shown("#" + fragment)}; there is no schema')
            self._walk(value, path, base)
        return path

    def _renamed(self, path: Path, step: str | int) -> Path:
        """A step in the schema as it was written, as one in its 2020-12 form."""
        place = self._places.get(path[:-1]) if path else None
        if place and path[-1] == "items" and isinstance(step, int) and isinstance(place.schema, dict):
            return (*path[:-1], "prefixItems", step) if "prefixItems" in place.schema else (*path, step)
        if place and path[-1] == "dependencies":
            return (*path[:-1], "dependentSchemas", step)
        return (*path, step)

    def _walk(self, value: dict[str, Any] | bool, path: Path, base: str) -> None:
        self._raws[path] = value
        patience.step()
        if isinstance(value, bool):
            self._places[path] = Place(value, path, base)
            return
        if not isinstance(value, dict):
            raise InvalidParameter(f"schema: {pointer(path)}: a schema is an object, true or false")
        schema = keywords.translated(value, path)
        keywords.check(schema, path)
        self._refuse_old(schema, path)
        base = self._name(schema, path, base)
        self._places[path] = Place(schema, path, base)
        for name in keywords.SCHEMA:
            if name in schema:
                self._walk(schema[name], (*path, name), base)
        for name in keywords.SCHEMAS:
            for at, each in enumerate(schema.get(name, ())):
                self._walk(each, (*path, name, at), base)
        for name in keywords.NAMED:
            for inner, each in schema.get(name, {}).items():
                self._walk(each, (*path, name, inner), base)

    def _refuse_old(self, schema: dict[str, Any], path: Path) -> None:
        """Draft 7 ignores what stands beside a $ref; whoever writes it there means it."""
        beside = schema.keys() - keywords.ANNOTATIONS - {"$ref"}
        if self._draft in OLD and "$ref" in schema and beside:
            raise Unsupported(
                f'schema: {pointer(path)}: {shown(min(beside))} beside "$ref", which means nothing in draft 7; put '
                f'both into "allOf"'
            )
        if path and str(schema.get("$schema", self._draft)).rstrip("#") != self._draft:
            raise Unsupported(f'schema: {pointer(path)}: another "$schema" than that of the whole; use one')

    def _name(self, schema: dict[str, Any], path: Path, base: str) -> str:
        """Notes the ids and anchors of a schema, and returns the base of what is in it."""
        own = schema.get("$id", "")
        if own.startswith("#"):
            if self._draft not in OLD:
                raise InvalidParameter(f'schema: {pointer(path)}: "$id" is a fragment; use "$anchor"')
            self._anchors.setdefault((base, own[1:]), []).append(path)
        elif own and not (self._draft in OLD and "$ref" in schema):
            base = urldefrag(urljoin(base, own))[0]
            if self._roots.setdefault(base, path) != path:
                raise InvalidParameter(f'schema: {pointer(path)}: "$id" {shown(own)} is there twice')
        for keyword in ("$anchor", "$dynamicAnchor"):
            if keyword in schema:
                found = self._anchors.setdefault((base, schema[keyword]), [])
                found += [path] if path not in found else []
        self._dynamic[schema.get("$dynamicAnchor", "")] = self._dynamic.get(schema.get("$dynamicAnchor", ""), 0) + 1
        return base
