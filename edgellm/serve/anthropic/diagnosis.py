"""Diagnosis: why the state of a client's previous request could not be used whole.

https://platform.claude.com/docs/en/build-with-claude/cache-diagnostics
"""

from __future__ import annotations

import hashlib
from typing import Any

from edgellm.serve.ask import Answering, Ask, Message
from edgellm.serve.endpoint import dumped
from edgellm.serve.ledger import Ledger, shared

_LENGTH = 8  # bytes of a number


def parts_of(ask: Ask) -> dict[str, bytes]:
    """What a prompt is made of, as digests to compare; that of the messages behind how many bytes it stands for."""
    system, messages = _split(ask)
    return {
        "system": _digest(dumped(system)),
        "tools": _digest(dumped(ask.tools)),
        "messages": len(messages).to_bytes(_LENGTH, "big") + _digest(messages),
    }


def diagnosis(ledger: Ledger, wanted: dict[str, Any] | None, answering: Answering) -> dict[str, Any] | None:
    """What an answer, whose prompt is made, says of it. wanted: `diagnostics` of the request. None where the whole
    prompt of the previous request is the beginning of this one's, or nobody asked."""
    previous = (wanted or {}).get("previous_message_id")
    if previous is None:
        return None
    entry = ledger.get(previous) if isinstance(previous, str) else None
    if entry is None or not entry.parts:
        return {"cache_miss_reason": {"type": "previous_message_not_found"}}
    missed = len(entry.prompt)
    if entry.model == answering.listed.name:
        missed -= shared(entry.prompt, answering.tokens)
        if not missed:
            return None
        kind = _changed(entry.parts, answering.ask)
    else:
        kind = "model_changed"
    tokens = {} if kind == "unavailable" else {"cache_missed_input_tokens": missed}
    return {"cache_miss_reason": {"type": kind, **tokens}}


def _changed(before: dict[str, bytes], ask: Ask) -> str:
    """Which part of a prompt is another one. "unavailable": none is, but what the chat template makes of them, maybe
    because of how the model is to think."""
    now = parts_of(ask)
    for name in ("system", "tools"):
        if before[name] != now[name]:
            return f"{name}_changed"
    _, messages = _split(ask)
    length = int.from_bytes(before["messages"][:_LENGTH], "big")
    appended = _digest(messages[:length]) == before["messages"][_LENGTH:]
    return "unavailable" if appended else "messages_changed"


def _split(ask: Ask) -> tuple[list[Message], bytes]:
    """The system prompt, and the messages behind it, each as a line."""
    count = 1 if ask.messages and ask.messages[0]["role"] == "system" else 0
    return list(ask.messages[:count]), b"".join(dumped(message) + b"\n" for message in ask.messages[count:])


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
