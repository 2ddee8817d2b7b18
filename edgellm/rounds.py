"""Rounds: a model calls tools, is given their results, and goes on, until it answers without a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgellm import arguments
from edgellm.constrain.parsed import instance
from edgellm.errors import GenerationError, InvalidParameter
from edgellm.events import Completion, ToolCall
from edgellm.prompter import Prompter
from edgellm.prompts.functions import Tool
from edgellm.prompts.messages import Message
from edgellm.reply import ChatOptions
from edgellm.toolbox import Approve, Toolbox

ROUNDS = 8


class RunOptions(ChatOptions, total=False):
    """Those of `Chat.run`."""

    approve: Approve | None
    rounds: int | None


class Rounds:
    """Those behind one message. options: of the next answer in them."""

    def __init__(self, options: RunOptions, prompter: Prompter) -> None:
        approve, most = options.pop("approve", None), options.pop("rounds", None)
        tools = prompter.tools(options.get("tools") or ())
        if not tools:
            raise InvalidParameter("tools: there is none that could be run; send() takes messages without tools")
        if approve is not None:
            arguments.function("approve", approve)
        options["tools"] = tools
        self.options: ChatOptions = options  # without what is of this alone
        self._box = Toolbox(tools, approve=approve, taken=taken)
        self._left = arguments.whole("rounds", ROUNDS if most is None else most, 1)
        self._cancel = options.get("cancel")

    def calls(self, done: Completion) -> Sequence[ToolCall]:
        """What must be called before the model goes on: nothing, where this is its answer or somebody stops it."""
        stopped = self._cancel is not None and self._cancel.cancelled
        if done.finish_reason != "tool_calls" or stopped:
            return ()
        self._left -= 1
        self.options["tool_choice"] = "auto" if self._left > 0 else "none"
        return done.tool_calls

    def run(self, calls: Sequence[ToolCall]) -> list[Message]:
        """The results."""
        return [self._stopped(call) or self._box.run(call) for call in calls]

    async def arun(self, calls: Sequence[ToolCall]) -> list[Message]:
        return [self._stopped(call) or await self._box.arun(call) for call in calls]

    def _stopped(self, call: ToolCall) -> Message | None:
        if self._cancel is None or not self._cancel.cancelled:
            return None
        return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": "error: this was stopped"}


def taken(tool: Tool, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call as its function takes them: instances of what its parameters say. Raises ValueError."""
    return dict(_instances(tool, values))


def _instances(tool: Tool, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name not in tool.kinds:
            yield name, value
            continue
        try:
            yield name, instance(tool.kinds[name], value)
        except GenerationError as error:
            raise ValueError(f"{name}: {error}") from error
