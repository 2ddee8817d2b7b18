"""Reasoning: found in answers, switched by templates, kept or dropped by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from read_answers import THINK, calls, read, reasoning, texts

from edgellm.errors import Unsupported
from edgellm.prompts.dialects import BY_NAME, GENERIC
from edgellm.prompts.pieces import Reasoning, Text
from edgellm.prompts.reasoning import thinking_of, variables_for
from edgellm.prompts.template import ChatTemplate

TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("templates/*.jinja")}

# (answer, what its prompt ends with, reasoning, text)
ANSWERS = [
    ("<think>\nHm.\n</think>\n\nHello!", "", "Hm.", "Hello!"),
    ("Hm.\n</think>\n\nHello!", "<think>\n", "Hm.", "Hello!"),
    ("<think>Hm.</think>Hello!", "<think>\n", "Hm.", "Hello!"),
    ("<think>\n\n</think>\n\nHello!", "", "", "Hello!"),
    ("Hello!", "<think>\n\n</think>\n\n", "", "Hello!"),
    ("  <think>Hm.</think>Hello!", "", "Hm.", "Hello!"),
    ("Use <think> tags </think>.", "", "", "Use <think> tags </think>."),
    ("<think>Hm, it never ends", "", "Hm, it never ends", ""),
    ("Hm.\n", "<think>", "Hm.\n", ""),
    ("<think>Hm.</think>a<think>b</think>", "", "Hm.", "a<think>b</think>"),
    ("<think>a < b </thin</think>Yes", "", "a < b </thin", "Yes"),
    ("<thi", "", "", "<thi"),
]


@pytest.mark.parametrize(("answer", "prompt", "thought", "said"), ANSWERS)
def test_reasoning_is_parted_from_what_is_said(answer: str, prompt: str, thought: str, said: str) -> None:
    pieces = read(answer, None, THINK, prompt)
    assert (reasoning(pieces), texts(pieces)) == (thought, said)
    assert read(list(answer), None, THINK, prompt) == pieces
    for cut in range(len(answer)):
        assert read([answer[:cut], answer[cut:]], GENERIC, THINK, prompt) == pieces


def test_channels() -> None:
    answer = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!"
    )
    pieces = read(answer, BY_NAME["harmony"])
    assert pieces == read(list(answer), BY_NAME["harmony"]) == [Reasoning("Hm."), Text("Let me see.Hello!")]
    assert calls(pieces) == []


def test_who_thinks_is_seen_in_the_template() -> None:
    marks = {name: thinking.opens for name in TEMPLATES if (thinking := thinking_of(ChatTemplate(TEMPLATES[name])))}
    assert marks == {"channels": "<|channel|>", "deepseek": "<think>", "thinking": "<think>"}
    thinking = thinking_of(ChatTemplate(TEMPLATES["thinking"]))
    assert thinking is not None
    assert thinking.switch == "enable_thinking"


def test_thinking_is_switched_where_that_can_be() -> None:
    switched, always, never = (ChatTemplate(TEMPLATES[name]) for name in ("thinking", "deepseek", "chatml"))
    assert variables_for(switched, False) == {"enable_thinking": False}
    assert variables_for(always, None) == variables_for(always, True) == variables_for(never, False) == {}
    with pytest.raises(Unsupported, match="turn it off"):
        variables_for(always, False)
    with pytest.raises(Unsupported, match="reasoning_effort"):
        variables_for(ChatTemplate(TEMPLATES["channels"]), False)
    with pytest.raises(Unsupported, match="knows of none"):
        variables_for(never, True)


def test_published_models_think_as_they_say(published_templates: dict[str, str]) -> None:
    found = {}
    for name, source in published_templates.items():
        template = ChatTemplate(source, bos="<s>", eos="</s>")
        thinking = thinking_of(template)
        found[name] = (thinking.opens, thinking.switch) if thinking else None
    assert found["Qwen-Qwen3-0.6B"] == ("<think>", "enable_thinking")
    assert found["Qwen-Qwen2.5-7B-Instruct"] is None
    assert found["deepseek-ai-DeepSeek-V3.1"] == ("<think>", "enable_thinking")
    assert found["deepseek-ai-DeepSeek-R1-Distill-Llama-8B"] == ("<think>", "")
    assert found["openai-gpt-oss-120b"] == ("<|channel|>", "")
    assert found["google-gemma-4-31B-it"] == ("<|channel>thought\n", "enable_thinking")
    assert found["mistralai-Ministral-3-14B-Reasoning-2512"] == ("[THINK]", "")
    assert found["meta-llama-Llama-3.2-3B-Instruct"] is None
    assert found["HuggingFaceTB-SmolLM3-3B"] == ("<think>", "enable_thinking")
