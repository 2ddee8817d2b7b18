"""What a client asks for, as the model is given it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm import CacheReport, Chunk, Completion, GenerateParams, Timings, ToolCall, ToolCallDelta, Usage
from edgellm.errors import TemplateError, Unsupported
from edgellm.serve.ask import Answering, Ask, Event, alternating, prompt_of

SYSTEM, USER, ANSWER = ({"role": role, "content": role} for role in ("system", "user", "assistant"))


def test_roles_take_turns_without_a_word_lost() -> None:
    later: Any = {"role": "system", "content": [{"type": "text", "text": "later"}]}
    found = alternating([SYSTEM, USER, ANSWER, later, USER, USER, ANSWER, ANSWER])
    assert [(each["role"], each["content"]) for each in found] == [
        ("user", "system\n\nuser"),
        ("assistant", "assistant"),
        ("user", "later\n\nuser\n\nuser"),
        ("assistant", "assistant\n\nassistant"),
    ]


def test_calls_and_their_results_stay_apart() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    result = {"role": "tool", "content": "rain"}
    listed = [USER, call, result, ANSWER]
    assert alternating(listed) == listed
    assert alternating([USER, ANSWER, call]) == [USER, ANSWER, call]


class Picky:
    """A model whose template takes messages of some roles alone."""

    def __init__(self, template: str, roles: set[str]) -> None:
        self.info = SimpleNamespace(chat_template=template)
        self.prompter = self
        self._roles = roles
        self.given: list[Any] = []

    def prepare(self, messages: list[dict[str, Any]], params: GenerateParams, **given: Any) -> Any:
        if not {each["role"] for each in messages} <= self._roles:
            raise TemplateError("no such role")
        self.given.append((messages, given))
        return SimpleNamespace(messages=messages, text="prompt")

    def switched(self, thinking: bool) -> dict[str, bool]:
        raise Unsupported("it never thinks")

    def encode(self, text: str) -> list[int]:
        return [len(text)]


def test_a_role_that_is_refused_has_its_words_elsewhere() -> None:
    model: Any = Picky("", {"user", "assistant"})
    prompt_of(model, Ask(messages=[SYSTEM, USER]))
    assert model.given[0][0] == [{"role": "user", "content": "system\n\nuser"}]
    with pytest.raises(TemplateError):
        prompt_of(model, Ask(messages=[USER, {"role": "tool", "content": "a"}]))


@pytest.mark.parametrize(("template", "role"), [("{{ developer }}", "developer"), ("{{ system }}", "system")])
def test_a_developer_is_the_system_where_nobody_knows_one(template: str, role: str) -> None:
    model: Any = Picky(template, {"system", "developer", "user"})
    prompt_of(model, Ask(messages=[{"role": "developer", "content": "a"}, USER]))
    assert model.given[0][0][0]["role"] == role


def test_whether_to_think_is_asked_of_models_that_can_choose() -> None:
    model: Any = Picky("", {"user"})
    prompt_of(model, Ask(messages=[USER], thinking=True, variables={"a": 1}))
    assert model.given[0][1] == {"tools": (), "tool_choice": "auto", "a": 1}


def test_texts_become_tokens() -> None:
    model: Any = Picky("", set())
    assert prompt_of(model, Ask(prompt="abc")) == [3]
    assert prompt_of(model, Ask(prompt=[1, 2])) == [1, 2]


class Calling:
    """A model, and those that can be asked: it goes on a little behind its call before it is stopped."""

    n_ctx = 100
    chunks = (
        Chunk("I add."),
        Chunk("", tool_calls=(ToolCallDelta(0, "id", "add"),)),
        Chunk("", tool_calls=(ToolCallDelta(0, arguments="{}"), ToolCallDelta(0, complete=True))),
        Chunk("\n</to"),
        Chunk("", tool_calls=(ToolCallDelta(1, "other", "add"),)),
    )
    done = Completion(
        "I add.\n</to",
        [1],
        "cancelled",
        Usage(),
        Timings(),
        CacheReport(),
        "none",
        1,
        1,
        tool_calls=[ToolCall("id", "add")],
    )

    @asynccontextmanager
    async def use(self, *_: Any) -> AsyncIterator[Calling]:
        yield self

    async def astream(self, *_: Any, **__: Any) -> AsyncGenerator[Chunk]:
        for chunk in self.chunks:
            yield chunk
        yield Chunk("?", completion=self.done)


def test_nothing_follows_the_only_call() -> None:
    async def answered() -> list[Event]:
        models: Any = Calling()
        async with AsyncExitStack() as stack:
            answering = Answering(models, models, Ask(prompt=[1], one_call=True), stack)
            await answering.begin()
            found = [event async for event in answering.events()]
            assert answering.cancel.cancelled
        return found

    first, begun, ended, *rest, last = asyncio.run(answered())
    assert [first, begun, ended] == list(Calling.chunks[:3])
    assert rest == [Chunk("")] * 2
    done = replace(Calling.done, text="I add.", finish_reason="tool_calls")
    assert last == Chunk("", completion=done)
