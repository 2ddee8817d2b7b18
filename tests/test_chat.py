"""Chat on the echo backend."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny
from tiny_onnx import write_decoder

import edgellm
from edgellm.backends.echo import BOS, EchoBackend
from edgellm.chat import Chat
from edgellm.errors import (
    Busy,
    CannotWrite,
    Closed,
    ContextOverflow,
    InvalidModelFile,
    InvalidParameter,
    ModelNotFound,
    Unsupported,
)
from edgellm.kv.archive import read_archive
from edgellm.kv.store import BlockStore, store_path
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
    [answer] = chat._answers()
    assert (answer.prompt, answer.tokens[: answer.n_prompt]) == (text, model.encode(text))
    assert answer.tokens[0] == BOS
    assert model.decode(answer.tokens[answer.n_prompt :]) == "Q"


def test_streamed_and_cancelled_answers_stay_in_the_chat() -> None:
    with Model(EchoBackend(delay=0.002, micro_batch=64)) as model:
        chat = model.chat()
        stream = chat.stream("0123456789" * 5, temperature=0)
        got = [next(stream).text for _ in range(10)]
        stream.close()  # type: ignore[attr-defined]
        assert chat.messages[-1] == {"role": "assistant", "content": "".join(got)}
        assert chat.send("next", temperature=0).text == "next"
        assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]


def test_an_answer_is_remembered_without_its_stop_string(model: Model) -> None:
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
    assert (tmp_path / "talk.json").stat().st_mode & 0o077 == 0 or os.name == "nt"
    for bad in ("{}", "[]", "not json", json.dumps({"edgellm_chat": 2, "messages": ["x"], "dropped": []})):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(InvalidModelFile, match="not a saved conversation"):
            other.restore(tmp_path / "bad.json")
    assert len(other.messages) == 5


def talked(model: Model) -> Chat:
    chat = model.chat("A system prompt of some length, so that there is something to reuse.")
    for text in ("the first question", "the second question", "the third question"):
        chat.send(text, temperature=0)
    return chat


def forget(model: Model) -> None:
    """Everything the model knows of earlier prompts."""
    model._engine.call(lambda backend: model._engine.reuse._known.memory.clear(), needs_room=True)  # type: ignore[union-attr]


@pytest.mark.parametrize("private", [False, True])
def test_a_saved_conversation_brings_its_state_along(model: Model, tmp_path: Path, private: bool) -> None:
    chat = talked(model)
    chat.private = private
    chat.send("a fourth question", temperature=0)
    chat.save(tmp_path / "talk.chat", state=True)
    chat.save(tmp_path / "light.chat")
    expected = chat.send("go on", temperature=0, max_tokens=20)
    forget(model)
    without = model.load_chat(tmp_path / "light.chat").send("go on", temperature=0, max_tokens=20, cache="memory")
    forget(model)
    restored = model.load_chat(tmp_path / "talk.chat")
    assert (restored.unused_state, restored.private, restored.messages) == ("", private, without_last(chat))
    done = restored.send("go on", temperature=0, max_tokens=20, cache="memory" if private else True)
    assert done.tokens == expected.tokens == without.tokens
    assert without.cache.computed == without.usage.prompt_tokens
    assert done.cache.from_memory > 150
    assert done.cache.computed < 40


def without_last(chat: Chat) -> list[dict[str, object]]:
    return chat.messages[:-2]


def test_the_state_in_a_file_is_of_nothing_but_the_conversation(model: Model, tmp_path: Path) -> None:
    """Blocks are shared with other conversations; their tokens must not leave with this one."""
    model.generate("<|im_start|>user\na shared beginning, and then somebody's secret", max_tokens=1)
    chat = model.chat(messages=[])
    chat.send("a shared beginning and nothing else", temperature=0)
    chat.save(tmp_path / "talk.chat", state=True)
    content, state, problem = read_archive(tmp_path / "talk.chat")
    tokens = [int(token) for block, _ in state for token in block.tokens]
    assert problem == ""
    assert tokens == content["said"][0][1][: len(tokens)]
    assert len(tokens) > 30


def test_state_that_cannot_be_used_is_said_to_be(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "talk.chat"
    talked(model).save(path, state=True)
    with Model(EchoBackend(n_vocab=600)) as other:
        chat = other.load_chat(path)
        assert chat.unused_state.startswith("the saved state is of another model")
        assert chat.send("go on", temperature=0).text == "go on"
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[-1].header_offset
    whole[at + 500] ^= 1
    path.write_bytes(whole)
    chat = model.load_chat(path)
    assert "is damaged" in chat.unused_state
    assert len(chat.messages) == 7
    for cut in (100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(InvalidModelFile, match="not a saved conversation"):
            model.load_chat(path)


def test_editing_after_a_restore_reuses_what_was_said(model: Model, tmp_path: Path) -> None:
    chat = talked(model)
    chat.save(tmp_path / "talk.chat")
    restored = model.load_chat(tmp_path / "talk.chat")
    assert restored._answers() == chat._answers()
    index = [i for i, message in enumerate(chat.messages) if message["role"] == "user"][1]
    done = restored.edit(index, "another second question", temperature=0)
    assert done.cache.computed < 50 < done.usage.cached_tokens


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


@pytest.mark.parametrize("blank", ["", " \n\t"])
def test_a_template_of_nothing_but_blanks_is_none(tmp_path: Path, blank: str) -> None:
    gguf = tiny("llama")
    gguf.metadata["tokenizer.chat_template"] = blank
    folder = write_decoder(tmp_path / "onnx")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "chat_template.jinja").write_text(blank, encoding="utf-8")
    with edgellm.load(folder) as opened:  # the other place still counts
        assert opened.info.chat_template == config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": blank}), encoding="utf-8")
    for path in (gguf.write(tmp_path / "m.gguf"), folder):
        with edgellm.load(path) as opened:
            assert opened.info.chat_template is None
            with pytest.raises(Unsupported, match="no chat template"):
                opened.chat()


def test_thinking_is_refused_by_a_template_that_ignores_it(model: Model) -> None:
    with pytest.raises(Unsupported, match="thinking"):
        model.chat(thinking=True).send("hi")


PARTS = [{"type": "text", "text": "first part"}, {"type": "text", "text": "second"}]


def test_content_in_parts_goes_through_everything_a_chat_does(model: Model, tmp_path: Path) -> None:
    given = [dict(part) for part in PARTS]
    chat = model.chat(given)
    assert chat.system == "first part\nsecond"
    assert chat.send(given, temperature=0).text == "first part\nsecond"
    for part in given:  # nothing in the chat is what was given
        part["text"] = "changed"
    assert chat.messages[:2] == [{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}]
    streamed = "".join(chunk.text for chunk in chat.stream(PARTS[:1], temperature=0))
    assert streamed == "first part"
    assert chat.regenerate(temperature=0).text == "first part"
    assert chat.messages[3] == {"role": "user", "content": PARTS[:1]}
    assert chat.edit(1, PARTS[1:], temperature=0).text == "second"
    chat.save(tmp_path / "talk.json")
    restored = model.load_chat(tmp_path / "talk.json")
    assert restored.messages == chat.messages
    assert restored.send("next", temperature=0).cache.computed < 40
    twin = chat.fork()
    twin.messages[0]["content"][0]["text"] = "the twin's"
    assert chat.system == "first part\nsecond"
    assert twin.system == "the twin's\nsecond"
    chat.system = PARTS[:1]  # type: ignore[assignment]
    assert chat.messages[0] == {"role": "system", "content": PARTS[:1]}
    chat.reset()
    assert chat.messages == [{"role": "system", "content": PARTS[:1]}]
    for told in (chat, twin, restored):
        for answer in told._answers():
            assert "[{" not in answer.prompt
            assert "'text'" not in answer.prompt


def test_parts_are_dropped_whole_and_nothing_of_them_is_shared(model: Model) -> None:
    chat = model.chat(messages=[{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS}])
    done = chat.send("x" * 430, temperature=0, max_tokens=20, overflow="drop-oldest")
    assert [message["content"] for message in done.dropped] == [PARTS, PARTS]
    done.dropped[0]["content"][0]["text"] = "changed"
    assert chat.dropped[0]["content"] == PARTS
    twin = chat.fork()
    twin.dropped[0]["content"].clear()
    assert chat.dropped[0]["content"] == PARTS


def test_what_is_no_message_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    chat = model.chat("system")
    chat.send("hi", temperature=0)
    image = [PARTS[0], {"type": "image_url", "image_url": {"url": "data:,"}}]
    before = [dict(message) for message in chat.messages]
    wrong: dict[str, object] = {"NoneType": None, "bytes": b"x", "int": 5, "dict": {}, r"content\[0\].*'str'": ["x"]}
    wrong |= {r"content\[1\].*'image_url'": image, "no text": [{"type": "text"}]}
    for words, content in wrong.items():
        for refused in (chat.send, chat.stream, lambda each: chat.edit(1, each)):
            with pytest.raises(InvalidParameter, match=words):
                refused(content)  # type: ignore[operator]
        with pytest.raises(InvalidParameter, match="system"):
            chat.system = content  # type: ignore[assignment]
        if content is not None:
            with pytest.raises(InvalidParameter, match="system"):
                model.chat(content)  # type: ignore[arg-type]
        with pytest.raises(InvalidParameter, match=r"messages\[0\]"):
            model.chat(messages=[{"role": "user", "content": content}])
    calls: list[Callable[[], object]] = [
        *(lambda each=each: model.chat(messages=each) for each in ("abc", "", [1], 5, None, {"role": "user"}, [{}])),  # type: ignore[misc]
        *(lambda each=each: model.chat(thinking=each) for each in ("x", 1)),  # type: ignore[misc]
        lambda: model.chat(private="x"),  # type: ignore[arg-type]
        *(lambda each=each: chat.edit(each, "x") for each in ("1", 1.0, None, True)),  # type: ignore[misc]
        *(lambda each=each: chat.save(each) for each in (None, 5, b"x", "a\0b")),  # type: ignore[misc]
        *(lambda each=each: chat.restore(each) for each in (None, 5, b"x", "a\0b")),  # type: ignore[misc]
        lambda: chat.send("x", no_such_option=1),
        lambda: chat.stream("x", temperature=-1),
    ]
    for call in calls:
        with pytest.raises(InvalidParameter):
            call()
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file" / "talk", tmp_path / ("x" * 300)):
        with pytest.raises(CannotWrite):
            chat.save(place)
    with pytest.raises(ModelNotFound, match="No such file"):
        chat.restore(tmp_path / "none")
    (tmp_path / "deep").write_text("[" * 100_000)
    for place in (tmp_path, tmp_path / "file", tmp_path / "deep", tmp_path / "file" / "talk"):
        with pytest.raises(InvalidModelFile):
            chat.restore(place)
    assert chat.messages == before
    chat.messages.append({"role": "user", "content": "\ud800"})
    with pytest.raises(InvalidParameter, match="JSON"):
        chat.save(tmp_path / "talk")
    chat.messages[-1] = {"role": "user", "content": object()}
    with pytest.raises(InvalidParameter, match=r"messages\[3\]"):
        chat.save(tmp_path / "talk")
    for broken in (None, "abc", [1]):
        chat.messages = broken  # type: ignore[assignment]
        for use in (lambda: chat.send("x"), lambda: chat.system, chat.fork, chat.regenerate, chat.reset):
            with pytest.raises(InvalidParameter, match="no longer a list"):
                use()


def test_a_chat_says_that_it_cannot_be_copied(model: Model) -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(Unsupported, match="fork"):
            attempt(model.chat())


def test_one_answer_at_a_time() -> None:
    with Model(EchoBackend(delay=0.002, micro_batch=64)) as model:
        chat = model.chat("S")
        chat.send("one", temperature=0)
        stream = chat.stream("0123456789" * 3, temperature=0)
        next(stream)
        for change in (
            lambda: chat.send("two"),
            lambda: chat.stream("two"),
            chat.regenerate,
            lambda: chat.edit(1, "two"),
            chat.reset,
            lambda: setattr(chat, "system", "T"),
        ):
            with pytest.raises(Busy, match="producing an answer"):
                change()
        assert len(chat.messages) == 3
        assert chat.fork().send("beside it", temperature=0).text == "beside it"
        assert "".join(chunk.text for chunk in stream) == ("0123456789" * 3)[1:]
        assert chat.send("two", temperature=0).text == "two"
        contents = [message["content"] for message in chat.messages]
        assert contents == ["S", "one", "one", "0123456789" * 3, "0123456789" * 3, "two", "two"]


def test_what_is_put_into_the_list_meanwhile_stays() -> None:
    late = {"role": "user", "content": "late"}
    with Model(EchoBackend(delay=0.002, micro_batch=64, n_ctx=256)) as model:
        chat = model.chat("S")
        chat.send("one", temperature=0)
        stream = chat.stream("two", temperature=0, max_tokens=1)
        next(stream)
        chat.messages.append(dict(late))
        chat.messages.insert(0, {"role": "user", "content": "early"})
        chat.messages[2]["content"] = "edited"
        stream.close()
        assert contents(chat) == ["S", "edited", "one", "two", "t", "early", "late"]
        stream = chat.stream("three", at=3, temperature=0)  # in place of all from there on
        next(stream)
        chat.messages += [dict(late), dict(late)]
        assert "".join(chunk.text for chunk in stream) == "hree"
        assert contents(chat) == ["S", "edited", "one", "three", "three", "late", "late"]
        stream = chat.stream("x" * 150, temperature=0, overflow="drop-oldest", max_tokens=1)
        next(stream)
        chat.messages.append(dict(late))
        stream.close()
        assert [message["content"] for message in chat.dropped] == ["edited", "one"]
        assert contents(chat) == ["S", "three", "three", "late", "late", "x" * 150, "x", "late"]
        stream = chat.stream("last", temperature=0, overflow="drop-oldest", max_tokens=1)
        next(stream)
        chat.messages = None  # type: ignore[assignment]
        stream.close()
        assert contents(chat)[-2:] == ["last", "l"]


def test_of_two_threads_one_is_told_to_wait_and_no_turn_is_lost() -> None:
    with Model(EchoBackend(delay=0.001, micro_batch=64)) as model:
        chat = model.chat()
        said: list[str] = []
        busy: list[Busy] = []
        start = threading.Barrier(4)

        def talk(name: str) -> None:
            start.wait()
            for turn in range(4):
                try:
                    chat.send(f"{name}{turn}", temperature=0)
                    said.append(f"{name}{turn}")
                except Busy as error:
                    busy.append(error)

        threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said
        assert busy
        assert [message["content"] for message in chat.messages] == [text for text in said for _ in range(2)]


def test_an_abandoned_stream_frees_the_chat() -> None:
    with Model(EchoBackend(delay=0.002, micro_batch=64)) as model:
        chat = model.chat()
        never_started = chat.stream("first", temperature=0)
        assert chat.send("second", temperature=0).text == "second"
        started = chat.stream("0123456789" * 5, temperature=0)
        next(started)
        del started  # as a loop that was left
        gc.collect()
        assert chat.messages[-1]["content"].startswith("0")
        with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012
            for _ in chat.stream("0123456789" * 5, temperature=0):
                raise RuntimeError("mine")
        gc.collect()
        # What was not started says what it has to say after all that was said since.
        assert "".join(chunk.text for chunk in never_started) == "first"
        assert [message["content"] for message in chat.messages[::2]][::3] == ["second", "first"]
        with pytest.raises(ContextOverflow):
            chat.stream("x" * 9000)
        failing = chat.stream("last")
        model.close()
        with pytest.raises(Closed):
            next(failing)
        with pytest.raises(Closed):
            chat.send("again")


def test_the_oldest_turns_can_be_left_out(model: Model) -> None:
    chat = model.chat("S")
    assert chat.count_tokens() > 0
    for text in ("one", "two", "three"):
        chat.send(text, temperature=0)
    before = chat.count_tokens()
    dropped = chat.drop_oldest()
    assert [message["content"] for message in dropped] == ["one", "one"]
    assert [message["content"] for message in chat.messages] == ["S", "two", "two", "three", "three"]
    assert chat.dropped == dropped
    assert chat.count_tokens() < before
    assert chat.send("four", temperature=0).text == "four"
    assert len(chat.drop_oldest(9)) == 4
    assert [message["content"] for message in chat.messages] == ["S", "four", "four"]
    for turns in (1, 0, -1, True, "1"):
        with pytest.raises(InvalidParameter):
            chat.drop_oldest(turns)  # type: ignore[arg-type]
    assert model.chat().count_tokens() == 0
    assert not chat.can_think


def test_people_are_shown_how_a_conversation_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    with edgellm.load("x", backend="echo") as model:
        chat = model.chat("You are kind. " * 30)
        for content in ([{"type": "text", "text": "Why is\nthe sky blue?"}], "And at night?"):
            chat.send(content, temperature=0)
        model.generate("<|im_start|>" + "plain text " * 20, temperature=0, max_tokens=1)
    store = BlockStore(store_path())
    try:
        assert {entry.words[:20] for entry in store.conversations()} == {"Why is the sky blue?", "plain text plain tex"}
    finally:
        store.close()


def test_lists_that_somebody_broke(model: Model) -> None:
    for broken in ([5], None, "x", [{"role": "user", "content": [5]}], [{"role": "system"}], [{"content": "x"}]):
        for name in ("messages", "dropped"):
            chat = model.chat("S")
            setattr(chat, name, broken)
            calls: list[Callable[[], object]] = [
                lambda chat=chat: chat.system,
                lambda chat=chat: chat.send("x"),
                lambda chat=chat: next(chat.stream("x")),
                lambda chat=chat: chat.regenerate(),
                lambda chat=chat: chat.fork(),
                lambda chat=chat: chat.count_tokens(),
                lambda chat=chat: chat.drop_oldest(),
            ]
            for call in calls:
                with pytest.raises(InvalidParameter):
                    call()


def test_tokens_of_a_closed_chat_are_not_counted() -> None:
    with edgellm.load("x", backend="echo") as opened:
        chat = opened.chat("S")
        assert chat.count_tokens() > 0
    with pytest.raises(Closed):
        chat.count_tokens()


def test_an_empty_prompt_has_what_the_model_begins_with(tmp_path: Path) -> None:
    described = tiny("gemma2")
    described.metadata |= {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    cache = edgellm.CacheParams(memory=0, disk=0)
    with edgellm.load(described.write(tmp_path / "m.gguf"), ctx=64, cache=cache) as opened:
        assert opened.chat().send("", max_tokens=1).usage.prompt_tokens == 1
        assert opened.chat(messages=[{"role": "user", "content": ""}]).count_tokens() == 1


# At another place, and in an event loop


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.messages]


def test_wrong_options_are_told_by_the_call_itself(model: Model) -> None:
    chat = model.chat(messages=[{"role": "user", "content": "x"}])
    for call in (chat.send, chat.stream, chat.astream, model.stream, model.astream):
        with pytest.raises(InvalidParameter, match="cancel=3: must be a CancelToken"):
            call("x", cancel=3)  # type: ignore[operator]
    with pytest.raises(InvalidParameter, match="unknown option 'at'"):
        chat.edit(0, "x", at=0)  # type: ignore[call-arg]


def test_a_message_is_said_in_place_of_another_one(model: Model) -> None:
    chat = model.chat("S")
    for text in ("one", "two"):
        chat.send(text, temperature=0)
    assert "".join(chunk.text for chunk in chat.stream("three", at=3, temperature=0)) == "three"
    assert contents(chat) == ["S", "one", "one", "three", "three"]
    assert chat.send("four", at=1, temperature=0).text == "four"
    assert contents(chat) == ["S", "four", "four"]
    for at in (0, 2, 3, -1):
        with pytest.raises(InvalidParameter, match="not a message of the user"):
            chat.stream("x", at=at)
    for wrong in ("1", 1.0, True):
        with pytest.raises(InvalidParameter, match="at="):
            chat.send("x", at=wrong)  # type: ignore[arg-type]
    late = chat.stream("late", at=1)
    chat.reset()
    with pytest.raises(InvalidParameter, match="not a message of the user"):
        next(late)
    assert contents(chat) == ["S"]


def test_what_was_stopped_before_an_answer_was_not_said() -> None:
    with Model(EchoBackend(delay=0.01, micro_batch=16)) as model:
        chat = model.chat()
        chat.send("one", temperature=0)
        stop = edgellm.CancelToken()
        stop.cancel()
        assert chat.send("two", cancel=stop).finish_reason == "cancelled"
        assert [chunk.text for chunk in chat.stream("two", cancel=stop)] == [""]
        assert chat.regenerate(timeout=0.001).finish_reason == "timeout"
        assert contents(chat) == ["one", "one"]


def test_a_chat_in_an_event_loop() -> None:
    async def scenario() -> None:
        with Model(EchoBackend(delay=0.002, micro_batch=64)) as model:
            chat, other = model.chat(), model.chat()
            both = await asyncio.gather(chat.asend("one", temperature=0), other.asend("two", temperature=0))
            assert [done.text for done in both] == ["one", "two"]
            pieces = [chunk async for chunk in chat.astream("three", temperature=0)]
            assert "".join(chunk.text for chunk in pieces) == "three"
            assert pieces[-1].completion is not None
            assert (await chat.asend("four", at=2, temperature=0)).text == "four"
            assert contents(chat) == ["one", "one", "four", "four"]
            for refused in (lambda: chat.astream(5), lambda: chat.astream("x", at=1), lambda: chat.astream("y" * 9000)):
                with pytest.raises((InvalidParameter, ContextOverflow)):
                    refused()
            with pytest.raises(ContextOverflow):
                await chat.asend("y" * 9000)
            chunks = chat.astream("0123456789", temperature=0)
            await anext(chunks)
            with pytest.raises(Busy):
                await chat.asend("beside it")
            await chunks.aclose()
            assert contents(chat)[4:] == ["0123456789", "0"]

    asyncio.run(scenario())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stream_left_by_break_holds_nobody_up(streamed: bool) -> None:
    async def scenario() -> None:
        with Model(EchoBackend(delay=0.002, micro_batch=64)) as model:
            chat = model.chat()
            async for chunk in chat.astream("0123456789" * 9, temperature=0):
                if chunk.text:
                    break
            if streamed:
                assert [chunk async for chunk in chat.astream("b")][-1].completion is not None
            else:
                await chat.asend("b")
            question, answer, following, _ = contents(chat)
            assert question.startswith(answer)
            assert answer
            assert following == "b"

    asyncio.run(scenario())


def test_cancelling_a_task_cancels_the_answer() -> None:
    async def scenario() -> None:
        with Model(EchoBackend(delay=0.01, micro_batch=64)) as model:
            chat = model.chat()
            whole = asyncio.create_task(chat.asend("0123456789" * 20, temperature=0))
            arrived = asyncio.Event()

            async def read() -> None:
                async for chunk in chat.astream("abcdefghij" * 20, temperature=0):
                    if chunk.text:
                        arrived.set()

            await asyncio.sleep(0.05)
            whole.cancel()
            with pytest.raises(asyncio.CancelledError):
                await whole
            assert chat.messages == []  # nothing of it was seen
            pieces = asyncio.create_task(read())
            await arrived.wait()
            pieces.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pieces
            question, answer = contents(chat)
            assert question.startswith(answer)
            assert 0 < len(answer) < 200
            assert (await chat.asend("after", temperature=0)).text == "after"
            assert model.prompter.answers(chat.messages)[0].text == answer

    asyncio.run(scenario())


def long_text_calls(model: Model) -> dict[str, Callable[[], Any]]:
    """By their names, what makes tokens of a text of 100,000 characters for an event loop."""

    async def first(pieces: Any) -> Any:
        async with aclosing(pieces):
            return await anext(pieces)

    text, chat = "y" * 100_000, model.chat()
    return {
        "agenerate": lambda: model.agenerate(text),
        "astream": lambda: first(model.astream(text)),
        "asend": lambda: chat.asend(text),
        "chat.astream": lambda: first(chat.astream(text)),
    }


@pytest.mark.parametrize("name", ["agenerate", "astream", "asend", "chat.astream"])
def test_an_event_loop_does_not_wait_for_a_long_text(model: Model, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ask, begun, go_on, waited = long_text_calls(model)[name], threading.Event(), threading.Event(), list[bool]()
    tokenizer = model._engine.backend.tokenizer
    encode = tokenizer.encode

    def slowly(*given: Any, **options: Any) -> list[int]:
        begun.set()
        waited.append(go_on.wait(5))  # which the event loop says meanwhile
        return encode(*given, **options)

    monkeypatch.setattr(tokenizer, "encode", slowly)

    async def scenario() -> None:
        for cancelled in (True, False):
            begun.clear()
            go_on.clear()
            task = asyncio.create_task(ask())
            while not begun.is_set():
                await asyncio.sleep(0.001)
            if cancelled:
                task.cancel()
            else:
                go_on.set()
            with pytest.raises(asyncio.CancelledError if cancelled else ContextOverflow):
                await task
            go_on.set()

    asyncio.run(scenario())
    assert set(waited) == {True}


def test_a_long_text_that_nobody_waits_for_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with edgellm.load("x", backend="echo", ctx=32_000, cache=edgellm.CacheParams(disk=0)) as model:
        begun, go_on, made = threading.Event(), threading.Event(), list[Any]()
        submit = model.submit

        def slowly(*given: Any, **options: Any) -> Any:
            begun.set()
            go_on.wait(5)
            made.append(submit(*given, **options))
            return made[0]

        monkeypatch.setattr(model, "submit", slowly)
        monkeypatch.setattr("edgellm.model.LONG", 10)

        async def scenario() -> None:
            task = asyncio.create_task(model.agenerate("some more than ten", ignore_eos=True))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            while not made:
                await asyncio.sleep(0.001)

        asyncio.run(scenario())
        assert made[0].result().finish_reason == "cancelled"


def test_a_long_text_to_a_busy_chat_is_busy_first(model: Model) -> None:
    chat = model.chat()

    async def scenario() -> None:
        async with aclosing(chat.astream("0123456789" * 20)) as pieces:
            await anext(pieces)
            with pytest.raises(Busy):
                await chat.asend("y" * 100_000)
        with pytest.raises(ContextOverflow):
            await chat.asend("y" * 100_000)
        assert (await chat.asend("after", temperature=0)).text == "after"

    asyncio.run(scenario())
