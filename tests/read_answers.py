"""Answers of models for the tests of what reads them: how they are read, and vectors written from the templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.prompts.calls import AnswerReader
from edgellm.prompts.channels import CHANNELS
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.pieces import CallArguments, CallBegun, CallBroken, CallEnded, Piece, Reasoning, Text
from edgellm.prompts.reasoning import Thinking
from edgellm.prompts.template import ChatTemplate

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "days": {"type": "array", "items": {"type": "integer"}},
            "near": {"type": "boolean"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
THINK = Thinking("<think>", "</think>", ChatTemplate("<think></think>"))
_ON_CHANNELS = Thinking(CHANNELS, "<|end|>", ChatTemplate(""))


def read(
    answer: str | Sequence[str],
    dialect: Dialect | None,
    thinking: Thinking | None = None,
    prompt: str = "",
    schemas: Mapping[str, Any] = SCHEMAS,
) -> list[Piece]:
    """The pieces of an answer, those that follow each other joined."""
    if dialect is not None and dialect.name == "harmony":
        thinking = _ON_CHANNELS
    reader = AnswerReader(prompt, dialect, thinking, schemas, make_id=lambda: "made")
    pieces: list[Piece] = []
    for part in [answer] if isinstance(answer, str) else answer:
        pieces += reader.feed(part)
    return joined([*pieces, *reader.finish()])


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + piece.text)
        elif isinstance(piece, CallArguments) and isinstance(last, CallArguments) and last.index == piece.index:
            found[-1] = CallArguments(piece.index, last.text + piece.text)
        else:
            found.append(piece)
    return found


def calls(pieces: Sequence[Piece]) -> list[tuple[str, str, Any]]:
    """The complete calls: id, name and arguments."""
    begun = {piece.index: piece for piece in pieces if isinstance(piece, CallBegun)}
    ended = [piece.index for piece in pieces if isinstance(piece, CallEnded)]
    said = dict.fromkeys(begun, "")
    for piece in pieces:
        if isinstance(piece, CallArguments):
            said[piece.index] += piece.text
    return [(begun[index].id, begun[index].name, json.loads(said[index])) for index in ended]


def texts(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, (Text, CallBroken)))


def reasoning(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
