"""AnswerReading: what a prompt made of messages says of its answer: how it is read, and what form it must have.

It travels in the `Turn`, so that whoever has a model answer one, a chat or a server, gets the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm.backends.base import Tokenizer
from edgellm.constrain.grammars import enforced
from edgellm.engine.seam import alone
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.events import Heard, ToolCall, ToolCallDelta
from edgellm.prompts.calls import AnswerReader
from edgellm.prompts.channels import ALL as CHANNEL_MARKS
from edgellm.prompts.channels import CHANNELS
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.parts import complete
from edgellm.prompts.pieces import CallArguments, CallBegun, CallBroken, CallEnded, Piece, Reasoning, Text
from edgellm.prompts.reasoning import Thinking
from edgellm.prompts.syntax import Headed, Json, Rules, Schema, token_literal


@dataclass(frozen=True)
class Marks:
    """The texts of a model's marks that are tokens of their own: those that stand for no text elsewhere, by their ids,
    and those that end an answer. closing: the tokens that end its reasoning. calling: the one that calls and
    nothing else begin with, where there is one."""

    controls: Mapping[int, bytes] = field(default_factory=dict)
    ends: frozenset[str] = frozenset()
    closing: tuple[int, ...] = ()
    calling: tuple[int, ...] = ()

    @staticmethod
    def of(tokenizer: Tokenizer, stop_ids: Iterable[int], dialect: Dialect | None, thinking: Thinking | None) -> Marks:
        texts, closing, calling = list[str](), tuple[int, ...](), tuple[int, ...]()
        if dialect is not None:
            texts += [dialect.mark, "[CALL_ID]", dialect.write([("f", {"a": "b", "n": 1})] * 2)]
            begun = tokenizer.encode(dialect.mark.strip(), special=True)
            if len(begun) == 1 and begun[0] not in stop_ids and dialect.mark != CHANNELS:  # those hold texts, too
                calling = tuple(begun)
        if thinking is not None:
            texts += [thinking.opens, thinking.closes, *(CHANNEL_MARKS if thinking.opens == CHANNELS else ())]
            closing = tuple(alone(tokenizer, thinking.closing))
        controls, ends, stops = dict[int, bytes](), set[str](), frozenset(stop_ids)
        for text in texts:
            for token in tokenizer.encode(text, special=True):
                name = tokenizer.piece(token, special=True)
                if not name or name.decode("utf-8", "replace") not in text:
                    continue
                if token in stops:
                    ends.add(name.decode())
                elif not tokenizer.piece(token):
                    controls[token] = name
        return Marks(controls, frozenset(ends), closing, calling)

    def literal(self, text: str) -> str:
        """How a text is written in a grammar; what ends an answer is no part of it."""
        for end in self.ends:
            text = text.replace(end, "")
        return token_literal({name.decode(): token for token, name in self.controls.items()})(text) if text else ""


@dataclass(frozen=True)
class AnswerReading:
    """See above; `edgellm.engine.reading.Reading` is what the engine knows of it.

    prompt: what is answered. dialect: how calls are written; None where there are to be none. schemas: the parameters
    of the tools by their names. must: those of which one must be called; none where the answer may be a text.
    """

    prompt: str
    dialect: Dialect | None
    thinking: Thinking | None
    marks: Marks
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    must: Sequence[str] = ()

    @property
    def controls(self) -> Mapping[int, bytes]:
        return self.marks.controls

    @property
    def closing(self) -> Sequence[int]:
        return self.marks.closing

    @property
    def never(self) -> Sequence[int]:
        return self.marks.calling if self.dialect is None else ()

    def reader(self) -> _Reader:
        return _Reader(AnswerReader(self.prompt, self.dialect, self.thinking, self.schemas))

    def grammar(self, form: bool) -> str:
        """See `Reading.grammar`. Raises Unsupported, InvalidParameter for parameters that cannot be enforced."""
        if not self.must and (not form or (self.dialect is None and self.thinking is None)):
            return ""
        rules, ways = Rules(self.marks.literal, enforced), list[str]()
        if self.dialect is not None:
            dialect = self.dialect
            if self.prompt.endswith(dialect.mark):  # it is written already
                dialect = replace(dialect, bare=True)
            schemas = {name: self._schema(name) for name in self.must or self.schemas}
            # one where one must come: of those who write several, small models find no end
            ways.append(dialect.calls(rules, schemas, several=not self.must))
        if not self.must:
            header = self.thinking.header if self.thinking is not None else ""
            ways.append(f"{rules.text(header)} @form")
        return rules.answer(ways, None if self.thinking is None else self.thinking.around(self.prompt))

    def _schema(self, name: str) -> Schema:
        """The parameters of a tool, which can be enforced; each of them alone where a dialect writes them so."""
        schema = self.schemas[name]
        try:
            enforced(schema)
        except (InvalidParameter, Unsupported) as error:
            raise type(error)(f"tools: {name}: {error}") from error
        if self.dialect is None or isinstance(self.dialect.syntax, (Json, Headed)) or "$defs" not in schema:
            return schema
        defs = schema["$defs"]
        properties = {
            key: {**value, "$defs": defs} if isinstance(value, Mapping) else value
            for key, value in schema.get("properties", {}).items()
        }
        return {**schema, "properties": properties}

    def raw(self, tokenizer: Tokenizer, tokens: Sequence[int], before: int | None) -> str:
        """The answer as the model wrote it. before: the last token of the prompt."""
        found = bytearray()
        for token in tokens:
            found += self.controls.get(token) or tokenizer.piece(token, before=before)
            before = token
        return found.decode("utf-8", "replace")


class _Reader:
    """See `edgellm.engine.reading.Reader`."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._deltas: list[ToolCallDelta] = []

    @property
    def thinking(self) -> bool:
        return self._reader.thinking

    @property
    def calls(self) -> Sequence[ToolCall]:
        return complete(self._deltas)

    def feed(self, text: str) -> Heard:
        return self._heard(self._reader.feed(text))

    def finish(self) -> Heard:
        return self._heard(self._reader.finish())

    def _heard(self, pieces: list[Piece]) -> Heard:
        texts, thoughts, calls = list[str](), list[str](), list[ToolCallDelta]()
        for piece in pieces:
            if isinstance(piece, (Text, CallBroken)):
                texts.append(piece.text)
            elif isinstance(piece, Reasoning):
                thoughts.append(piece.text)
            elif isinstance(piece, CallBegun):
                calls.append(ToolCallDelta(piece.index, piece.id, piece.name))
            elif isinstance(piece, CallArguments):
                calls.append(ToolCallDelta(piece.index, arguments=piece.text))
            elif isinstance(piece, CallEnded):
                calls.append(ToolCallDelta(piece.index, complete=True))
        self._deltas += calls
        return Heard("".join(texts), "".join(thoughts), tuple(calls))


def must_call(choice: Any, names: Sequence[str]) -> Sequence[str]:
    """The tools of which one must be called. choice: "auto", "none", "required" or a name. Raises InvalidParameter."""
    if choice in ("auto", "none"):
        return ()
    if not names:
        raise InvalidParameter(f"tool_choice={choice!r}: there are no tools")
    if choice == "required":
        return tuple(names)
    if choice not in names:
        raise InvalidParameter(
            f"tool_choice={choice!r}: must be auto, none, required or the name of a tool: {', '.join(names)}"
        )
    return (choice,)
