"""Calls whose arguments are written as literals of a programming language: f(a=1, b='x') and call:f{a:1,b:<">x<">}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.prompts.cursor import DEEPEST, Cursor, Malformed, Steps
from edgellm.prompts.pieces import Pieces, read_json
from edgellm.prompts.syntax import Rules, Schema, check_name, dumped, is_text, words_of

_WORD = re.compile(r"[\w.-]")
_SCALAR = re.compile(r"[\w.+-]")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_NUMBER = re.compile(r"-?(?:\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Pythonic:
    """f(a=1, b='x')."""

    begins: str = field(default="", init=False)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        return f"{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})"

    def rule(self, rules: Rules, name: str, schema: Schema) -> str:
        return _arguments_rule(rules, schema, (f"{name}(", ", ", ")"), lambda key: f"{key}=", self._value)

    @staticmethod
    def _value(rules: Rules, schema: Any) -> str:
        if isinstance(schema, Mapping) and schema.get("type") == "boolean" and not {"enum", "const"} & schema.keys():
            return '("True" | "False")'
        return rules.json(schema)

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema]) -> Steps[None]:
        name = yield from cursor.word(_WORD)
        check_name(name)
        yield from cursor.expect("(")
        pieces.begin(name)
        yield from _arguments(cursor, pieces, ("=", ")"), ('"', "'"))


@dataclass(frozen=True)
class Braced:
    """call:f{a:1,b:<">x<">}; quote: what stands around texts, which have no escapes."""

    quote: str
    begins: str = field(default="call:", init=False)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        return f"call:{name}{self._write(dict(arguments))}"

    def _write(self, value: Any) -> str:
        if isinstance(value, str):
            return self.quote + value + self.quote
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{key}:{self._write(each)}" for key, each in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ",".join(map(self._write, value)) + "]"
        return dumped(value)

    def rule(self, rules: Rules, name: str, schema: Schema) -> str:
        return _arguments_rule(rules, schema, (f"call:{name}{{", ",", "}"), lambda key: f"{key}:", self._value)

    def _value(self, rules: Rules, schema: Any) -> str:
        if not is_text(schema):
            return rules.json(schema)
        if words := words_of(schema):
            return f"({' | '.join(rules.text(self.quote + each + self.quote) for each in words)})"
        return f"{rules.text(self.quote)} {rules.upto(self.quote)}"

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema]) -> Steps[None]:
        yield from cursor.expect(self.begins)
        name = yield from cursor.word(_WORD)
        check_name(name)
        yield from cursor.expect("{")
        pieces.begin(name)
        yield from _arguments(cursor, pieces, (":", "}"), (self.quote, '"'))  # JSON, too: `rule` has it inside


def _arguments_rule(rules: Rules, schema: Schema, around: tuple[str, str, str], key_of: Any, value_of: Any) -> str:
    """The required ones in their order, then the others, any of them left out."""
    before, between, after = around
    properties, required = schema.get("properties", {}), schema.get("required", ())
    written = {
        key: rules.rule(f"{rules.text(key_of(key))} {value_of(rules, value)}") for key, value in properties.items()
    }
    must = [written[key] for key in properties if key in required]
    may = [written[key] for key in properties if key not in required]
    comma = rules.text(between)
    parts = f" {comma} ".join(must)
    if must:
        parts += "".join(f" ({comma} {each})?" for each in may)
    elif may:
        parts = _some(may, comma)
    return f"{rules.text(before)} {parts} {rules.text(after)}"


def _some(names: list[str], comma: str) -> str:
    """Any of several, none too, in their order."""
    ways = (names[at] + "".join(f" ({comma} {each})?" for each in names[at + 1 :]) for at in range(len(names)))
    return f"({' | '.join(ways)})?"


def _arguments(cursor: Cursor, pieces: Pieces, marks: tuple[str, str], quotes: tuple[str, ...]) -> Steps[None]:
    """Arguments by their names up to the closing bracket, each passed on as it is complete. marks: what is between a
    name and its value, and that bracket."""
    between, closing = marks
    before, seen = "{", set[str]()
    while True:
        yield from cursor.blanks()
        if (yield from cursor.starts(closing)):
            break
        if seen:
            yield from cursor.expect(",")
            yield from cursor.blanks()
        key = yield from _key(cursor, quotes)
        if not key or key in seen:
            raise Malformed(f"the argument {key[:64]!r}")
        seen.add(key)
        yield from cursor.blanks()
        yield from cursor.expect(between)
        value = yield from _value(cursor, quotes, 1)
        pieces.arguments(f"{before}{dumped(key)}: {dumped(value)}")
        before = ", "
    pieces.arguments("}" if seen else "{}")
    pieces.end()


def python_value(text: str, default: Any) -> Any:
    """What a text stands for that is a value as Python writes it; `default` where it is none."""
    cursor = Cursor()
    cursor.feed(text)
    cursor.ended = True
    steps = _value(cursor, ('"', "'"), 1)
    try:
        next(steps)
    except StopIteration as end:
        return default if cursor.left().strip() else end.value
    except Malformed:
        pass
    return default


def _key(cursor: Cursor, quotes: tuple[str, ...]) -> Steps[str]:
    text = yield from _quoted(cursor, quotes)
    return (yield from cursor.word(_WORD)) if text is None else text


def _value(cursor: Cursor, quotes: tuple[str, ...], depth: int) -> Steps[Any]:
    if depth > DEEPEST:
        raise Malformed("too deep")
    yield from cursor.blanks()
    text = yield from _quoted(cursor, quotes)
    if text is not None:
        return text
    for opening, closing in ("[]", "()"):
        if (yield from cursor.starts(opening)):
            return (yield from _list(cursor, quotes, closing, depth))
    if (yield from cursor.starts("{")):
        return (yield from _object(cursor, quotes, depth))
    word = yield from cursor.word(_SCALAR)
    if word in _WORDS:
        return _WORDS[word]
    if not _NUMBER.fullmatch(word):
        raise Malformed(f"{word[:64]!r} is no value")
    return read_json(re.sub(r"^(-?)0+(?=\d)", r"\1", word))


def _list(cursor: Cursor, quotes: tuple[str, ...], closing: str, depth: int) -> Steps[list[Any]]:
    found: list[Any] = []
    while True:
        yield from cursor.blanks()
        if (yield from cursor.starts(closing)):
            return found
        if found:
            yield from cursor.expect(",")
            yield from cursor.blanks()
            if (yield from cursor.starts(closing)):
                return found
        found.append((yield from _value(cursor, quotes, depth + 1)))


def _object(cursor: Cursor, quotes: tuple[str, ...], depth: int) -> Steps[dict[str, Any]]:
    found: dict[str, Any] = {}
    while True:
        yield from cursor.blanks()
        if (yield from cursor.starts("}")):
            return found
        if found:
            yield from cursor.expect(",")
            yield from cursor.blanks()
        key = yield from _key(cursor, quotes)
        if key in found:
            raise Malformed("a key comes twice")
        yield from cursor.blanks()
        yield from cursor.expect(":")
        found[key] = yield from _value(cursor, quotes, depth + 1)


def _quoted(cursor: Cursor, quotes: tuple[str, ...]) -> Steps[str | None]:
    """A text in quotation marks; None where none comes."""
    for quote in quotes:
        if not (yield from cursor.starts(quote)):
            continue
        if len(quote) > 1:
            text, _ = yield from cursor.until(quote)
            return text
        found = ""
        while True:
            text, mark = yield from cursor.until("\\", quote)
            found += text
            if mark == quote:
                return _unescaped(found)
            if not (yield from cursor.some()):
                raise Malformed("unfinished")
            found += "\\" + (yield from cursor.word(_ANY, 1))
    return None


_ANY = re.compile(r"(?s:.)")


def _unescaped(text: str) -> str:
    """What Python makes of the escapes; unknown ones stay as they are."""

    def meant(match: re.Match[str]) -> str:
        each = match[1]
        if len(each) > 1:
            return chr(int(each[1:], 16))
        return _ESCAPED.get(each, each if each in "\\'\"/" else match[0])

    plain = _ESCAPE.sub(meant, text)
    try:  # pairs of surrogates, as JSON spells them, become characters
        return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise Malformed("half a pair of surrogates") from None


def _python(value: Any) -> str:
    if isinstance(value, str):
        return dumped(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dumped(key)}: {_python(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_python, value)) + "]"
    return "None" if value is None else str(value)
