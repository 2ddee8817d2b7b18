"""Answers on channels, as gpt-oss gives them: analysis is reasoning, final is text, what goes to a function is a call.

    <|channel|>analysis<|message|>…<|end|>
    <|start|>assistant to=functions.f<|channel|>commentary json<|message|>{…}<|call|>

The format is described at https://cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

import re

from edgellm.prompts.cursor import Cursor, Malformed, Out, Steps
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.pieces import Pieces
from edgellm.prompts.syntax import Headed

CHANNELS = "<|channel|>"
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
ALL = (CHANNELS, _MESSAGE, *_ENDS, "<|constrain|>")
_MOST = 512  # characters of a header
_TO = re.compile(r"\bto=(?:functions\.)?(?P<name>[\w.-]+)")
_HEAD = re.compile(r".*?\bto=(?:functions\.)?(?P<name>[\w.-]+)(?s:.*)")

HARMONY = Dialect(
    "harmony",
    Headed("", _MESSAGE, "<|call|>", _HEAD, "commentary to=functions.{} <|constrain|>json"),
    CHANNELS,
)


def read_channels(cursor: Cursor, pieces: Pieces) -> Steps[None]:
    """The messages of an answer, the first one behind <|start|>assistant."""
    while (yield from cursor.some()):
        yield from _message(cursor, pieces)
    pieces.end_text()


def _message(cursor: Cursor, pieces: Pieces) -> Steps[None]:
    cursor.record()
    try:
        header, mark = yield from cursor.until(_MESSAGE, *_ENDS, most=_MOST)
    except Malformed:
        header, mark = cursor.recorded(), ""
    if mark != _MESSAGE:  # no message: text that has no header
        cursor.recorded()
        pieces.text(header)
        if not mark:
            yield from cursor.upto(_ENDS, pieces.text)
        return
    to = _TO.search(header)
    channel = header.rpartition(CHANNELS)[2].strip() if CHANNELS in header else ""
    if to is not None and to["name"] != "assistant":
        yield from _call(cursor, pieces, to["name"])
        return
    cursor.recorded()
    pieces.thinking = channel.startswith("analysis")
    out: Out = pieces.reasoning if pieces.thinking else pieces.text
    yield from cursor.upto(_ENDS, out)
    pieces.thinking = False


def _call(cursor: Cursor, pieces: Pieces, name: str) -> Steps[None]:
    try:
        yield from cursor.blanks()
        if (yield from cursor.peek()) != "{":
            raise Malformed("no arguments")
        pieces.begin(name)
        yield from cursor.value(pieces.arguments)
        pieces.end()
        cursor.recorded()
        yield from cursor.blanks()
        yield from cursor.starts("<|call|>")
    except Malformed:
        pieces.give_back(cursor.recorded())
        yield from cursor.upto(_ENDS, pieces.text)
