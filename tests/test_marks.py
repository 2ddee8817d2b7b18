"""Marks that are control tokens: the reader sees them, nobody else does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from edgellm.backends.base import INSIDE, Tokenizer
from edgellm.backends.echo import EOS, IM_END, EchoBackend, EchoTokenizer
from edgellm.backends.shared_tokenizer import SharedTokenizer
from edgellm.model import Model

HERMES = {"<tool_call>": 300, "</tool_call>": 301, "<think>": 302, "</think>": 303}
HARMONY = {
    name: 300 + at for at, name in enumerate(("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"))
}
ENDS = {"<|call|>": 310, "<|return|>": 311}
SHOWN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{{ "\\n" }}'
    "</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# {{ tools }} #}"
)
ON_CHANNELS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# <|channel|>analysis<|message|> <|end|> <|start|> #}"
)
PARTS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "f", "parameters": PARTS}


class Marking(EchoTokenizer):
    """Some texts are control tokens."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        super().__init__(512)
        self._marks = dict(marks)
        self._texts = {token: text.encode() for text, token in marks.items()}
        self._split = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        if not special:
            return super().encode(text, special=special, bos=bos)
        found: list[int] = list(self.begin) if bos else []
        for part in self._split.split(text):
            found += [self._marks[part]] if part in self._marks else super().encode(part, special=True)
        return found

    def marks(self, template: str) -> set[str]:
        return super().marks(template) | set(self._marks)

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        if token in self._texts:
            return self._texts[token] if special else b""
        return super().piece(token, special=special, before=before)


class Marked(EchoBackend):
    def __init__(self, marks: Mapping[str, int], template: str, answer: str, **ends: int) -> None:
        super().__init__(script="", n_ctx=2048)
        tokenizer: Tokenizer = Marking({**marks, **ENDS})
        self.tokenizer = SharedTokenizer(tokenizer)
        stops = frozenset({EOS, IM_END, *ENDS.values()})
        self.info = replace(self.info, chat_template=template, stop_ids=stops)
        self._script: Any = tokenizer.encode(answer, special=True)


def asked(marks: Mapping[str, int], template: str, answer: str, **options: Any) -> Any:
    with Model(Marked(marks, template, answer)) as model:
        return model.chat().send("Go", temperature=0, **options)


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def test_marks_are_seen_by_the_reader_alone() -> None:
    done = asked(HERMES, SHOWN, f"<think>Hm.</think>Well.{CALL}", tools=[TOOL])
    assert (done.reasoning, done.text, done.tool_calls[0].arguments) == ("Hm.", "Well.", {"a": 1})
    done = asked(HERMES, SHOWN, f"<think>Hm.</think>Well.{CALL}")
    assert (done.reasoning, done.text) == ("Hm.", 'Well.\n{"name": "f", "arguments": {"a": 1}}\n')
    with Model(Marked(HERMES, SHOWN, f"<think>Hm.</think>Well.{CALL}")) as model:
        plain = model.generate("<|im_start|>assistant\n", temperature=0)
        assert plain.text == 'Hm.Well.\n{"name": "f", "arguments": {"a": 1}}\n'


def test_an_answer_with_marks_is_known_again() -> None:
    with Model(Marked(HERMES, SHOWN, f"<think>Hm.</think>Well.{CALL}")) as model:
        chat = model.chat()
        first = chat.send("Go", temperature=0, tools=[TOOL])
        turn = model.prompter.read([*chat.messages, {"role": "user", "content": "On"}], tools=[TOOL])
        asked = first.usage.prompt_tokens
        assert turn.tokens[asked : asked + len(first.tokens)] == first.tokens
        assert {300, 301, 302, 303} <= set(first.tokens)


def test_calls_that_must_not_come_do_not_begin() -> None:
    done = asked(HERMES, SHOWN, f"<think>Hm.</think>Well.{CALL}", tools=[TOOL], tool_choice="none", max_tokens=40)
    assert done.text.startswith("Well.")
    assert not done.tool_calls
    assert 300 not in done.tokens
    assert asked(HERMES, SHOWN, CALL, tools=[TOOL], tool_choice="none", choices=["yes"]).parsed == "yes"


@pytest.mark.parametrize("choice", ["required", "f"])
def test_a_call_that_must_come_has_its_tokens(choice: str) -> None:
    done = asked(HERMES, SHOWN, "<think>Hm.</think>Never.", tools=[TOOL], tool_choice=choice)
    assert (done.reasoning, done.text, done.finish_reason) == ("Hm.", "", "tool_calls")
    assert {300, 301} <= set(done.tokens)


def test_channels_are_read_and_enforced() -> None:
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>never'
    done = asked(HARMONY, ON_CHANNELS, thought + call, tools=[TOOL])
    assert (done.reasoning, done.text, done.finish_reason) == ("Hm.", "", "tool_calls")
    assert done.tool_calls[0].arguments == {"a": 1}
    for answer in (thought + call, thought + "<|channel|>final<|message|>No.<|return|>"):
        done = asked(HARMONY, ON_CHANNELS, answer, tools=[TOOL], tool_choice="f")
        assert (done.reasoning, done.finish_reason) == ("Hm.", "tool_calls")
    done = asked(HARMONY, ON_CHANNELS, thought + '<|channel|>final<|message|>{"a": 7}<|return|>', schema=PARTS)
    assert (done.reasoning, done.text, done.parsed) == ("Hm.", '{"a": 7}', {"a": 7})
    done = asked(HARMONY, ON_CHANNELS, thought.replace("Hm.", "Hm. " * 50), thinking_budget=9, max_tokens=60)
    assert done.reasoning.startswith("Hm. Hm.")
    assert len(done.reasoning) <= 9
