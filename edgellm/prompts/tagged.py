"""Tagged: a call whose arguments stand between tags, one after the other, texts without quotation marks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.prompts.cursor import Cursor, Malformed, Steps
from edgellm.prompts.literal import python_value
from edgellm.prompts.pieces import Pieces, read_json
from edgellm.prompts.syntax import Rules, Schema, check_name, dumped, is_text, types, words_of

_NAME = re.compile(r"[\w.-]")
MOST = 256  # characters of a name


@dataclass(frozen=True)
class Tagged:
    """<function=f><parameter=k>v</parameter></function>, and its relatives.

    begins, named: around the name. key, keyed, end: around an argument's name and its value. closes: after the last
    one. pad: between tags and values. marked: the tag of an argument says string="true" or "false".
    """

    begins: str
    named: str
    key: str
    keyed: str
    end: str
    closes: str
    pad: str = ""
    marked: bool = False

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        written = (self._tag(key, isinstance(value, str)) + _plain(value) for key, value in arguments.items())
        inside = "".join(each + self.pad + self.end + "\n" for each in written)
        return f"{self.begins}{name}{self.named}\n{inside}{self.closes}"

    def _tag(self, key: str, is_text: bool) -> str:
        kind = f'" string="{"true" if is_text else "false"}"' if self.marked else ""
        return self.key + key + kind + self.keyed + self.pad

    def rule(self, rules: Rules, name: str, schema: Schema) -> str:
        required = schema.get("required", ())
        parts = [rules.text(f"{self.begins}{name}{self.named}\n")]
        for key, value in schema.get("properties", {}).items():
            argument = rules.rule(f"{rules.text(self._tag(key, is_text(value)))} {self._value(rules, value)}")
            parts.append(argument if key in required else f"{argument}?")
        return " ".join([*parts, rules.text(self.closes)])

    def _value(self, rules: Rules, schema: Any) -> str:
        end = self.pad + self.end + "\n"
        if is_text(schema) and (words := words_of(schema)):
            return f"({' | '.join(rules.text(each) for each in words)}) {rules.text(end)}"
        if is_text(schema):
            return rules.upto(end)
        return f"{rules.json(schema)} {rules.text(end)}"

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema]) -> Steps[None]:
        yield from cursor.expect(self.begins)
        name = (yield from cursor.until(self.named, most=MOST))[0] if self.named else (yield from cursor.word(_NAME))
        check_name(name.strip())
        properties = schemas.get(name.strip(), {}).get("properties", {})
        pieces.begin(name.strip())
        before = "{"
        while True:
            yield from cursor.blanks()
            if not (yield from cursor.starts(self.key)):
                break
            key, value = yield from self._argument(cursor, properties)
            pieces.arguments(f"{before}{dumped(key)}: {dumped(value)}")
            before = ", "
        if self.closes and not (yield from cursor.starts(self.closes)):
            raise Malformed(f"no {self.closes!r}")
        pieces.arguments("{}" if before == "{" else "}")
        pieces.end()

    def _argument(self, cursor: Cursor, properties: Mapping[str, Any]) -> Steps[tuple[str, Any]]:
        after, _, inside = self.keyed.partition("\n")
        key, _ = yield from cursor.until(after, most=MOST)
        key, kind = key.strip(), ""
        if self.marked:
            match = re.fullmatch(r'(.+?)"(?: string="(true|false)")?', key)
            if match is None:
                raise Malformed("no name of an argument")
            key, kind = match[1], match[2] or ""
        if inside:
            yield from cursor.blanks()
            yield from cursor.expect(inside)
        text, _ = yield from cursor.until(self.end)
        if self.pad:
            text = text.removeprefix(self.pad).removesuffix(self.pad)
        if kind:
            return key, text if kind == "true" else read_json(text)
        return key, _meant(text, properties.get(key))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _meant(text: str, schema: Any) -> Any:
    """What a text without quotation marks stands for: itself, if that is what its schema wants, or no JSON."""
    if is_text(schema):
        return text
    try:
        return read_json(text)
    except Malformed:  # as Python writes it, or a text
        return text if "string" in types(schema) else python_value(text, text)
