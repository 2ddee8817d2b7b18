"""Toolbox: the tools of a conversation, and the results of a model's calls of them.

Nothing that a tool does ends the conversation: a tool that is not there, arguments that are none of its own, a call
that the user does not approve of and an exception are told to the model as the result, which may do better then.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from edgellm.errors import InvalidParameter
from edgellm.events import ToolCall
from edgellm.prompts.functions import Tool
from edgellm.prompts.messages import Message

MOST = 1 << 16  # characters of a result that a model is given

Approve = Callable[[ToolCall], Any]
"""Asked before a call: true lets it pass, a text is the reason why not. May be a coroutine function in asyncio."""


class Toolbox:
    """See above.

    taken: turns the arguments of a tool into what its function takes; raises ValueError or TypeError for those that
    break its parameters.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        approve: Approve | None = None,
        taken: Callable[[Tool, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._approve = approve
        self._taken = taken
        missing = next((tool.name for tool in tools if tool.function is None), None)
        if missing is not None:
            raise InvalidParameter(
                f"tools: {missing!r} has no function to call; give one, or call it yourself with send(tools=…)"
            )

    def run(self, call: ToolCall) -> Message:
        """The message with the result of a call. Raises InvalidParameter for a function that must be awaited."""
        function, arguments, refusal = self._prepared(call)
        if function is None:
            return _result(call, refusal)
        if _awaited(function) or (self._approve is not None and _awaited(self._approve)):
            raise InvalidParameter(f"tools: {call.name} must be awaited; use arun()")
        if self._approve is not None and (said := self._approve(call)) is not True:
            return _result(call, _disapproved(said))
        value, failed = _tried(function, arguments)
        if inspect.iscoroutine(value):  # the function hides that it is one to be awaited
            value.close()
            raise InvalidParameter(f"tools: {call.name} must be awaited; use arun()")
        try:
            return _result(call, failed or _text(value))
        except Exception as error:
            return _result(call, _failure(error))

    async def arun(self, call: ToolCall) -> Message:
        """The same for asyncio; what is no coroutine function runs in a thread."""
        from asyncio import to_thread  # costs what only its users should pay

        function, arguments, refusal = self._prepared(call)
        if function is None:
            return _result(call, refusal)
        if self._approve is not None:
            said = self._approve(call)
            if inspect.isawaitable(said):
                said = await said
            if said is not True:
                return _result(call, _disapproved(said))
        at_once = _awaited(function)
        value, failed = _tried(function, arguments) if at_once else await to_thread(_tried, function, arguments)
        try:
            return _result(call, failed or _text(await value if inspect.isawaitable(value) else value))
        except Exception as error:
            return _result(call, _failure(error))

    def _prepared(self, call: ToolCall) -> tuple[Callable[..., Any] | None, dict[str, Any], str]:
        """The function and its arguments; or None, and why."""
        tool = self._tools.get(call.name)
        if tool is None or tool.function is None:
            return None, {}, f"error: there is no tool {call.name!r}; there are: {', '.join(self._tools)}"
        try:
            arguments = call.arguments if self._taken is None else self._taken(tool, call.arguments)
            inspect.signature(tool.function).bind(**arguments)
        except (TypeError, ValueError) as error:
            return None, {}, f"error: the arguments of {call.name} are wrong: {error}"
        return tool.function, arguments, ""


def _awaited(function: Callable[..., Any]) -> bool:
    """Whether it is a coroutine function, or an object that is called as one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _tried(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, str]:
    """What it returns, or what it raises, in words: no thread hands a StopIteration on, and who waits, waits on."""
    try:
        return function(**arguments), ""
    except Exception as error:
        return None, _failure(error)


def _result(call: ToolCall, text: str) -> Message:
    if len(text) > MOST:
        text = f"{text[:MOST]}\n[cut: {len(text)} characters]"
    return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": text}


def _text(value: Any) -> str:
    """What a tool returned, as a text: JSON of what is none."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _failure(error: Exception) -> str:
    try:
        return f"error: {type(error).__name__}: {error}"
    except Exception:  # it cannot even be said
        return f"error: {type(error).__name__}"


def _disapproved(said: object) -> str:
    return f"error: this call was not approved{f': {said}' if isinstance(said, str) and said else ''}"
