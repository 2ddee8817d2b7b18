"""Messages of a conversation: checked, and made of plain values only, before a template sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgellm.arguments import shown
from edgellm.errors import InvalidParameter
from edgellm.prompts.meter import MAX_DEPTH

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message carries its reasoning; the first is the one that most templates read."""

Message = dict[str, Any]


def checked(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copies of the messages, without fields that are None, and with reasoning under the names templates read.

    A message is a mapping with a `role` and a `content`: a string, or a list of {"type": "text", "text": ...}. An
    assistant's message may lack content when it has tool calls or reasoning. Raises InvalidParameter.
    """
    _check_list(messages)
    if not messages:
        raise InvalidParameter("messages: the list is empty; give at least one message")
    return [_for_templates(message, f"messages[{index}]") for index, message in enumerate(messages)]


def copied(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copies of messages that share nothing with them, parts included; of none, too. Raises InvalidParameter."""
    check(messages)
    return [plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def check(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidParameter for what is no list of messages."""
    _check_list(messages)
    for index, message in enumerate(messages):
        _check(message, f"messages[{index}]")


def _check_list(messages: object) -> None:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidParameter(f"messages: a list of messages is needed, not {type(messages).__name__}")


def _check(message: object, where: str) -> None:
    if not isinstance(message, Mapping):
        raise InvalidParameter(f"{where}: a mapping with role and content is needed, not {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidParameter(f"{where}: role={shown(role)}: must be a name such as 'system', 'user' or 'assistant'")
    if content is not None:
        check_content(content, f"{where}.content")
    elif role != "assistant" or not (message.get("tool_calls") or _reasoning(message)):
        raise InvalidParameter(f"{where}: the message of role {shown(role)} has no content")


def _reasoning(message: Mapping[str, Any]) -> Any:
    return next((message[key] for key in REASONING if message.get(key) is not None), None)


def _for_templates(message: Mapping[str, Any], where: str) -> Message:
    result: Message = message  # type: ignore[assignment]  # what it is, is checked below
    if isinstance(message, Mapping):
        result = plain({key: value for key, value in message.items() if value is not None}, where)
    _check(result, where)
    reasoning = _reasoning(result)
    return result if reasoning is None else {"thinking": reasoning, **result, "reasoning_content": reasoning}


def check_content(content: object, where: str) -> None:
    """Raise InvalidParameter unless it is a text or a list of {"type": "text", "text": ...}. where: names it."""
    if isinstance(content, (list, tuple)):
        for index, part in enumerate(content):
            _check_part(part, f"{where}[{index}]")
    elif not isinstance(content, str):
        raise InvalidParameter(f"{where} must be a text or a list of text parts, not {type(content).__name__}")


def _check_part(part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise InvalidParameter(
            f"{where}: a part of type {shown(kind)}; only {{'type': 'text', 'text': ...}} can be given"
        )
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise InvalidParameter(f"{where}: the part has no text")


def flattened(message: Message) -> Message:
    """The message with its parts as one text, a line break between them."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    return message


def in_parts(message: Message) -> Message:
    """The message with its text as a list of one part."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def plain(value: Any, where: str, depth: int = 0, change: Callable[[str], str] = str.__str__) -> Any:
    """A copy of a value of JSON's kinds (and tuples), made of the builtin types themselves. change: what texts in it
    become, but for keys, roles, and the types of parts.

    Objects of other types have methods that a template could call. Raises InvalidParameter for them.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return change(str.__str__(value))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if depth >= MAX_DEPTH - 2:
        raise InvalidParameter(f"{where}: nested more than {MAX_DEPTH - 2} deep")
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidParameter(f"{where}: a key of type {type(key).__name__}; only text can be a key")
            kept = key in ("role", "type")
            result[str.__str__(key)] = plain(item, where, depth + 1, str.__str__ if kept else change)
        return result
    if isinstance(value, (list, tuple)):
        items = [plain(item, where, depth + 1, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    raise InvalidParameter(f"{where}: a value of type {type(value).__name__}; templates take text, numbers and lists")
