"""Items: what a conversation consists of in this protocol; and the messages that a model is given for them.

One answer of a model is one message there and several items here: its reasoning, its texts, its calls. They are put
together again as they were, so that the prompt of the next turn begins with the tokens of this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.openai.responses.ids import Ids

Item = dict[str, Any]
Message = dict[str, Any]
Find = Callable[[str], "Item | None"]

ROLES = ("user", "assistant", "system", "developer")
TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Parts that are text, and where it is."""
CALLS: Mapping[str, Callable[[Item], tuple[Any, Any]]] = {
    "function_call": lambda item: (item.get("name"), item.get("arguments")),
    "custom_tool_call": lambda item: (item.get("name"), {"input": item.get("input")}),
    "local_shell_call": lambda item: ("local_shell", item.get("action")),
    "shell_call": lambda item: ("shell", item.get("action")),
    "apply_patch_call": lambda item: ("apply_patch", item.get("operation")),
}
"""Calls of tools: the name, and the arguments."""
RESULTS = tuple(f"{kind}_output" for kind in CALLS)
SILENT = ("web_search_call",)  # of which a model is told nothing: the answer says what was found
PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}  # of ids


def items_of(given: str | Sequence[Item] | None, ids: Ids, find: Find) -> list[Item]:
    """The input of a request, each item in its full form. find: the item that a reference means.

    Raises InvalidParameter, Unsupported."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_item(each, f"input[{at}]", ids, find) for at, each in enumerate(given or ())]


def _item(given: Item, where: str, ids: Ids, find: Find) -> Item:
    kind = str(given.get("type") or ("message" if "role" in given else "item_reference"))
    if kind == "item_reference":
        id = given.get("id")
        found = find(id) if isinstance(id, str) else None
        if found is None:
            raise InvalidParameter(f"{where}: no item {str(id)[:100]!r} is remembered")
        return found
    item = {**given, "type": kind}
    if not isinstance(item.get("id"), str) or not item["id"]:
        item["id"] = ids.new(PREFIXES.get(kind, "item"))
    if kind == "message":
        return _message(item, where)
    if kind in CALLS or kind in RESULTS:
        if kind == "local_shell_call_output":
            item.setdefault("call_id", given.get("id"))
        if not isinstance(item.get("call_id"), str):
            raise InvalidParameter(f"{where}: a call_id is needed")
        if kind in RESULTS:
            _result(item, where)  # checked now
        elif not isinstance(CALLS[kind](item)[0], str):
            raise InvalidParameter(f"{where}: a name is needed")
    elif kind == "reasoning":
        item["summary"] = item.get("summary") or []
        _thought(item, where)  # checked now
    elif kind not in SILENT:
        raise Unsupported(f"{where}: an item of type {kind[:50]!r} cannot be taken here")
    item["status"] = item.get("status") or "completed"
    return item


def _message(item: Item, where: str) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise InvalidParameter(f"{where}.role: {str(role)[:50]!r}: must be one of {', '.join(ROLES)}")
    texts = _texts(content, f"{where}.content")
    said = role == "assistant"
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if said else {}
    parts = [{"type": "output_text" if said else "input_text", "text": text, **more} for text in texts]
    return {"id": item["id"], "type": "message", "status": "completed", "role": role, "content": parts}


def _texts(content: Any, where: str) -> list[str]:
    """Of what is a text, or a list of parts that are."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidParameter(f"{where}: a text or a list of parts is needed")
    found = []
    for at, part in enumerate(content):
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if kind not in TEXTS:
            raise Unsupported(f"{where}[{at}]: a part of type {kind[:50]!r}; this model reads text alone")
        text = part.get(TEXTS[kind])
        if not isinstance(text, str):
            raise InvalidParameter(f"{where}[{at}]: the part has no text")
        found.append(text)
    return found


def _result(item: Item, where: str) -> list[str]:
    """What a call gave, as texts."""
    output = item.get("output")
    if item["type"] == "shell_call_output" and isinstance(output, list):
        return [json.dumps(output, ensure_ascii=False)]
    if item["type"] == "apply_patch_call_output" and output is None:
        return [str(item.get("status"))]
    return _texts(output, f"{where}.output")


def _thought(item: Item, where: str) -> str:
    """The text of reasoning: in full, or its summary where there is no more of it."""
    for name in ("content", "summary"):
        parts = item.get(name) or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise InvalidParameter(f"{where}.{name}: a list of parts is needed")
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if texts:
            return "\n\n".join(texts)
    return ""


def messages_of(items: Sequence[Item], told: Callable[[Item], str]) -> list[Message]:
    """What a model is given for them. told: the name by which it knows the function of a call."""
    found: list[Message] = []
    for at, item in enumerate(items):
        kind, where = item["type"], f"input[{at}]"
        if kind == "message" and item["role"] != "assistant":
            parts = [{"type": "text", "text": part["text"]} for part in item["content"]]
            found.append({"role": item["role"], "content": parts[0]["text"] if len(parts) == 1 else parts})
        elif kind in RESULTS:
            texts = _result(item, where)
            content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
            found.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        elif kind == "message":
            _say(found, "".join(part["text"] for part in item["content"]))
        elif kind == "reasoning":
            _think(found, _thought(item, where))
        elif kind in CALLS:
            name, arguments = CALLS[kind](item)
            function = {"name": told(item) if kind == "function_call" else name, "arguments": arguments}
            call = {"id": item["call_id"], "type": "function", "function": function}
            _answer(found).setdefault("tool_calls", []).append(call)
    return [{**each, "content": "".join(each["content"])} if each["role"] == "assistant" else each for each in found]


def _answer(found: list[Message]) -> Message:
    """The answer that the last items belong to; its content is a list of texts by now."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": []})
    return found[-1]


def _say(found: list[Message], text: str) -> None:
    """Text goes on behind a call; else it is an answer of its own."""
    answer = _answer(found)
    if answer["content"] and not answer.get("tool_calls"):
        answer = {"role": "assistant", "content": []}
        found.append(answer)
    answer["content"] += [text] if text else []


def _think(found: list[Message], text: str) -> None:
    """Reasoning begins an answer."""
    if not text:
        return
    answer = _answer(found)
    if answer["content"] or answer.get("tool_calls") or answer.get("reasoning_content"):
        answer = {"role": "assistant", "content": []}
        found.append(answer)
    answer["reasoning_content"] = text
