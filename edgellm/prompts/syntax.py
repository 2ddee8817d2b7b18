"""How a call with arguments in JSON is written: Json, all of it an object; Headed, the name in front of the arguments.

Every syntax reads a call (`read`), writes one (`write`), says what a grammar has around and in it (`rule`), and how a
call begins (`begins`), by which it is told from other text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgellm.prompts.cursor import Cursor, Malformed, Steps
from edgellm.prompts.pieces import Pieces, read_json

NAME = re.compile(r"[\w.-]{1,128}")
NAMES = ("name", "tool_name")  # keys of the tool in an object that is a call
ARGUMENTS = ("arguments", "parameters")
IDS = ("id", "call_id", "tool_call_id")
_BLANK = r"/[ \n]{0,4}/"

Schema = Mapping[str, Any]


class Rules:
    """Rules of a grammar in llguidance's form of Lark, as they are made.

    literal: how a text is written in it (default: a string; a token that is one text may have another form). prepared:
    a JSON Schema as it is to be enforced.
    """

    def __init__(
        self, literal: Callable[[str], str] | None = None, prepared: Callable[[Any], Any] = lambda schema: schema
    ) -> None:
        self._literal = literal or (lambda text: json.dumps(text, ensure_ascii=False))
        self._prepared = prepared
        self.made: dict[str, str] = {}

    def text(self, text: str) -> str:
        return self._literal(text) if text else ""

    def upto(self, end: str) -> str:
        """Any text, and `end` behind it."""
        written = self.text(end)
        if written.startswith('"'):
            return self.rule("/(?s:.*)/", f"[suffix={written}]")
        return f"{self.rule('/(?s:.*)/')} {written}"  # a token of its own is in no text

    def json(self, schema: Any) -> str:
        return self.rule(f"%json {json.dumps(self._prepared(schema), ensure_ascii=False)}")

    def rule(self, body: str, options: str = "") -> str:
        """The name of a rule that stands for `body`; the same one for the same body."""
        name = next((name for name, line in self.made.items() if line == f"{options}: {body}"), "")
        if not name:
            name = f"r{len(self.made)}"
            self.made[name] = f"{options}: {body}"
        return name

    def answer(self, ways: Sequence[str], thinking: tuple[str, str, str] | None = None) -> str:
        """The grammar of an answer that has one of several forms, each the body of a rule.

        thinking: what opens and closes reasoning, and what follows it then. It may come first and is free; nothing
        opens what the prompt has opened, and then it must close.
        """
        start = " | ".join(ways)
        if thinking is not None:
            opens, closes, then = thinking
            thought = self.rule(f"{self.text(opens)} {self.upto(closes)} {self.rule(_BLANK)} {self.text(then)}")
            start = f"{thought}{'?' if opens else ''} ({start})"
        return f"start: {start}\n" + "\n".join(name + line for name, line in self.made.items())


def token_literal(tokens: Mapping[str, int]) -> Callable[[str], str]:
    """How a text is written in a grammar for a vocabulary in which some texts are tokens of their own, and no other
    tokens spell them: ids by texts."""
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def literal(text: str) -> str:
        parts, at = [], 0
        for match in pattern.finditer(text):
            parts += [dumped(text[at : match.start()])] if match.start() > at else []
            parts.append(f"<[{tokens[match[0]]}]>")
            at = match.end()
        return " ".join([*parts, dumped(text[at:])] if at < len(text) else parts)

    return literal


class Syntax(Protocol):
    @property
    def begins(self) -> str:
        """What a call begins with; "" where that may be many things."""

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema]) -> Steps[None]:
        """One call. schemas: the parameters of the tools by their names. Raises Malformed."""

    def write(self, name: str, arguments: Mapping[str, Any]) -> str: ...

    def rule(self, rules: Rules, name: str, schema: Schema) -> str:
        """What a grammar has for calls of one tool."""


def types(schema: Any) -> frozenset[str]:
    """The types that a schema names; none where it does not."""
    found = schema.get("type", ()) if isinstance(schema, Mapping) else ()
    return frozenset([found] if isinstance(found, str) else filter(lambda each: isinstance(each, str), found))


def is_text(schema: Any) -> bool:
    named = types(schema)
    return named == {"string"} or (not named and bool(words := words_of(schema)) and all(map(_is_word, words)))


def words_of(schema: Any) -> Sequence[Any]:
    """The values that a schema lists; none where it lists no values."""
    if not isinstance(schema, Mapping):
        return ()
    listed = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return listed if isinstance(listed, Sequence) else ()


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Json:
    """{"name": "f", "arguments": {…}}, its keys in any order and others beside them; {"f": {…}} if `keyed`.

    arguments: the key that is written. known: other names than those of tools are no calls.
    """

    arguments: str = "arguments"
    name: str = "name"
    keyed: bool = False
    known: bool = False
    begins: str = field(default="{", init=False)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        before, after = self._around(name)
        return before + dumped(arguments) + after

    def rule(self, rules: Rules, name: str, schema: Schema) -> str:
        before, after = self._around(name)
        return f"{rules.text(before)} {rules.json(schema)} {rules.text(after)}"

    def _around(self, name: str) -> tuple[str, str]:
        if self.keyed:
            return "{" + dumped(name) + ": ", "}"
        return "{" + f"{dumped(self.name)}: {dumped(name)}, {dumped(self.arguments)}: ", "}"

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema]) -> Steps[None]:
        yield from cursor.expect("{")
        if self.keyed:
            name = yield from self._key(cursor)
            yield from self._arguments(cursor, pieces.arguments, lambda: self._begin(pieces, schemas, name, ""))
            yield from cursor.blanks()
            yield from cursor.expect("}")
            pieces.end()
            return
        found = _Found(self.known, pieces, schemas)
        yield from self._members(cursor, found)
        found.end()

    def _members(self, cursor: Cursor, found: _Found, inside: bool = False) -> Steps[None]:
        """What is between the brackets of an object, and the closing one. inside: of another one."""
        more = False
        while True:
            yield from cursor.blanks()
            if (yield from cursor.starts("}")):
                return
            if more:
                yield from cursor.expect(",")
                yield from cursor.blanks()
            more = True
            key = yield from self._key(cursor)
            next_ = yield from cursor.peek()
            if key in NAMES and next_ == '"' and not found.name:
                found.named((yield from _text(cursor)))
            elif key in IDS and next_ == '"':
                found.id = yield from _text(cursor)
            elif key in ARGUMENTS and not found.has_arguments:
                found.has_arguments = True
                yield from self._arguments(cursor, found.arguments, found.begin)
            elif key == "function" and next_ == "{" and not inside and not found.name:
                yield from cursor.expect("{")
                yield from self._members(cursor, found, inside=True)
            elif found.name or key in IDS or key == "type":
                yield from self._arguments(cursor, lambda _: None, lambda: None)
            else:
                raise Malformed(f"the key {key!r} in front of the name")

    @staticmethod
    def _key(cursor: Cursor) -> Steps[str]:
        yield from cursor.blanks()
        key = yield from _text(cursor)
        yield from cursor.blanks()
        yield from cursor.expect(":")
        yield from cursor.blanks()
        return key

    @staticmethod
    def _arguments(cursor: Cursor, out: Callable[[str], None], begin: Callable[[], None]) -> Steps[None]:
        begin()
        first = yield from cursor.peek()
        if first in ('"', "{", "["):
            yield from cursor.value(out)
        else:
            out((yield from cursor.word(_SCALAR, 64)))

    def _begin(self, pieces: Pieces, schemas: Mapping[str, Schema], name: str, id: str) -> None:
        check_name(name)
        if self.known and name not in schemas:
            raise Malformed(f"no tool {name!r}")
        pieces.begin(name, id)


_SCALAR = re.compile(r"[\w.+-]")


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Malformed(f"{name[:64]!r} is no name")


def _text(cursor: Cursor) -> Steps[str]:
    """A text of JSON."""
    if (yield from cursor.peek()) != '"':
        raise Malformed("no text")
    found: list[str] = []
    yield from cursor.value(found.append)
    value = read_json("".join(found))
    return str(value)


class _Found:
    """What is known of a call whose keys may come in any order: it begins once its name is known."""

    def __init__(self, known: bool, pieces: Pieces, schemas: Mapping[str, Schema]) -> None:
        self._known = known
        self._pieces = pieces
        self._schemas = schemas
        self.name = self.id = ""
        self.has_arguments = False
        self._held: list[str] = []  # arguments in front of the name
        self._begun = False

    def named(self, name: str) -> None:
        check_name(name)
        if self._known and name not in self._schemas:
            raise Malformed(f"no tool {name!r}")
        self.name = name
        if self._held:
            self.begin()
            self._pieces.arguments("".join(self._held))

    def begin(self) -> None:
        if self.name and not self._begun:
            self._begun = True
            self._pieces.begin(self.name, self.id)

    def arguments(self, text: str) -> None:
        if self._begun:
            self._pieces.arguments(text)
        else:
            self._held.append(text)

    def end(self) -> None:
        if not self.name:
            raise Malformed("no name")
        if self._known and not self.has_arguments:
            raise Malformed("no arguments")
        self.begin()
        self._pieces.end()


@dataclass(frozen=True)
class Headed:
    """The name, perhaps with an id, and the arguments behind it: [TOOL_CALLS]f[ARGS]{…}.

    begins: what the call begins with. between: name and arguments. after: the arguments. head: what stands where the
    name does, a pattern with the group `name` and perhaps `id`. wrote: the same for writing, with {} for the name.
    talk: the name that is none, but says that text follows.
    """

    begins: str
    between: str
    after: str = ""
    head: re.Pattern[str] = re.compile(r"(?P<name>[\w.-]+)")
    wrote: str = "{}"
    talk: str = ""

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        before, after = self._around(name)
        return before + dumped(arguments) + after

    def rule(self, rules: Rules, name: str, schema: Schema) -> str:
        before, after = self._around(name)
        return f"{rules.text(before)} {rules.json(schema)} {rules.text(after)}"

    def _around(self, name: str) -> tuple[str, str]:
        return self.begins + self.wrote.format(name) + self.between, self.after

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema]) -> Steps[None]:
        yield from cursor.expect(self.begins)
        head, _ = yield from cursor.until(self.between.strip() or "\n", most=256)
        match = self.head.fullmatch(head.strip())
        if match is None:
            raise Malformed("no name")
        if match["name"] == self.talk:
            return
        name, id = match["name"], match.groupdict().get("id") or ""
        check_name(name)
        yield from cursor.blanks()
        if (yield from cursor.peek()) != "{":
            raise Malformed("no arguments")
        pieces.begin(name, id)
        yield from cursor.value(pieces.arguments)
        pieces.end()
        after = self.after.strip()
        if after:
            yield from cursor.blanks()
            yield from cursor.starts(after)
