"""complete, answered: the calls and the message of an answer, from what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy

from edgellm.events import ToolCall, ToolCallDelta
from edgellm.prompts.messages import Message


def complete(pieces: Iterable[ToolCallDelta]) -> list[ToolCall]:
    """The calls that are complete in pieces of calls."""
    begun, arguments, found = dict[int, ToolCallDelta](), dict[int, str](), list[ToolCall]()
    for piece in pieces:
        first = begun.setdefault(piece.index, piece)
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
        if piece.complete:
            found.append(ToolCall(first.id, first.name, json.loads(arguments[piece.index])))
    return found


def answered(text: str, reasoning: str = "", calls: Sequence[ToolCall] = ()) -> Message:
    """An answer as a message of the conversation: its reasoning and its calls under names of their own, so that the
    chat template keeps or drops them as its model is used to."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [deepcopy(call.to_dict()) for call in calls]
    return message
