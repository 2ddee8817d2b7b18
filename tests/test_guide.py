"""The examples of docs/structured-output.md, run one after the other with SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doc_blocks import blocks, run_python
from source_tree import ROOT

import edgellm

GUIDE = ROOT / "docs" / "structured-output.md"


def test_the_examples_run(smollm2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pydantic")
    load = edgellm.load
    monkeypatch.setattr(edgellm, "load", lambda name: load(smollm2, ctx=2048))
    every = [block for block in blocks(GUIDE) if block.language == "python"]
    assert len(every) == 4
    names: dict[str, Any] = {}
    for block in every:
        run_python(block, names)
        if "chat.run" in block.text:
            roles = [message["role"] for message in names["chat"].messages]
            assert roles[:4] == ["system", "user", "assistant", "tool"]
            assert names["chat"].messages[3]["content"].startswith("sunny in ")
    assert isinstance(names["invoice"], names["Invoice"])
    assert names["label"] in ("happy", "angry", "neutral")
    assert names["answer"].finish_reason in ("stop", "length")
    assert "'name': 'weather'" in capsys.readouterr().out


NOTE = {
    "name": "note",
    "description": "Write a note down.",
    "parameters": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 60},
            "tags": {"type": "array", "items": {"enum": ["home", "work"]}, "maxItems": 3},
        },
        "required": ["text"],
        "additionalProperties": False,
    },
}


def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"sunny in {city} for {days} days"


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


def test_calls_that_must_come_do_so_with_a_small_model(smollm2: Path) -> None:
    tools = [weather, add, NOTE]
    with edgellm.load(smollm2, ctx=2048) as model:
        for seed in range(4):
            for choice in ("required", "add", "note"):
                asked = {"tools": tools, "tool_choice": choice, "temperature": 1.0, "seed": seed}
                done = model.chat().send("What is 17 plus 25?", None, **asked)  # type: ignore[arg-type]
                assert done.finish_reason == "tool_calls"
                [call] = done.tool_calls
                assert choice in ("required", call.name)
                assert not done.text
        chat = model.chat()
        done = chat.run("17 + 25?", tools=[add], tool_choice="add", temperature=0, max_tokens=40)
        call, result = chat.messages[1]["tool_calls"][0]["function"], chat.messages[2]
        assert result["content"] == str(add(**call["arguments"]))
        assert done.cache.computed < done.usage.prompt_tokens / 2, done.cache
