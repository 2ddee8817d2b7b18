"""The engine on the echo backend: threads, cancellation, preemption, pass shapes, failure."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from edgellm.backends.base import Buffer, PassShape, Rows, Step
from edgellm.backends.echo import BOS, EchoBackend, EchoSequence
from edgellm.engine.cancel import CancelToken
from edgellm.engine.engine import Engine, _Call
from edgellm.errors import BackendFailed, Busy, Closed, ContextOverflow, Interrupted, InvalidParameter
from edgellm.events import CacheReport, Completion
from edgellm.kv.blocks import root_key
from edgellm.kv.memory import MemoryTier
from edgellm.kv.prefixes import PrefixCache
from edgellm.params import GenerateParams

GREEDY = GenerateParams(temperature=0)
SHAPE = EchoBackend.pass_shape
ALIGN, SHORTEST = SHAPE.align, SHAPE.shortest


class Recording(EchoBackend):
    """Remembers what was asked in each pass, and can be made to fail."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.passes: list[tuple[int, int, str]] = []  # start, tokens, logits
        self.errors: list[Exception] = []
        self.entered = threading.Event()

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        self.entered.set()
        if self.errors:
            raise self.errors.pop(0)
        starts = [step.sequence.length for step in steps]
        rows = super().forward(steps)
        self.passes += [(start, len(step.tokens), step.logits) for start, step in zip(starts, steps, strict=True)]
        return rows


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(Recording(micro_batch=32))
    yield made
    made.close()


def tokens(text: str) -> list[int]:
    return [BOS, *text.encode()]


def backend_of(engine: Engine) -> Recording:
    assert isinstance(engine.backend, Recording)
    return engine.backend


def test_an_answer_with_its_numbers(engine: Engine) -> None:
    done = engine.submit(tokens("hello world"), GREEDY).result()
    assert done.text == "hello world"
    assert done.finish_reason == "stop"
    assert (done.usage.prompt_tokens, done.usage.cached_tokens, done.usage.completion_tokens) == (12, 0, 12)
    assert done.cache.computed == 12
    assert done.timings.ttft_ms > 0
    assert done.timings.prefill_tokens_per_second > 0


def test_chunks_add_up_to_the_completion(engine: Engine) -> None:
    chunks = list(engine.submit(tokens("grüße 🙂 aus der ferne"), GREEDY, stream=True))
    completion = chunks[-1].completion
    assert completion is not None
    assert len(chunks) > 10
    assert all(chunk.completion is None for chunk in chunks[:-1])
    assert "".join(chunk.text for chunk in chunks) == completion.text == "grüße 🙂 aus der ferne"
    assert [token for chunk in chunks for token in chunk.tokens] == completion.tokens


def test_logprobs_come_with_every_token(engine: Engine) -> None:
    done = engine.submit(tokens("abc"), GenerateParams(temperature=0, logprobs=3)).result()
    assert done.logprobs is not None
    assert [lp.token for lp in done.logprobs] == done.tokens
    assert all(len(lp.top) == 3 and lp.top[0][0] == lp.token and lp.logprob == lp.top[0][2] for lp in done.logprobs)


def test_prefill_passes_keep_their_shape(engine: Engine) -> None:
    for length in (5, 8, 31, 32, 33, 39, 40, 41, 64, 65, 71, 72, 100, 131):
        backend_of(engine).passes.clear()
        engine.submit([BOS] + [65] * (length - 1), GenerateParams(max_tokens=1, cache=False)).result()
        passes = backend_of(engine).passes
        assert sum(n for _, n, _ in passes) == length
        assert all(start % ALIGN == 0 for start, _, _ in passes)
        assert all(n >= SHORTEST for _, n, _ in passes) or length < SHORTEST
        assert [logits for _, _, logits in passes] == ["none"] * (len(passes) - 1) + ["last"]


@pytest.mark.parametrize("micro_batch", [16, 32, 512])
@pytest.mark.parametrize("shape", [SHAPE, PassShape(), PassShape(align=8, shortest=8)], ids=str)
def test_the_shape_rule_holds_for_every_length(micro_batch: int, shape: PassShape) -> None:
    for total in range(1, 3 * micro_batch + 20):
        left, start = total, 0
        while left:
            size = shape.prefill_size(left, micro_batch)
            assert 0 < size <= micro_batch
            assert start % shape.align == 0
            assert size >= min(shape.shortest, total)
            left, start = left - size, start + size
    for matched in range(40):
        keep = shape.reusable(matched, 30)
        assert keep % shape.align == 0
        assert keep <= matched
        assert keep == 0 or 30 - keep >= shape.shortest


def test_a_known_prefix_is_not_computed_again(engine: Engine) -> None:
    prompt = tokens("a shared beginning that is long enough to keep. ")
    engine.submit([*prompt, *b"first"], GREEDY).result()
    backend_of(engine).passes.clear()
    done = engine.submit([*prompt, *b"second"], GREEDY).result()
    assert done.text.endswith("second")
    assert done.usage.cached_tokens == done.cache.from_live == (len(prompt) + 6 - SHORTEST) // ALIGN * ALIGN
    assert backend_of(engine).passes[0][0] == done.usage.cached_tokens
    fresh = engine.submit([*prompt, *b"second"], GenerateParams(temperature=0, cache=False)).result()
    assert fresh.text == done.text


def test_max_tokens_and_the_end_of_the_context() -> None:
    engine = Engine(EchoBackend(n_ctx=32, micro_batch=16))
    assert engine.submit(tokens("abcdefgh"), GenerateParams(temperature=0, max_tokens=3)).result().tokens == [
        260,
        97,
        98,
    ]
    none = engine.submit(tokens("abc"), GenerateParams(temperature=0, max_tokens=0)).result()
    assert (none.tokens, none.finish_reason) == ([], "length")
    full = engine.submit(tokens("abcdefgh"), GenerateParams(temperature=0, ignore_eos=True)).result()
    assert full.finish_reason == "length"
    assert full.usage.prompt_tokens + full.usage.completion_tokens == 32
    with pytest.raises(ContextOverflow, match="32 tokens and the context holds 32") as caught:
        engine.submit([65] * 32, GREEDY)
    assert (caught.value.needed, caught.value.n_ctx) == (33, 32)
    engine.close()


def test_bad_prompts_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="empty"):
        engine.submit([], GREEDY)
    with pytest.raises(InvalidParameter, match="outside the vocabulary"):
        engine.submit([1, 512], GREEDY)
    with pytest.raises(InvalidParameter, match="outside the vocabulary"):
        engine.submit([-1], GREEDY)


def test_a_stop_string_across_tokens_does_not_leak(engine: Engine) -> None:
    request = engine.submit(tokens("one two three"), GenerateParams(temperature=0, stop=["o th"]), stream=True)
    chunks = list(request)
    assert "".join(chunk.text for chunk in chunks) == "one tw"
    assert chunks[-1].finish_reason == "stop"


def test_the_stop_string_that_ended_an_answer_is_told(engine: Engine) -> None:
    def ended(**options: Any) -> Completion:
        return engine.submit(tokens("one two"), GenerateParams(temperature=0, **options)).result()

    done = ended(stop=["never", "tw", "two"])
    assert (done.text, done.finish_reason, done.stop_string) == ("one ", "stop", "tw")
    assert done.to_dict()["stop_string"] == "tw"
    assert ended(stop=["never"]).stop_string is None
    assert ended(stop=["two"], max_tokens=5).stop_string is None
    control = ended(stop=["<|eos|>"], ignore_eos=True)
    assert (control.text, control.stop_string) == ("one two", "<|eos|>")


def test_text_held_back_for_a_stop_string_comes_at_the_end(engine: Engine) -> None:
    done = engine.submit(tokens("one two"), GenerateParams(temperature=0, stop=["two!"])).result()
    assert done.text == "one two"


def test_cancel_during_prefill_and_during_decode() -> None:
    engine = Engine(EchoBackend(micro_batch=16, delay=0.02))
    for wait in (0.05, 0.5):
        token = CancelToken()
        request = engine.submit([BOS] + [66] * 160, GREEDY)
        request.at_end(token.subscribe(request.cancel))
        timer = threading.Timer(wait, token.cancel)
        timer.start()
        done = request.result()
        assert done.finish_reason == "cancelled"
        assert done.text == "B" * (len(done.tokens) - 1 if done.tokens else 0)
        assert len(done.tokens) < 160
    assert engine.submit(tokens("still right"), GREEDY).result().text == "still right"
    engine.close()


def test_a_token_cancelled_before_cancels_at_once(engine: Engine) -> None:
    token = CancelToken()
    token.cancel()
    request = engine.submit(tokens("never"), GREEDY)
    request.at_end(token.subscribe(request.cancel))
    done = request.result()
    assert (done.finish_reason, done.text) == ("cancelled", "")


def test_closing_a_stream_cancels_it() -> None:
    engine = Engine(EchoBackend(micro_batch=16, delay=0.01))
    request = engine.submit(tokens("x" * 100), GREEDY, stream=True)
    stream = iter(request)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert request.stop_reason == "cancelled"
    assert engine.submit(tokens("next"), GREEDY).result().text == "next"
    engine.close()


def test_a_time_limit_ends_the_answer_with_what_it_has() -> None:
    engine = Engine(EchoBackend(delay=0.01))
    done = engine.submit(tokens("y" * 300), GenerateParams(temperature=0, timeout=0.3)).result()
    assert done.finish_reason == "timeout"
    assert 0 < len(done.tokens) < 300
    engine.close()


def test_many_threads_get_their_own_answers() -> None:
    engine = Engine(EchoBackend(micro_batch=16, max_sequences=3))
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = engine.submit(tokens(f"question {i} " * (i % 5 + 1)), GREEDY).result().text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {i: f"question {i} " * (i % 5 + 1) for i in range(40)}
    engine.close()


def test_a_long_prompt_does_not_hold_the_others_up() -> None:
    engine = Engine(Recording(micro_batch=16))
    backend_of(engine).passes.clear()
    gate = threading.Event()
    engine._inbox.put(_call(gate.wait))
    short = engine.submit(tokens("short answer here"), GREEDY)
    long = engine.submit([BOS] + [67] * 320, GenerateParams(temperature=0, max_tokens=1))
    gate.set()
    assert short.result().text == "short answer here"
    long.result()
    kinds = ["prefill" if n > 1 else "decode" for _, n, _ in backend_of(engine).passes]
    decodes = [i for i, kind in enumerate(kinds) if kind == "decode"]
    gaps = [b - a for a, b in pairwise(decodes)]
    assert max(gaps) <= 2
    engine.close()


def test_a_full_cache_parks_and_resumes_the_youngest_request() -> None:
    backend = Recording(micro_batch=16)
    engine = Engine(backend)
    gate = threading.Event()
    engine._inbox.put(_call(gate.wait))
    first = engine.submit(tokens("the first request, a long one"), GREEDY)
    second = engine.submit(tokens("the second one"), GREEDY)
    for _ in range(12):
        backend.errors.append(Interrupted("noise"))
    backend.errors.append(Busy("the KV cache is full"))
    gate.set()
    assert first.result().text == "the first request, a long one"
    assert second.result().text == "the second one"
    engine.close()


def test_stored_state_without_room_waits_and_leaks_nothing() -> None:
    class Crowded(EchoSequence):
        full = 0

        def load(self, blocks: list[Buffer]) -> None:
            if Crowded.full:
                Crowded.full -= 1
                raise Busy("the KV cache is full")
            super().load(blocks)

    class Backend(EchoBackend):
        def new_sequence(self, expected: int = 0) -> EchoSequence:
            made = super().new_sequence(expected)
            made.__class__ = Crowded
            return made

    backend = Backend(max_sequences=2, delay=0.001)
    known = PrefixCache(root_key("test"), MemoryTier(1 << 20), None, label="echo")
    engine = Engine(backend, known)
    engine.submit(tokens("a beginning that is stored. one"), GREEDY).result()
    engine.submit(tokens("something else altogether"), GREEDY).result()
    Crowded.full = 1
    running = engine.submit(tokens("x" * 60), GREEDY)
    again = engine.submit(tokens("a beginning that is stored. two"), GREEDY)
    assert running.result().text == "x" * 60
    done = again.result()
    assert done.text == "a beginning that is stored. two"
    assert done.cache.from_memory > 0
    assert Crowded.full == 0
    engine.call(lambda made: [made.new_sequence().close() for _ in range(3)], needs_room=True)
    engine.call(lambda made: [sequence.close() for sequence in [made.new_sequence(), made.new_sequence()]])
    engine.close()


def test_an_answer_whose_state_finds_no_memory_is_given(caplog: pytest.LogCaptureFixture) -> None:
    class Unsaved(EchoSequence):
        def save(self, start: int, stop: int) -> Buffer:
            raise MemoryError

    class Backend(EchoBackend):
        def new_sequence(self, expected: int = 0) -> EchoSequence:
            made = super().new_sequence(expected)
            made.__class__ = Unsaved
            return made

    engine = Engine(Backend(), PrefixCache(root_key("test"), MemoryTier(1 << 20), None, label="echo"))
    for text in ("first", "second"):
        assert engine.submit(tokens(text), GREEDY).result().text == text
    engine.close()
    assert "could not be kept: the memory" in caplog.text


def test_a_failing_pass_fails_its_request_and_no_other(engine: Engine) -> None:
    backend_of(engine).errors.append(RuntimeError("boom"))
    with pytest.raises(BackendFailed, match="RuntimeError: boom"):
        engine.submit(tokens("unlucky"), GREEDY).result()
    assert engine.submit(tokens("lucky"), GREEDY).result().text == "lucky"


def test_a_spurious_interruption_changes_nothing(engine: Engine) -> None:
    for _ in range(3):
        engine.backend.interrupt()
        assert engine.submit(tokens("as always"), GREEDY).result().text == "as always"


def test_the_queue_is_bounded() -> None:
    engine = Engine(EchoBackend(delay=0.05), queue_limit=3)
    requests = [engine.submit(tokens("abc"), GREEDY) for _ in range(3)]
    with pytest.raises(Busy, match="3 generations"):
        engine.submit(tokens("abc"), GREEDY)
    for request in requests:
        request.cancel()
        request.result()
    deadline = time.monotonic() + 10
    while engine._unfinished and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.submit(tokens("room"), GREEDY).result().text == "room"
    engine.close()


def test_close_ends_what_runs_and_what_waits() -> None:
    engine = Engine(EchoBackend(delay=0.05, max_sequences=1))
    requests = [engine.submit(tokens("abcdefgh" * 10), GREEDY) for _ in range(3)]
    time.sleep(0.1)
    engine.close()
    engine.close()
    for request in requests:
        with pytest.raises(Closed):
            request.result()
    with pytest.raises(Closed):
        engine.submit(tokens("late"), GREEDY)
    with pytest.raises(Closed):
        engine.call(lambda backend: None)


def test_call_runs_on_the_thread_and_passes_errors_on(engine: Engine) -> None:
    assert engine.call(lambda backend: threading.current_thread().name) == "edgellm-engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda backend: 1 // 0)
    assert engine.submit(tokens("fine"), GREEDY).result().text == "fine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_is_told_instead_of_hanging(engine: Engine) -> None:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 and later warn of forking with threads; that is the point here
        child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            engine.submit(tokens("x"), GREEDY)
        except Closed as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"fork" in os.read(reader, 1000)


def _call(function: Callable[[], object]) -> _Call:
    return _Call(lambda backend: function(), Future())


def test_a_request_stopped_before_it_began_reports_nothing() -> None:
    engine = Engine(EchoBackend(max_sequences=1, delay=0.01))
    running = engine.submit(tokens("x" * 40), GREEDY)
    waiting = engine.submit(tokens("y" * 40), GREEDY)
    waiting.cancel()
    done = waiting.result()
    running.result()
    assert done.finish_reason == "cancelled"
    assert done.cache == CacheReport(reason="reading the prompt was stopped before it began")
    assert (done.usage.cached_tokens, done.timings.prefill_tokens_per_second) == (0, 0)
    engine.close()


def test_an_interruption_holds_up_nobody_who_waits_for_room() -> None:
    backend = Recording(micro_batch=16)
    backend.info = replace(backend.info, can_truncate=False)  # so that an interruption undoes its state
    engine = Engine(backend)
    gate = threading.Event()
    engine._inbox.put(_call(gate.wait))
    requests = [engine.submit(tokens(text), GREEDY) for text in ("the first, which is long enough", "the second")]
    backend.errors += [Busy("the KV cache is full"), Interrupted("noise")]
    gate.set()
    assert [request.result().text for request in requests] == ["the first, which is long enough", "the second"]
    engine.close()
