"""A conversation in Anthropic's blocks, as messages that chat templates take.

The blocks of an answer become what the answer was: its text in one piece, its reasoning under a name of its own, its
calls with the ids that the model gave them. So its tokens are found again (edgellm/said.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.errors import InvalidParameter, Unsupported

Message = dict[str, Any]
Block = Mapping[str, Any]

BILLING = "x-anthropic-billing-header:"
"""What Claude Code's first system block begins with; it is another one in every request, and nothing to a model."""
CALL = "toolu_"
_THEIRS = ("server_tool_use", "mcp_tool_use", "container_upload", "fallback")
"""Blocks of what Anthropic's own tools did; those of their results end in _tool_result."""
_OMITTED = "edgellm.omitted."


def messages_of(system: Any, messages: Sequence[Message], ignored: set[str]) -> list[Message]:
    """What a request says. ignored: gets the names of what has no effect here.

    Raises InvalidParameter for what is malformed, Unsupported for images and PDFs."""
    found: list[Message] = _told(system, "system") if system else []
    for at, message in enumerate(messages):
        where, role, content = f"messages[{at}]", message.get("role"), message.get("content")
        if role == "user":
            found += _asked(_blocks(content, f"{where}.content"), f"{where}.content")
        elif role == "assistant":
            found.append(_answered(_blocks(content, f"{where}.content"), f"{where}.content", ignored))
        elif role == "system":
            found += _told(content, f"{where}.content")
        else:
            raise InvalidParameter(f"{where}: role={str(role)[:50]!r}: must be user, assistant or system")
    return found


def _blocks(content: Any, where: str) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidParameter(f"{where}: a text or a list of blocks is needed")
    return content


def _told(content: Any, where: str) -> list[Message]:
    """A system message, if anything is said in it."""
    texts = []
    for at, block in enumerate(_blocks(content, where)):
        text = _text(block, f"{where}[{at}]")
        if text.startswith(BILLING):
            text = text.partition("\n")[2]
        texts += [text] if text else []
    return [{"role": "system", "content": "\n".join(texts)}] if texts else []


def _asked(blocks: list[Block], where: str) -> list[Message]:
    """What the user says, and results of tools, in their order."""
    if not blocks:
        raise InvalidParameter(f"{where}: the list is empty; at least one block is needed")
    found: list[Message] = []
    said: list[str] = []  # in a row

    def speak() -> None:
        if said:
            found.append({"role": "user", "content": "\n".join(said)})
            said.clear()

    for at, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            speak()
            found.append(_result(block, f"{where}[{at}]"))
        else:
            said.append(_text(block, f"{where}[{at}]"))
    speak()
    return found


def _result(block: Block, where: str) -> Message:
    inner = _blocks(block.get("content") or [], f"{where}.content")
    text = "\n".join(_text(each, f"{where}.content[{at}]") for at, each in enumerate(inner))
    if block.get("is_error") and "error" not in text[:20].lower():
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": _id(block, "tool_use_id", where), "content": text}


def _answered(blocks: list[Block], where: str, ignored: set[str]) -> Message:
    text, reasoning, calls = "", "", list[Message]()
    for at, block in enumerate(blocks):
        kind, here = block.get("type"), f"{where}[{at}]"
        if kind == "thinking":
            reasoning += _thought(block, here)
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": _id(block, "id", here), "type": "function", "function": function})
        elif kind in _THEIRS or str(kind).endswith("_tool_result"):
            ignored.add(f"messages.{kind}")
        elif kind != "redacted_thinking":  # which nobody but Anthropic can read
            text += _text(block, here)
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    return {**message, "tool_calls": calls} if calls else message


def _id(block: Block, key: str, where: str) -> str:
    """The id of a call as the model gave it."""
    value = block.get(key)
    if not isinstance(value, str):
        raise InvalidParameter(f"{where}.{key}: a text is needed")
    return value.removeprefix(CALL)


def _text(block: Block, where: str) -> str:
    """What a block says in words."""
    kind = block.get("type")
    if kind == "text":
        return _string(block.get("text"), f"{where}.text")
    if kind == "document":
        return "\n".join([*_headed(block, "title", "context"), _document(block.get("source"), where)])
    if kind == "search_result":
        inner = _blocks(block.get("content"), f"{where}.content")
        return "\n".join([*_headed(block, "title", "source"), *(_text(each, f"{where}.content") for each in inner)])
    if kind == "tool_reference":
        return _string(block.get("tool_name"), f"{where}.tool_name")
    raise Unsupported(f"{where}: a block of type {str(kind)[:50]!r}; this model reads text alone")


def _headed(block: Block, *keys: str) -> list[str]:
    return [block[key] for key in keys if isinstance(block.get(key), str)]


def _document(source: Any, where: str) -> str:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "text":
        return _string(source.get("data"), f"{where}.source.data")
    if kind == "content":
        inner = _blocks(source.get("content"), f"{where}.source.content")
        return "\n".join(_text(each, f"{where}.source.content[{at}]") for at, each in enumerate(inner))
    raise Unsupported(f"{where}: a document of type {str(kind)[:50]!r}; this model reads text alone")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidParameter(f"{where}: a text is needed")
    return value


def signature_of(reasoning: str, omitted: bool) -> str:
    """What stands for reasoning beside it, or instead of it: nobody keeps it but the client."""
    if omitted:
        return _OMITTED + base64.b64encode(reasoning.encode()).decode()
    return "edgellm." + base64.b64encode(hashlib.sha256(reasoning.encode()).digest()).decode()


def _thought(block: Block, where: str) -> str:
    text, signature = _string(block.get("thinking"), f"{where}.thinking"), block.get("signature")
    if not text and isinstance(signature, str) and signature.startswith(_OMITTED):
        try:
            return base64.b64decode(signature.removeprefix(_OMITTED), validate=True).decode()
        except ValueError:
            raise InvalidParameter(f"{where}.signature: is not as it was given") from None
    return text
