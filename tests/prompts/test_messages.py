"""What is accepted as a conversation."""

from __future__ import annotations

import enum
from collections import UserDict
from typing import Any

import pytest

from edgellm.errors import InvalidParameter
from edgellm.prompts.messages import checked, flattened, in_parts, plain


class _Role(str, enum.Enum):
    USER = "user"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        ("Hello", "list of messages"),
        ({"role": "user", "content": "x"}, "list of messages"),
        (["Hello"], r"messages\[0\].*mapping"),
        ([{"content": "x"}], r"messages\[0\].*role"),
        ([{"role": "", "content": "x"}], "role"),
        ([{"role": 1, "content": "x"}], "role"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": None}], "no content"),
        ([{"role": "assistant", "content": None}], "no content"),
        ([{"role": "user", "content": 5}], "content must be"),
        ([{"role": "user", "content": b"x"}], "type bytes"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\].*'str'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "no text"),
        ([{"role": "user", "content": "x", "extra": object()}], "type object"),
        ([{"role": "user", "content": "x", "extra": {1: 2}}], "key"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "tool_calls": [1]}], r"messages\[1\]"),
    ],
)
def test_refused(messages: Any, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        checked(messages)


def test_plain_copies() -> None:
    given = [UserDict(role=_Role.USER, content="x", name=None, data=(1, 2.5, True, None, ["é"]))]
    (message,) = checked(given)  # type: ignore[arg-type]
    assert message == {"role": "user", "content": "x", "data": (1, 2.5, True, None, ["é"])}
    assert type(message) is dict
    assert type(message["role"]) is str
    message["data"][4].append(1)
    assert given[0]["data"][4] == ["é"]


def test_content_may_be_missing_beside_tool_calls_or_reasoning() -> None:
    calls = checked([{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}])
    assert "content" not in calls[0]
    thoughts = checked([{"role": "assistant", "reasoning": "Hm"}])
    assert thoughts[0]["reasoning_content"] == thoughts[0]["thinking"] == "Hm"


def test_parts() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert flattened(message)["content"] == "a\nb"
    assert flattened({"role": "user", "content": "a"})["content"] == "a"
    assert in_parts({"role": "user", "content": "a"})["content"] == [{"type": "text", "text": "a"}]


def test_nesting_is_limited() -> None:
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(InvalidParameter, match="nested"):
        plain(nested, "data")
