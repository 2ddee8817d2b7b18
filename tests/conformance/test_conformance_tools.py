"""Calls that must come do so on every engine, on models of random weights that would say anything."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.errors import Unsupported
from edgellm.model import Model
from edgellm.params import GenerateParams
from edgellm.prompts.template import ChatTemplate
from edgellm.prompts.tool_prompt import ToolPrompt
from edgellm.reply import complete

ONLY = "distinct"
PLAIN = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
HINTED = PLAIN.replace("assistant:", "assistant:{# <think> </think> #}")
TOOLS: list[dict[str, Any]] = [
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
    {"name": "now", "parameters": {"type": "object", "additionalProperties": False}},
]
ASKED = [{"role": "user", "content": "x"}]


@pytest.fixture(autouse=True)
def template(model: Model) -> None:
    """Random models have no template of their own that knows tools."""
    prompter: Any = model.prompter
    prompter.template = ChatTemplate(PLAIN)
    prompter.tool_prompt = ToolPrompt(prompter.template)
    if not model.info.stop_ids:
        turn = prompter.prepare(ASKED, GenerateParams(), tools=TOOLS, tool_choice="now")
        with pytest.raises(Unsupported, match="no token that ends an answer"):
            model.generate(turn)
        pytest.skip("no token of this model ends answers")


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_call_comes_and_its_stream_is_the_same(model: Model, choice: str) -> None:
    for seed in range(3):
        turn = model.prompter.prepare(ASKED, GenerateParams(), tools=TOOLS, tool_choice=choice)
        done = model.generate(turn, temperature=1.5, seed=seed, cache=False)
        assert done.finish_reason == "tool_calls"
        assert not done.text
        [call] = done.tool_calls
        if call.name == "weather":
            assert call.arguments["city"] in ("Oslo", "Rome")
            assert 1 <= call.arguments["days"] <= 9
        else:
            assert (choice, call.arguments) == ("required", {})
        chunks = list(model.stream(turn, temperature=1.5, seed=seed, cache=False))
        [streamed] = complete(piece for chunk in chunks for piece in chunk.tool_calls)
        assert (streamed.name, streamed.arguments) == (call.name, call.arguments)


def test_reasoning_has_its_budget_in_front_of_a_form(model: Model) -> None:
    prompter: Any = model.prompter
    prompter.template = ChatTemplate(HINTED.replace("assistant:", "assistant: <think>\n"))
    turn = prompter.prepare(ASKED, GenerateParams())
    for seed in range(3):
        done = model.generate(turn, choices=["yes", "no"], thinking_budget=6, temperature=1.5, seed=seed)
        assert done.parsed in ("yes", "no")
        assert len(model.encode(done.reasoning, bos=False)) <= 24  # of six tokens, spelled as others
        assert done.text == done.parsed
