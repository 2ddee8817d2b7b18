"""ToolPrompt: how tools, calls and results get into a prompt: by the chat template where it knows them, else as text.

What a template knows is found by trying: it is given a tool, a call and a result, and what it shows it knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from edgellm.errors import InvalidParameter, TemplateError, Unsupported
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.dialects import dialect_of
from edgellm.prompts.functions import Tool
from edgellm.prompts.messages import Message, flattened
from edgellm.prompts.template import ChatTemplate

VARIABLES = ("tools", "xml_tools", "available_tools", "python_tools", "functions")
"""Names under which templates read tools, the likeliest first."""
_PROBE = "edgellmProbe"
_RESULT = "edgellmResult"
_TOOL = Tool(
    _PROBE, "d", {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}, "required": ["a"]}
)
_USER: Message = {"role": "user", "content": "Hello"}


class ToolPrompt:
    """See above. One for each template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.dialect: Dialect = dialect_of(template.source)

    @cached_property
    def variable(self) -> str:
        """The variable by which the template takes tools; "" where it shows none."""
        for name in VARIABLES:
            if name in self._template.variables and _PROBE in self._rendered([_USER], {name: [_TOOL.described()]}):
                return name
        return ""

    @cached_property
    def in_message(self) -> bool:
        """Whether the template reads tools, as JSON, in the system message."""
        described = json.dumps([_TOOL.described()["function"]])
        return _PROBE in self._rendered([{"role": "system", "content": "S", "tools": described}, _USER], {})

    @cached_property
    def arguments(self) -> str:
        """How the template takes the arguments of calls: "object", "text" (JSON), or "" where it does not show calls
        and their results."""
        for form, arguments in (("object", {"a": _PROBE}), ("text", json.dumps({"a": _PROBE}))):
            call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}}
            said = {"role": "assistant", "content": "", "tool_calls": [call]}
            result = {"role": "tool", "name": "f", "content": _RESULT, "tool_call_id": "call00001"}
            given = {self.variable: [_TOOL.described() | {"name": "f"}]} if self.variable else {}
            shown = self._rendered([_USER, said, result], given).replace(json.dumps(_TOOL.described()), "")
            without = self._rendered([_USER, {**said, "tool_calls": []}, result], given)
            if _RESULT in shown and shown.count(_PROBE) > without.count(_PROBE):
                return form
        return ""

    def _rendered(self, messages: list[Message], variables: dict[str, Any]) -> str:
        try:
            return self._template.render(messages, **variables)
        except (TemplateError, Unsupported, InvalidParameter):
            return ""

    def prepared(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[Message], dict[str, Any]]:
        """Messages and variables for `ChatTemplate.render`, so that the prompt has the tools, and the calls and results
        that are among the messages. Raises InvalidParameter for calls that are none."""
        listed = self._with_calls([dict(message) for message in messages])
        described = [tool.described() for tool in tools]
        if not described:
            return listed, {}
        if self.variable:
            return listed, {self.variable: described}
        if self.in_message:
            at_start = listed if listed and listed[0].get("role") == "system" else [_system(""), *listed]
            text = json.dumps([each["function"] for each in described], ensure_ascii=False)
            return [{**at_start[0], "tools": text}, *at_start[1:]], {}
        return self._described(listed, self.text(tools)), {}

    def text(self, tools: Sequence[Tool]) -> str:
        """What a system message says of tools where the template does not."""
        lines = "\n".join(json.dumps(tool.described()["function"], ensure_ascii=False) for tool in tools)
        example = self.dialect.write([("NAME", {"ARGUMENT": "VALUE"})])
        return (
            f"You can call these functions, each described by its JSON Schema:\n{lines}\n\n"
            f"To call one, answer in exactly this form, and wait for its result:\n{example}\n"
            "Answer without a call where none is needed."
        )

    def _described(self, messages: list[Message], text: str) -> list[Message]:
        if messages and messages[0].get("role") == "system":
            said = str(flattened(messages[0]).get("content") or "")
            return [{**messages[0], "content": f"{said}\n\n{text}" if said else text}, *messages[1:]]
        if self._template.supports("system"):
            return [_system(text), *messages]
        at = next((at for at, message in enumerate(messages) if message.get("role") == "user"), None)
        if at is None:
            return [{"role": "user", "content": text}, *messages]
        said = str(flattened(messages[at]).get("content") or "")
        return [*messages[:at], {**messages[at], "content": f"{text}\n\n{said}"}, *messages[at + 1 :]]

    def _with_calls(self, messages: list[Message]) -> list[Message]:
        """The messages with calls and results as the template takes them, or as texts of the model and the user."""
        names: dict[str, str] = {}  # of the tools, by the ids of their calls
        found: list[Message] = []
        for at, message in enumerate(messages):
            if message.get("role") == "assistant" and message.get("tool_calls"):
                found.append(self._calling(message, names, f"messages[{at}]"))
            elif message.get("role") == "tool":
                self._add_result(found, message, names)
            else:
                found.append(message)
        return found

    def _calling(self, message: Message, names: dict[str, str], where: str) -> Message:
        calls = []
        if not isinstance(message["tool_calls"], list):
            raise InvalidParameter(f"{where}.tool_calls: a list of calls is needed")
        for index, call in enumerate(message["tool_calls"]):
            name, arguments = _call(call, f"{where}.tool_calls[{index}]")
            names[str(call.get("id"))] = name
            calls.append((call, name, arguments))
        if not self.arguments:
            said = str(flattened(message).get("content") or "")
            written = self.dialect.write([(name, arguments) for _, name, arguments in calls])
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            return {**kept, "content": f"{said}\n{written}" if said else written}
        text = self.arguments == "text"
        rewritten = [
            {
                **call,
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments, ensure_ascii=False) if text else arguments,
                },
            }
            for call, name, arguments in calls
        ]
        return {**message, "content": message.get("content") or "", "tool_calls": rewritten}

    def _add_result(self, found: list[Message], message: Message, names: dict[str, str]) -> None:
        name = message.get("name") or names.get(str(message.get("tool_call_id")), "")
        if self.arguments:
            found.append({**message, "name": name} if name else message)
            return
        text = f"<tool_response>\n{flattened(message).get('content') or ''}\n</tool_response>"
        if found and found[-1].get("role") == "user" and str(found[-1]["content"]).endswith("</tool_response>"):
            found[-1] = {"role": "user", "content": f"{found[-1]['content']}\n{text}"}
        else:
            found.append({"role": "user", "content": text})


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _call(call: object, where: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a call in a message."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not isinstance(function, Mapping):
        raise InvalidParameter(f"{where}: a call with a function, its name and arguments is needed")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"{where}.arguments: no JSON: {error}") from None
    if not isinstance(arguments, (Mapping, type(None))):
        raise InvalidParameter(f"{where}.arguments: a JSON object is needed")
    return name, dict(arguments or {})
