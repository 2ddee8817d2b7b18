"""Parts: an answer put together again from its pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy

from edgellm.events import ToolCall
from edgellm.prompts.messages import Message
from edgellm.prompts.pieces import CallArguments, CallBegun, CallBroken, CallEnded, Piece, Reasoning, Text


class Parts:
    """What an answer consists of so far. calls: the complete ones, in their order."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._begun: CallBegun | None = None
        self._arguments: list[str] = []

    @property
    def text(self) -> str:
        """What is said, and calls that were none, as the model wrote them."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def take(self, piece: Piece) -> None:
        """The next piece."""
        if isinstance(piece, (Text, CallBroken)):
            self._text.append(piece.text)
        elif isinstance(piece, Reasoning):
            self._reasoning.append(piece.text)
        elif isinstance(piece, CallBegun):
            self._begun, self._arguments = piece, []
        elif isinstance(piece, CallArguments):
            self._arguments.append(piece.text)
        elif isinstance(piece, CallEnded) and self._begun is not None:
            self.calls.append(ToolCall(self._begun.id, self._begun.name, json.loads("".join(self._arguments))))

    def message(self) -> Message:
        """See `answered`."""
        return answered(self.text, self.reasoning, self.calls)


def answered(text: str, reasoning: str = "", calls: Sequence[ToolCall] = ()) -> Message:
    """An answer as a message of the conversation: its reasoning and its calls under names of their own, so that the
    chat template keeps or drops them as its model is used to."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [deepcopy(call.to_dict()) for call in calls]
    return message
