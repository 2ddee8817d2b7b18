"""What is private of a conversation is found by that conversation, and its report shows it to nobody else."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_said import TEMPLATE, gguf, onnx
from tiny_models import tiny
from tiny_vocabularies import ONNX

import edgellm
from edgellm.chat import Chat
from edgellm.engine.reuse import WORTH_WAITING
from edgellm.events import CacheReport
from edgellm.kv.prefixes import PUBLIC
from edgellm.model import Model
from edgellm.params import GenerateParams

BASE = "we agreed on the word, and I said: "
SECRET = BASE + "zebra " * 20
OTHER = BASE + "other " * 20
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
MEMORY = GenerateParams(cache="memory", **SHORT)


def mamba(folder: Path) -> Path:
    model = tiny("mamba")
    model.metadata["tokenizer.chat_template"] = TEMPLATE
    return model.write(folder / "mamba.gguf")


@pytest.fixture(params=[None, gguf, onnx(next(iter(ONNX))), mamba], ids=["echo", "gguf", "onnx", "mamba"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Model]:
    path = request.param(tmp_path) if request.param else "x"
    cache = edgellm.CacheParams(disk=0)
    backend = "auto" if request.param else "echo"
    with edgellm.load(path, backend=backend, ctx=2048, cache=cache, trust=True) as opened:
        yield opened


@pytest.fixture(params=["live", "parked"])
def settled(request: pytest.FixtureRequest, model: Model) -> Any:
    """Has the last request's sequence be where the test is about."""
    return lambda: model._engine.call(lambda _: None, needs_room=request.param == "parked")


def private(model: Model) -> Chat:
    return model.chat("Be brief.", private=True)


def knows_nothing(report: CacheReport) -> bool:
    """Whether a prompt found nothing of anybody's, neither state nor text."""
    found = report.from_live + report.from_memory + report.from_disk
    return (found, report.broke_at, report.expected) == (0, None, "") and "nothing that begins like" in report.reason


def test_no_other_conversation_finds_it(model: Model, settled: Any) -> None:
    chat = private(model)
    chat.send(SECRET, **SHORT)
    settled()
    others = [private(model), model.chat("Be brief."), model.chat("Be brief.")]
    assert knows_nothing(others[0].send(OTHER, **SHORT).cache)
    settled()
    assert knows_nothing(others[1].send(OTHER, cache="memory", **SHORT).cache)
    settled()
    assert knows_nothing(others[2].send(OTHER, **SHORT).cache)
    settled()
    mine = chat.edit(1, OTHER, **SHORT)
    assert mine.cache.expected == "" or "zebra" in mine.cache.expected


def test_a_call_in_private_finds_no_conversation(model: Model, settled: Any) -> None:
    chat = private(model)
    chat.send(SECRET, **SHORT)
    settled()
    text = model.prompter.read(chat.messages).text
    assert knows_nothing(model.generate(text, MEMORY).cache)
    settled()
    again = model.generate(text + " more", MEMORY).cache
    assert again.from_live + again.from_memory > 0
    settled()
    assert knows_nothing(private(model).send(OTHER, **SHORT).cache)
    turns = [model.prompter.prepare([{"role": "user", "content": text}], MEMORY) for text in (SECRET, OTHER)]
    turns.append(model.prompter.prepare(turns[0].messages, GenerateParams()))  # whose answer anybody finds
    for turn in turns:
        settled()
        assert knows_nothing(model.generate(turn, MEMORY).cache)


def test_it_finds_itself(model: Model, settled: Any, tmp_path: Path) -> None:
    chat = private(model)
    asked = chat.send(SECRET, **SHORT)
    settled()

    def known(done: edgellm.Completion) -> None:
        settled()
        assert done.usage.cached_tokens > asked.usage.prompt_tokens // 2

    known(chat.send("go on", **SHORT))
    known(chat.regenerate(**SHORT))
    known(chat.fork().send("go on", **SHORT))
    chat.save(tmp_path / "talk.json")
    known(model.load_chat(tmp_path / "talk.json").send("go on", **SHORT))
    chat.save(tmp_path / "talk.zip", state=True)
    del chat
    gc.collect()
    known(model.load_chat(tmp_path / "talk.zip").send("go on", **SHORT))


def test_a_file_opens_no_state_but_its_own(model: Model, tmp_path: Path) -> None:
    chat, file = private(model), tmp_path / "talk.json"
    chat.save(file)
    content = json.loads(file.read_bytes())
    chat.send(SECRET, **SHORT)
    for owner in ("", b"memory".hex(), "00" * 16):
        file.write_text(json.dumps({**content, "owner": owner}))
        assert knows_nothing(model.load_chat(file).send(OTHER, **SHORT).cache)
        assert model.load_chat(file)._key not in (b"", chat._key)
    for owner in ("no", 7, None):
        file.write_text(json.dumps({**content, "owner": owner}))
        with pytest.raises(edgellm.errors.InvalidModelFile):
            model.load_chat(file)


def test_nor_does_one_that_is_being_answered(model: Model) -> None:
    chat, asked = private(model), private(model)
    with closing(chat.stream(SECRET, temperature=0, max_tokens=1000, ignore_eos=True)) as stream:  # type: ignore[type-var]
        next(stream)
        assert knows_nothing(asked.send(OTHER, **SHORT).cache)
        assert knows_nothing(model.generate(model.prompter.read(chat.messages).text or "x", MEMORY).cache)


def test_nobody_waits_for_what_is_read_in_private(model: Model) -> None:
    class Reading:
        in_prefill, length, params, prompt = True, 0, MEMORY, [65] * (4 * WORTH_WAITING)

        def __init__(self, owner: bytes) -> None:
            self.state_of = owner, ""

    def waits(owner: bytes) -> bool:
        return model._engine.reuse.is_coming(Reading(owner), [Reading(b"one")])  # type: ignore[arg-type,list-item]

    assert waits(b"one") == model.info.can_truncate
    assert not waits(b"another")


def test_no_other_conversation_gets_its_words_as_drafts(model: Model) -> None:
    if not model.info.can_truncate:
        pytest.skip("no drafts")
    options: dict[str, Any] = {**SHORT, "max_tokens": 12, "speculate": True}

    def owners() -> list[bytes]:
        return model._engine.call(lambda _: list(model._engine._passes.speculation._earlier))

    one, two = private(model), private(model)
    one.send(SECRET, **options)
    two.send(SECRET, **options)
    assert owners() == [one._key, two._key]
    model.chat("Be brief.").send(SECRET, **options)
    model.generate(SECRET, **{**options, "cache": False})
    assert owners() == [one._key, two._key, PUBLIC]
    del one
    gc.collect()
    assert owners() == [two._key, PUBLIC]


def test_it_goes_with_the_conversation(model: Model) -> None:
    def held() -> int:
        return model._engine.call(lambda _: model._engine.reuse._known.memory.nbytes)  # type: ignore[union-attr]

    chat = private(model)
    chat.send(SECRET, **SHORT)
    twin = chat.fork()
    del chat
    gc.collect()
    assert held() > 0
    stream = twin.stream("go on", temperature=0, max_tokens=1000, ignore_eos=True)
    next(stream)
    del twin, stream  # still being answered
    gc.collect()
    while model._engine._unfinished:  # what it was has gone by then, or never will
        time.sleep(0.001)
    assert held() == 0
    assert model._engine.call(lambda _: model._engine.reuse._live) is None
