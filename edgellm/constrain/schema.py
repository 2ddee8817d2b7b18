"""prepare: a JSON Schema as llguidance is to be given it, with the same meaning, or an error that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.constrain import patience
from edgellm.constrain.branches import Branches
from edgellm.constrain.document import Document
from edgellm.constrain.emit import Empty, Writer
from edgellm.constrain.nesting import DEEPEST, depth
from edgellm.constrain.values import plain
from edgellm.errors import InvalidParameter, Unsupported

# What llguidance must be told beside the schema. JSON is written as Python's json.dumps does: models know that way,
# most of it is forced, and nobody waits for blanks. Without `\u` a key has one spelling: otherwise `"\u0061"` passes
# beside a declared "a" as another property, with another type.
OPTIONS: dict[str, Any] = {
    "lenient": False,
    "coerce_one_of": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": 'nrbtf\\"',
}
MOST_TRIES = 20
DEEPEST_PLACED = 60  # lists and objects in one another; behind it schemas are referred to (its reader takes 127)
MOST_PARTS = 10_000  # values in what is written: llguidance takes about 0.1 s for them


def prepare(schema: Mapping[str, Any] | bool) -> dict[str, Any]:
    """The schema as llguidance is to be given it, beside OPTIONS: JSON Schema 2020-12, with the same meaning.

    `{}` allows every value.

    Raises InvalidParameter for what is no schema, Unsupported for what would not be enforced; both name the place by
    JSON pointer, the keyword, and what to do instead.
    """
    if not isinstance(schema, (bool, Mapping)):
        raise InvalidParameter(f"schema: a {type(schema).__name__}; a schema is a dict, True or False")
    try:
        with patience.limited():
            return _prepared(plain(schema))
    except RecursionError:
        raise Unsupported("schema: #: too many schemas in schemas; make it flatter") from None


def _prepared(schema: dict[str, Any] | bool) -> dict[str, Any]:
    document = Document(schema)
    branches = Branches(document)
    state = branches.state(document.root)
    if not state:
        return {}
    for _ in range(MOST_TRIES):
        if not branches.filled(state):
            raise Unsupported(f"{document.root.where}: no value is valid; what it demands contradicts itself")
        writer = Writer(branches)
        try:
            root = writer.write(state)
        except Empty as found:  # then whatever needs it is empty as well
            branches.empty(found.state)
        else:
            return _inlined(root, writer.definitions)
    raise Unsupported(f"{document.root.where}: more than {MOST_TRIES} parts of it contradict themselves; remove them")


def _inlined(root: dict[str, Any], definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The schema with what is referred to once in its place; what recurs or refers to itself stays in $defs."""
    count = dict.fromkeys(definitions, 0)

    def refer(part: Any) -> None:
        for name in _references(part):
            count[name] += 1
            if count[name] == 1:
                refer(definitions[name])

    refer(root)
    references = {name: _references(part) for name, part in definitions.items()}
    cyclic = {name for name in definitions if _reaches(name, name, references)}
    parts = 0

    def placed(part: Any, level: int = 0) -> Any:
        nonlocal parts
        parts += 1
        patience.step()
        if parts > MOST_PARTS:
            raise Unsupported(f"schema: #: more than {MOST_PARTS:,} parts, written out; make it smaller")
        if isinstance(part, list):
            return [placed(each, level + 1) for each in part]
        if not isinstance(part, dict):
            return part
        name = _name(part)
        if name is not None:
            small = not any(key in definitions[name] for key in ("properties", "prefixItems", "anyOf", "enum"))
            here = name not in cyclic and level < DEEPEST_PLACED and (count[name] == 1 or small)
            return placed(definitions[name], level) if here else part
        return {key: value if key in ("enum", "required") else placed(value, level + 1) for key, value in part.items()}

    name = _name(root)
    assert name is not None
    found = {"$ref": root["$ref"]} if name in cyclic else dict(placed(definitions[name]))
    kept: dict[str, Any] = {}
    left = list(_references(found))
    while left:
        name = left.pop()
        if name not in kept:
            kept[name] = placed(definitions[name])
            left += _references(kept[name])
    if depth({"": _nested(found), **{name: _nested(part) for name, part in kept.items()}}, "") > DEEPEST:
        raise Unsupported("schema: #: too many schemas in schemas, references followed; make it flatter")
    return found | ({"$defs": dict(sorted(kept.items(), key=lambda item: int(item[0][1:])))} if kept else {})


def _name(part: dict[str, Any]) -> str | None:
    reference = part.get("$ref")
    return reference.removeprefix("#/$defs/") if isinstance(reference, str) else None


def _references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [name for each in part for name in _references(each)]
    if not isinstance(part, dict):
        return []
    name = _name(part)
    if name is not None:
        return [name]
    return [name for key, value in part.items() if key != "enum" for name in _references(value)]


def _nested(part: Any, level: int = 0) -> list[tuple[str, int]]:
    """The references in a schema, and how deep each stands."""
    if isinstance(part, list):
        return [found for each in part for found in _nested(each, level + 1)]
    if not isinstance(part, dict):
        return []
    name = _name(part)
    if name is not None:
        return [(name, level)]
    return [found for key, each in part.items() if key != "enum" for found in _nested(each, level + 1)]


def _reaches(start: str, end: str, references: dict[str, list[str]]) -> bool:
    left, met = list(references[start]), set()
    while left:
        patience.step()
        name = left.pop()
        if name == end:
            return True
        if name not in met:
            met.add(name)
            left += references[name]
    return False
