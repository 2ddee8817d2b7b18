"""What a model can do, known from its file."""

from __future__ import annotations

from edgellm import ModelInfo
from edgellm.prompts.reasoning import MARKS


def abilities(info: ModelInfo) -> list[str]:
    """Some of completion, chat, tools, thinking, embedding and rerank. Every model that chats is given tools: by its
    template, or as text."""
    found = []
    if info.can_generate:
        found.append("completion")
        if info.chat_template is not None:
            found += ["chat", "tools"]
            if thinks(info):
                found.append("thinking")
    if info.can_embed:
        found.append("embedding")
    if info.can_rerank:
        found.append("rerank")
    return found


def thinks(info: ModelInfo) -> bool:
    """Whether its chat template has marks around reasoning."""
    source = info.chat_template or ""
    return any(all(text.rstrip() in source for text in (opens, closes, *also)) for opens, closes, also in MARKS)
