"""Progress of a prompt: when it is told, to whom, and what an exception does."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgellm
from edgellm import pace
from edgellm.backends.echo import EchoBackend
from edgellm.engine.progress import Progress
from edgellm.errors import InvalidParameter
from edgellm.events import Chunk
from edgellm.model import Model
from edgellm.params import CacheParams, GenerateParams

SHORT = GenerateParams(temperature=0, max_tokens=2)
Calls = list[tuple[int, int]]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    return Model(EchoBackend(micro_batch=16), cache=CacheParams(disk=0))


def recorder() -> tuple[Calls, edgellm.engine.progress.OnProgress]:
    calls: Calls = []
    return calls, lambda done, total: calls.append((done, total))


def test_every_pass_is_told_on_the_callers_thread(model: Model) -> None:
    calls: list[tuple[int, int, threading.Thread]] = []
    model.generate([65] * 56, SHORT, progress=lambda *numbers: calls.append((*numbers, threading.current_thread())))
    assert [done for done, _, _ in calls] == [0, 16, 32, 48, 56]
    assert {(total, thread) for _, total, thread in calls} == {(56, threading.current_thread())}


def test_what_is_known_counts_as_done_from_the_start(model: Model) -> None:
    model.generate([65] * 40, SHORT)
    calls, progress = recorder()
    model.generate([65] * 40 + [66] * 24, SHORT, progress=progress)
    assert calls == [(40, 64), (56, 64), (64, 64)]


def test_nothing_is_told_where_nothing_is_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.engine.reuse.LOGITS_SHARE", 0)
    calls, progress = recorder()
    for _ in range(2):
        calls.clear()
        done = model.generate([65] * 40, SHORT, progress=progress)
    assert (done.cache.computed, calls) == (0, [])


def test_chunks_are_as_without(model: Model) -> None:
    calls, progress = recorder()
    told = [chunk.text for chunk in model.stream([65] * 40, temperature=0, progress=progress)]
    assert told == [chunk.text for chunk in model.stream([65] * 40, temperature=0)]
    assert calls[-1] == (40, 40)


def test_the_asynchronous_ways_tell_in_the_task(model: Model) -> None:
    threads: list[threading.Thread] = []

    async def run() -> list[Chunk]:
        await model.agenerate([65] * 20, SHORT, progress=lambda *_: threads.append(threading.current_thread()))
        calls, progress = recorder()
        chunks = [chunk async for chunk in model.astream([66] * 20, SHORT, progress=progress)]
        assert calls == [(0, 20), (8, 20), (20, 20)]
        return chunks

    assert asyncio.run(run())[-1].completion is not None
    assert set(threads) == {threading.current_thread()}


def test_a_chat_tells_in_all_its_ways(model: Model) -> None:
    chat = model.chat()
    calls, progress = recorder()
    chat.send("one and two", SHORT, progress=progress)
    list(chat.stream("three", SHORT, progress=progress))
    chat.regenerate(SHORT, progress=progress)
    chat.edit(0, "four", SHORT, progress=progress)
    assert sum(done == total for done, total in calls) == 4


class Stop(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("way", ["generate", "stream", "agenerate", "chat", "score", "embed"])
def test_what_it_raises_stops_and_is_raised(model: Model, way: str) -> None:
    stop = Stop()

    def progress(done: int, total: int) -> None:
        if done >= 16:
            raise stop

    prompt = [65] * 2000
    ways = {
        "generate": lambda: model.generate(prompt, SHORT, progress=progress),
        "stream": lambda: list(model.stream(prompt, SHORT, progress=progress)),
        "agenerate": lambda: asyncio.run(model.agenerate(prompt, SHORT, progress=progress)),
        "chat": lambda: model.chat().send("a" * 2000, SHORT, progress=progress),
        "score": lambda: model.score(prompt, progress=progress),
        "embed": lambda: model.embed([[65] * 20] * 100, progress=progress),
    }
    with pytest.raises(Stop) as raised:
        ways[way]()
    assert raised.value is stop
    assert model.generate("as ever").text == "as ever"
    assert model._engine.call(lambda backend: len(backend.pool.open)) <= 1  # type: ignore[attr-defined]
    assert not model._engine._unfinished


def test_a_sink_gets_progress_and_its_exceptions(model: Model) -> None:
    arrived: list[object] = []
    ended = threading.Event()

    def sink(item: Chunk | BaseException) -> None:
        arrived.append(item)
        ended.set()

    def progress(done: int, total: int) -> None:
        arrived.append(threading.current_thread().name)
        if done:
            raise ZeroDivisionError

    model.submit([65] * 200, SHORT, sink=sink, progress=progress)
    assert ended.wait(10)
    assert arrived[:2] == ["edgellm-engine"] * 2
    assert isinstance(arrived[2], ZeroDivisionError)
    assert len(arrived) == 3
    assert model.generate("as ever").text == "as ever"


def test_scores_and_vectors_tell_too(model: Model) -> None:
    calls, progress = recorder()
    model.score([65] * 41, progress=progress)
    assert (calls[0], calls[-1]) == ((0, 40), (40, 40))
    calls.clear()
    model.embed([[65] * 10] * 70, progress=progress)
    assert calls == [(0, 700), (640, 700), (700, 700)]
    calls.clear()
    model.embed([], progress=progress)
    model.score([65], progress=progress)
    assert calls == []


@pytest.mark.parametrize("way", ["generate", "stream", "score", "embed", "submit"])
def test_what_cannot_be_called_is_refused(model: Model, way: str) -> None:
    text = [65] * 9
    options = (SHORT,) if way in ("generate", "stream", "submit") else ()
    with pytest.raises(InvalidParameter, match="progress=5: must be a function"):
        getattr(model, way)([text] if way == "embed" else text, *options, progress=5)


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 0.1)), max_size=60))
def test_it_is_told_at_most_twenty_times_a_second(steps: list[tuple[int, float]]) -> None:
    now, calls = 0.0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace.time, "monotonic", lambda: now)
        tell = Progress(lambda done, total: calls.append((done, now)), 100)
        for done, wait in [(0, 0.0), *steps, (100, 0.0)]:
            now += wait
            tell(done)
    assert [calls[0][0], calls[-1][0]] == [0, 100]
    assert all(b[0] > a[0] for a, b in pairwise(calls))
    assert all(b[1] - a[1] >= pace.SECONDS for a, b in pairwise(calls[:-1]))
