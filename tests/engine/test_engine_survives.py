"""What others break, the engine survives: sinks, backends, threads that cannot start, loops that are closed."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from edgellm.backends.echo import BOS, EchoBackend
from edgellm.engine import engine as engine_module
from edgellm.engine.engine import Engine
from edgellm.errors import Closed, NotEnoughMemory, Unsupported
from edgellm.model import Model
from edgellm.params import GenerateParams

GREEDY = GenerateParams(temperature=0)
ENDLESS = GenerateParams(temperature=0, ignore_eos=True)


class Backend(EchoBackend):
    """Remembers whether it was freed."""

    freed = False

    def _free(self) -> None:
        self.freed = True
        super()._free()


def tokens(text: str) -> list[int]:
    return [BOS, *text.encode()]


def within(call: Callable[[], object]) -> object:
    """What it returns or raises, where it does not hang."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert outcome, "it hangs"
    return outcome[0]


@pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_sink_ends_its_own_generation_whatever_it_raises(kind: type[BaseException]) -> None:
    def sink(item: object) -> None:
        raise kind

    engine = Engine(EchoBackend(delay=0.001))
    before = engine.submit(tokens("before"), GREEDY)
    bad = engine.submit(tokens("bad"), GREEDY, stream=True, sink=sink)
    bad.at_end(lambda: sink(None))
    behind = engine.submit(tokens("behind"), GREEDY)
    done: list[Any] = [within(each.result) for each in (before, bad, behind)]
    assert [each.finish_reason for each in done] == ["stop", "cancelled", "stop"]
    within(engine.close)


@pytest.mark.parametrize("breaks", ["start", "reuse", "backend"])
def test_all_end_with_closed_though_closing_fails(breaks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SystemExit(breaks)

    backend = Backend(max_sequences=1, delay=0.01)
    engine = Engine(backend)
    first = engine.submit(tokens("first" * 20), ENDLESS, stream=True)
    next(iter(first))
    waiting = engine.submit(tokens("waiting"), ENDLESS)
    if breaks == "backend":
        monkeypatch.setattr(backend, "close", fail)
    else:
        monkeypatch.setattr(engine.reuse, "start" if breaks == "start" else "close", fail)
    if breaks == "start":
        first.cancel()
    else:
        within(engine.close)
    assert isinstance(within(waiting.result), Closed)
    within(engine._thread.join)
    assert not engine._thread.is_alive()
    assert backend.freed is (breaks != "backend")
    assert engine not in engine_module._alive
    within(engine.close)


WAYS: dict[str, Callable[[Model], object]] = {
    "generate": lambda model: model.generate("x", max_tokens=1),
    "stream": lambda model: list(model.stream("x", max_tokens=1)),
    "agenerate": lambda model: asyncio.run(model.agenerate("x", max_tokens=1)),
    "score": lambda model: model.score("abc"),
    "logits": lambda model: next(model.logits("abc")),
    "embed": lambda model: model.embed("abc"),
    "export_state": lambda model: model.export_state([1, 2]),
    "send": lambda model: model.chat().send("hi", max_tokens=1),
    "close": lambda model: model.close(),
    "submit": lambda model: model.submit("x", GREEDY),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sink_does_not_wait_for_its_own_thread(way: str) -> None:
    model = Model(EchoBackend())
    met: list[object] = []

    def sink(item: object) -> None:
        if not met:
            met.append(None)
            try:
                WAYS[way](model)
            except Exception as error:
                met[0] = error

    outcome = within(model.submit("hello", GREEDY, stream=True, sink=sink).result)
    assert isinstance(outcome, Closed) is (way == "close")
    if way in ("close", "submit"):
        assert met == [None]
    else:
        assert isinstance(met[0], Unsupported)
        assert "another thread" in str(met[0])
    within(model.close)
    assert not model._engine._thread.is_alive()


def test_an_engine_without_a_thread_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    backend, before = Backend(), set(engine_module._alive)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NotEnoughMemory, match="edgellm-engine cannot be started"):
        Engine(backend)
    assert backend.freed
    assert engine_module._alive == before


def test_a_request_whose_time_cannot_be_limited_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotEnoughMemory("no thread")

    engine = Engine(EchoBackend(delay=0.01))
    with monkeypatch.context() as patch:
        patch.setattr(engine_module.DEADLINES, "add", refuse)
        with pytest.raises(NotEnoughMemory):
            engine.submit(tokens("x" * 50), GenerateParams(ignore_eos=True, timeout=5))
    idle(engine)
    engine.close()


def idle(engine: Engine) -> None:
    limit = time.monotonic() + 10
    while engine._seats.running or engine._seats.waiting or not engine._inbox.empty():
        assert time.monotonic() < limit, "it goes on"
        time.sleep(0.005)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a task that is pending for ever
@pytest.mark.parametrize("stream", [True, False])
def test_what_a_closed_loop_waited_for_is_cancelled(stream: bool) -> None:
    model, kept = Model(EchoBackend(delay=0.01)), list[object]()
    loop = asyncio.new_event_loop()

    async def leave() -> None:
        if stream:
            chunks = model.astream("hello" * 10, ENDLESS)
            kept.append(chunks)
            await anext(chunks)
        else:
            kept.append(asyncio.ensure_future(model.agenerate("hello" * 10, ENDLESS)))
            await asyncio.sleep(0.02)

    loop.run_until_complete(leave())
    loop.close()
    idle(model._engine)
    model.close()
    kept.clear()
    gc.collect()


def closed_at_line(number: int) -> int:
    """Close an engine, as a signal handler would, at a line of what it does for a caller. How many lines there are."""
    engine, lines = Engine(EchoBackend()), 0

    def trace(frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("engine.py", "passes.py", "deadlines.py")):
            return None
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                engine.close()
        return trace

    def program() -> None:
        sys.settrace(trace)
        try:
            request = engine.submit(tokens("x"), GenerateParams(timeout=1e9))
            request.cancel()
            engine.call(lambda backend: None)
        except Closed:
            pass
        finally:
            sys.settrace(None)

    assert within(program) is None
    within(engine.close)
    assert not engine._thread.is_alive()
    return lines


def test_a_signal_may_close_it_in_the_midst_of_anything() -> None:
    lines = closed_at_line(0)
    assert lines > 20
    for number in range(1, lines + 1):
        closed_at_line(number)


def test_ctrl_c_at_the_very_end_is_no_reason_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Slow:
        def close(self) -> None:
            closed.append("tried")
            if len(closed) < 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(engine_module, "_alive", {Slow()})
    engine_module._close_all()
    assert closed == ["tried"] * 3


def test_whoever_was_interrupted_in_closing_still_waits() -> None:
    """A join that is interrupted leaves a thread behind that counts as ended: bpo-45274."""
    backend = Backend()
    engine = Engine(backend)
    gate = threading.Event()
    engine.post(lambda _: gate.wait(30))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    real, engine._ended.wait = engine._ended.wait, interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    engine._ended.wait = real  # type: ignore[method-assign]
    engine._thread._is_stopped = True  # type: ignore[attr-defined]  # what the interpreter then believes
    threading.Timer(0.05, gate.set).start()
    engine.close()
    assert backend.freed
