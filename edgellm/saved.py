"""A conversation as `Chat.save` writes it, and back: plain values, and the answers in the model's own tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm import arguments
from edgellm.backends.base import ModelInfo
from edgellm.errors import InvalidModelFile
from edgellm.kv.archive import State, read_archive
from edgellm.prompts.messages import Message, copied
from edgellm.said import Answer, unpacked

VERSION = 3


@dataclass(frozen=True)
class Saved:
    """What a file has. answers: those that are in the tokens of the model that reads it. damage: see `read_archive`."""

    messages: list[Message]
    dropped: list[Message]
    thinking: bool | None
    private: bool
    owner: bytes
    answers: list[Answer]
    blocks: State
    damage: str


def read_saved(path: Path, info: ModelInfo) -> Saved:
    """The conversation in a file, for the model that `info` is of. Raises InvalidModelFile, ModelNotFound."""
    content, blocks, damage = read_archive(path)
    try:
        if content["edgellm_chat"] != VERSION:
            raise ValueError(f"of version {arguments.shown(content['edgellm_chat'])}, and this edgellm reads {VERSION}")
        answers = unpacked(content["said"], info.n_vocab)
        return Saved(
            copied(content["messages"]),
            copied(content["dropped"]),
            switch("thinking", content["thinking"]),
            switch("private", content["private"]) is True,
            bytes.fromhex(content.get("owner", "")),
            answers if content["model"] == info.name else [],  # else they are another model's tokens
            blocks,
            damage,
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidModelFile(f"{path}: not a saved conversation: {error}") from error


def switch(name: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise arguments.refuse(name, value, "True, False or None")
    return value
