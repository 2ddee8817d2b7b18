"""Chat on the echo backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgellm
from edgellm.backends.echo import BOS, EchoBackend
from edgellm.errors import ContextOverflow, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.model import Model


@pytest.fixture
def model() -> Iterator[Model]:
    with edgellm.load("anything", backend="echo", ctx=512) as opened:
        yield opened


def test_a_conversation_remembers_and_reuses_what_was_said(model: Model) -> None:
    chat = model.chat("Be brief.")
    first = chat.send("hello there", temperature=0)
    second = chat.send("and again", temperature=0)
    assert (first.text, second.text) == ("hello there", "and again")
    assert chat.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "hello there"},
        {"role": "user", "content": "and again"},
        {"role": "assistant", "content": "and again"},
    ]
    said = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.cached_tokens >= said - 4
    assert second.cache.computed <= 4 + second.usage.prompt_tokens - said


def test_the_prompt_is_what_the_template_says(model: Model) -> None:
    chat = model.chat(messages=[{"role": "system", "content": "S"}])
    done = chat.send("Q", temperature=0)
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert done.usage.prompt_tokens == len(model.encode(text))
    assert chat._said[0] == (text, model.encode(text))
    assert chat._said[0][1][0] == BOS


def test_streamed_and_cancelled_answers_stay_in_the_conversation() -> None:
    with Model(EchoBackend(delay=0.002, micro_batch=64)) as model:
        chat = model.chat()
        stream = chat.stream("0123456789" * 5, temperature=0)
        got = [next(stream).text for _ in range(10)]
        stream.close()  # type: ignore[attr-defined]
        assert chat.messages[-1] == {"role": "assistant", "content": "".join(got)}
        assert chat.send("next", temperature=0).text == "next"
        assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]


def test_an_answer_cut_by_a_stop_string_is_remembered_without_it(model: Model) -> None:
    chat = model.chat()
    assert chat.send("keep this STOP not that", temperature=0, stop="STOP").text == "keep this "
    assert chat.messages[-1]["content"] == "keep this "
    assert chat.send("more", temperature=0).text == "more"


def test_a_fork_goes_its_own_way(model: Model) -> None:
    chat = model.chat()
    chat.send("common ground", temperature=0)
    twin = chat.fork()
    twin.send("only in the twin", temperature=0)
    assert len(chat.messages) == 2
    assert len(twin.messages) == 4
    done = chat.send("only in the first", temperature=0)
    assert done.usage.cached_tokens > 20


def test_overflow_is_an_error_with_the_numbers(model: Model) -> None:
    chat = model.chat("system")
    chat.send("a" * 150, temperature=0, max_tokens=5)
    with pytest.raises(ContextOverflow, match="the context holds 512") as caught:
        chat.send("b" * 400, temperature=0)
    assert caught.value.n_ctx == 512
    assert caught.value.needed > 512
    assert len(chat.messages) == 3


def test_drop_oldest_drops_whole_turns_and_says_which(model: Model) -> None:
    chat = model.chat("the system prompt stays")
    for word in ("one", "two", "three"):
        chat.send(word * 20, temperature=0, max_tokens=10)
    before = len(chat.messages)
    done = chat.send("x" * 200, temperature=0, max_tokens=40, overflow="drop-oldest")
    assert done.dropped
    assert done.dropped[0]["content"] == "one" * 20
    assert [message["role"] for message in done.dropped] == ["user", "assistant"] * (len(done.dropped) // 2)
    assert chat.dropped == done.dropped
    assert chat.system == "the system prompt stays"
    assert len(chat.messages) == before + 2 - len(done.dropped)
    assert done.text.startswith("x")
    with pytest.raises(ContextOverflow):
        chat.send("y" * 600, overflow="drop-oldest")


def test_save_and_restore(model: Model, tmp_path: Path) -> None:
    chat = model.chat("Ünïcode")
    chat.send("hello", temperature=0)
    chat.save(tmp_path / "talk.json")
    other = model.chat()
    other.restore(tmp_path / "talk.json")
    assert other.messages == chat.messages
    assert other.send("more", temperature=0).text == "more"
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    for bad in ("{}", "[]", "not json", json.dumps({"edgellm_chat": 1, "messages": ["x"], "dropped": []})):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(InvalidModelFile, match="not a saved conversation"):
            other.restore(tmp_path / "bad.json")
    assert len(other.messages) == 5


def test_regenerating_and_editing_compute_only_what_is_new(model: Model) -> None:
    chat = model.chat("A system prompt of some length, so that there is something to reuse.")
    for text in ("the first question", "the second question", "the third question"):
        chat.send(text, temperature=0)
    again = chat.regenerate(temperature=0)
    assert again.text == "the third question"
    assert again.cache.computed <= 12
    assert len(chat.messages) == 7
    edited = chat.edit(3, "another second question", temperature=0)
    assert edited.text == "another second question"
    assert [message["content"] for message in chat.messages[-2:]] == ["another second question"] * 2
    assert len(chat.messages) == 5
    assert edited.cache.computed <= len("another second question<") + 20
    for index in (0, 2, 99):
        with pytest.raises(InvalidParameter, match="not a message of the user"):
            chat.edit(index, "x")
    with pytest.raises(ContextOverflow):
        chat.edit(1, "y" * 900)
    assert len(chat.messages) == 5
    with pytest.raises(InvalidParameter, match="nothing was asked"):
        model.chat().regenerate()


def test_reset_and_the_system_prompt(model: Model) -> None:
    chat = model.chat("first")
    chat.send("hi", temperature=0)
    chat.system = "second"
    assert [message["content"] for message in chat.messages] == ["second", "hi", "hi"]
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "second"}]
    bare = model.chat()
    assert bare.system is None
    bare.system = "added"
    assert bare.messages == [{"role": "system", "content": "added"}]
    with pytest.raises(InvalidParameter, match="give one"):
        model.chat("one", messages=[{"role": "system", "content": "two"}])


def test_a_base_model_has_no_chat(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(model._engine.backend, "info", replace(model.info, chat_template=None))
    with pytest.raises(Unsupported, match="no chat template"):
        model.chat()


def test_thinking_is_refused_by_a_template_that_ignores_it(model: Model) -> None:
    with pytest.raises(Unsupported, match="thinking"):
        model.chat(thinking=True).send("hi")
