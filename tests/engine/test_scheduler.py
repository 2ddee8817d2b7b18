"""How many requests decode at once: the cost model, the limit, and turns on a backend whose passes cost what we say."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny

import edgellm
from edgellm.backends.base import Buffer, Rows, Step
from edgellm.backends.echo import BOS, REPLY, EchoBackend, EchoSequence
from edgellm.engine.cost import CLOSE, GAIN, REMEMBERED, CostModel, PassCost, sequences_at_once
from edgellm.engine.engine import Engine, _Call
from edgellm.engine.generation import Generation
from edgellm.engine.request import Request
from edgellm.engine.turns import JUDGED, TURN_SECONDS, UNLIMITED, Turns
from edgellm.errors import BackendFailed, Closed
from edgellm.events import Completion
from edgellm.params import GenerateParams

TRUE = PassCost(0.016, 0.011, 2e-6)
FLAT = PassCost(0.016, 0.011, 0.0)


def observe_ramp(model: CostModel, cost: PassCost, length: int, noise: Callable[[], float] = lambda: 1.0) -> None:
    """Eight answers begin one after another, then decode together."""
    for step in range(30):
        rows = min(8, 1 + step)
        cells = rows * (length + step)
        model.observe(rows, cells, cost.seconds(rows, cells) * noise())


def test_the_model_finds_the_coefficients() -> None:
    model = CostModel()
    observe_ramp(model, TRUE, 900)
    found = model.fit()
    assert found is not None
    assert (found.a, found.b, found.c) == pytest.approx((TRUE.a, TRUE.b, TRUE.c), rel=0.02)


@pytest.mark.parametrize("seed", range(8))
def test_noise_and_outliers_hardly_move_it(seed: int) -> None:
    rng = random.Random(seed)
    model = CostModel()
    for _ in range(3):
        observe_ramp(
            model, TRUE, 900, lambda: rng.uniform(0.9, 1.1) * (rng.uniform(2, 20) if rng.random() < 0.1 else 1)
        )
    found = model.fit()
    assert found is not None
    for rows in range(1, 9):
        assert found.seconds(rows, 900 * rows) == pytest.approx(TRUE.seconds(rows, 900 * rows), rel=0.2)
    assert 3 <= sequences_at_once(found, 8, 8, 900, 7200) <= 5


def test_coefficients_are_never_negative() -> None:
    model = CostModel()
    for rows in range(1, 9):  # faster with every row: no formula of this kind
        for _ in range(3):
            model.observe(rows, rows * 100, 0.1 - 0.01 * rows)
    found = model.fit()
    assert found is not None
    assert min(found.a, found.b, found.c) >= 0


def test_nothing_is_known_from_few_passes_or_of_one_kind() -> None:
    model = CostModel()
    for rows in range(1, 9):
        model.observe(rows, rows * 900, TRUE.seconds(rows, rows * 900))
    assert model.fit() is None
    same = CostModel()
    for step in range(200):
        rows = 7 + step % 2
        same.observe(rows, rows * (900 + step), 0.2)
    assert same.fit() is None


def test_what_was_measured_long_ago_is_forgotten() -> None:
    model = CostModel()
    observe_ramp(model, TRUE, 900)
    for step in range(REMEMBERED - 1):
        model.observe(3, 2700, TRUE.seconds(3, 2700))
        if step == REMEMBERED // 2:
            assert model.fit() is not None
            assert model.seen(8, 7300)
    assert not model.seen(8, 7300)
    assert model.fit() is None


def test_the_limit_for_what_was_measured_on_a_real_machine() -> None:
    assert sequences_at_once(TRUE, 8, 8, 900, 7200) == 4
    assert sequences_at_once(TRUE, 8, 8, 16, 128) == 8
    assert sequences_at_once(FLAT, 8, 8, 4000, 32000) == 8
    assert sequences_at_once(TRUE, 8, 8, 100_000, 800_000) == 1
    # Cells that are shared are scanned once: parked, those sequences would come back apart.
    assert sequences_at_once(TRUE, 8, 8, 900, 1500) == 8


coefficient = st.floats(1e-6, 1.0)


@given(coefficient, coefficient, st.floats(0, 1e-4), st.integers(1, 8), st.integers(1, 8), st.integers(1, 10_000))
def test_the_limit_is_what_brute_force_says(a: float, b: float, c: float, now: int, count: int, length: int) -> None:
    now = min(now, count)
    rates = {n: n / (a + b * n + c * n * n * length) for n in range(1, count + 1)}
    chosen = sequences_at_once(PassCost(a, b, c), now, count, length, count * length)
    assert 1 <= chosen <= count
    assert rates[chosen] >= CLOSE * max(rates.values()) / GAIN * (1 - 1e-9)
    assert rates[chosen] >= CLOSE * rates[1] * (1 - 1e-9)
    if chosen != now:
        assert rates[chosen] >= CLOSE * max(rates.values()) * (1 - 1e-9)
        assert all(rates[more] < CLOSE * max(rates.values()) for more in range(chosen + 1, count + 1))


def decode(turns: Turns, cost: PassCost, rows: int, length: int, passes: int, factor: float = 1.0) -> None:
    for _ in range(passes):
        turns.decoded(rows, rows * length, factor * cost.seconds(rows, rows * length))


def test_the_turns_limits_lifts_and_forgets() -> None:
    turns = Turns(Costly.pass_shape, lambda: 0.0)
    lengths = [900] * 8
    assert turns.limit(lengths, 7200) == UNLIMITED
    for rows in range(1, 8):
        decode(turns, TRUE, rows, 900, 1)
    decode(turns, TRUE, 8, 900, JUDGED)
    assert turns.limit(lengths, 7200) == 4
    decode(turns, TRUE, 4, 900, JUDGED, factor=1.1)
    assert turns.limit(lengths, None) == 4
    assert turns.limit([900], None) == 4  # one alone: nothing to judge
    decode(turns, TRUE, 4, 16, JUDGED)
    assert turns.limit([16] * 8, None) == UNLIMITED  # short ones are faster together
    decode(turns, TRUE, 8, 900, JUDGED)
    assert turns.limit(lengths, 7200) == 4
    decode(turns, TRUE, 4, 900, REMEMBERED)
    assert turns.limit(lengths, None) == UNLIMITED


def test_a_number_that_was_never_tried_is_not_ruled_out() -> None:
    turns = Turns(Costly.pass_shape, lambda: 0.0)
    for rows in (1, 2, 3, 4):
        decode(turns, TRUE, rows, 16, 5)
    assert turns.limit([900] * 8, 7200) == UNLIMITED


# Turns


class Costly(EchoBackend):
    """Its clock moves by the formula for a decode pass, and by the number of tokens read, saved or restored."""

    pass_shape = replace(EchoBackend.pass_shape, takes_turns=True)

    def __init__(self, cost: PassCost, **options: object) -> None:
        super().__init__(micro_batch=512, **options)  # type: ignore[arg-type]
        self.cost = cost
        self.now = 0.0
        self.together: list[int] = []  # sequences in each decode pass

    def new_sequence(self, expected: int = 0) -> EchoSequence:
        made = super().new_sequence(expected)
        made.__class__ = Slow
        made.backend = self  # type: ignore[attr-defined]
        return made

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        rows = super().forward(steps)
        cells = sum(sequence.length for sequence in self.pool.open.values())
        count = sum(len(step.tokens) for step in steps)
        if count == len(steps):
            self.now += self.cost.seconds(count, cells)
            self.together.append(count)
        else:
            self.now += 2e-4 * count
        return rows


class Slow(EchoSequence):
    def save(self, start: int, stop: int) -> Buffer:
        self.backend.now += 5e-6 * (stop - start)  # type: ignore[attr-defined]
        return super().save(start, stop)

    def load(self, blocks: list[Buffer]) -> None:
        before = self.length
        super().load(blocks)
        self.backend.now += 5e-6 * (self.length - before)  # type: ignore[attr-defined]


ANSWER = 150
GREEDY = GenerateParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)


def prompts(count: int, length: int) -> list[list[int]]:
    return [[BOS, *(f"{i} is the number of this prompt. " * length).encode()[: length - 1]] for i in range(count)]


def engine_on(backend: Costly) -> Engine:
    return Engine(backend, clock=lambda: backend.now)


def run(engine: Engine, wanted: list[list[int]]) -> tuple[list[Completion], list[list[float]]]:
    """Submit all at once; the answers, and when (on the backend's clock) the tokens of each came."""
    backend = engine.backend
    assert isinstance(backend, Costly)
    times: list[list[float]] = [[] for _ in wanted]
    gate = threading.Event()
    engine._inbox.put(_Call(lambda backend: gate.wait(), Future()))
    done: list[Future[Completion]] = [Future() for _ in wanted]

    def sink_of(index: int) -> Callable[[edgellm.Chunk | BaseException], None]:
        def sink(item: edgellm.Chunk | BaseException) -> None:
            if isinstance(item, BaseException):
                done[index].set_exception(item)
                return
            times[index].append(backend.now)
            if item.completion is not None:
                done[index].set_result(item.completion)

        return sink

    for index, prompt in enumerate(wanted):
        engine.submit(prompt, GREEDY, stream=True, sink=sink_of(index))
    gate.set()
    return [future.result(60) for future in done], times


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one pass."""
    monkeypatch.setattr("edgellm.engine.turns.TURN_SECONDS", 0.0)
    monkeypatch.setattr("edgellm.engine.turns.TURN_SWAPS", 0)


@pytest.fixture
def deep() -> Iterator[Engine]:
    engine = engine_on(Costly(TRUE))
    yield engine
    engine.close()


def test_deep_answers_that_take_turns_are_faster(deep: Engine) -> None:
    backend = deep.backend
    assert isinstance(backend, Costly)
    wanted = prompts(8, 900)
    answers, times = run(deep, wanted)
    assert backend.together.count(4) > 0.7 * len(backend.together)
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    rate = sum(begin < at <= end for each in times for at in each) / (end - begin)
    assert rate > 1.15 / TRUE.seconds(1, 900 + ANSWER / 2)
    assert max(each[-1] - each[0] for each in times) < 1.5 * min(each[-1] - each[0] for each in times)
    assert len(backend.pool.open) <= 1  # the last one's sequence may be kept
    alone = Engine(EchoBackend())
    assert [answer.tokens for answer in answers] == [alone.submit(prompt, GREEDY).result().tokens for prompt in wanted]
    alone.close()


def test_nobody_waits_longer_than_the_turns_of_the_others(deep: Engine) -> None:
    _answers, times = run(deep, prompts(8, 900))
    longest = max(later - at for each in times for at, later in pairwise(each))
    assert 2 * TURN_SECONDS < longest < 8 * (TURN_SECONDS + 0.2)


def test_shallow_answers_are_not_limited() -> None:
    backend = Costly(TRUE)
    engine = engine_on(backend)
    _answers, times = run(engine, prompts(8, 16))
    assert backend.together.count(8) > 0.8 * len(backend.together)
    assert max(later - at for each in times for at, later in pairwise(each)) < 0.5
    engine.close()


def test_more_requests_than_sequences_finish_in_bounded_state() -> None:
    backend = Costly(TRUE, max_sequences=6)
    engine = engine_on(backend)
    most = 0
    admit = engine._seats.admit

    def counted() -> list[Request]:
        nonlocal most
        begun = admit()
        most = max(most, len(engine._seats.running) + sum(bool(request.parked) for request in engine._seats.waiting))
        return begun

    engine._seats.admit = counted  # type: ignore[method-assign]
    answers, _times = run(engine, prompts(15, 700))
    assert [len(answer.tokens) for answer in answers] == [ANSWER] * 15
    assert most == 6
    assert min(backend.together) >= 1
    engine.close()


def test_a_new_prompt_is_read_at_once_although_others_wait(deep: Engine) -> None:
    backend = deep.backend
    assert isinstance(backend, Costly)
    first: list[float] = []
    joined: list[float] = []

    def join(_chunk: object) -> None:
        if not joined and 4 in backend.together[-1:] and len(backend.together) > 60:
            joined.append(backend.now)
            deep.submit(
                [*prompts(9, 400)[8], REPLY], GREEDY, stream=True, sink=lambda _chunk: first.append(backend.now)
            )

    gate = threading.Event()
    deep._inbox.put(_Call(lambda backend: gate.wait(), Future()))
    requests = [deep.submit(prompt, GREEDY, stream=True, sink=join) for prompt in prompts(7, 900)]
    gate.set()
    wait_for(lambda: all(request.done for request in requests) and len(first) >= ANSWER)
    assert first[0] - joined[0] < 400 * 2e-4 + 6 * TRUE.seconds(4, 4000)


def parked_of(engine: Engine) -> list[Request]:
    """Requests that wait for their turn, read on the engine's thread."""
    return engine.call(lambda backend: [request for request in engine._seats.waiting if request.parked])


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen in 30 seconds")


@pytest.fixture
def crowded() -> Iterator[tuple[Engine, list[Generation]]]:
    """Eight endless answers, of which some wait for their turn."""
    backend = Costly(TRUE, delay=0.001)
    engine = engine_on(backend)
    endless = GenerateParams(temperature=0, ignore_eos=True)
    requests = [engine.submit(prompt, endless, stream=True) for prompt in prompts(8, 900)]
    wait_for(lambda: len(parked_of(engine)) >= 3)
    yield engine, requests
    engine.close()


def test_a_parked_request_is_cancelled_at_once(crowded: tuple[Engine, list[Generation]]) -> None:
    engine, _requests = crowded
    waiting = parked_of(engine)[-1]
    waiting.generation.cancel()
    wait_for(lambda: waiting.done)
    assert [chunk.completion for chunk in waiting.generation][-1].finish_reason == "cancelled"  # type: ignore[union-attr]
    assert waiting.parked == []
    assert waiting not in parked_of(engine)


def test_those_who_wait_come_back_when_the_others_end(crowded: tuple[Engine, list[Generation]]) -> None:
    engine, requests = crowded
    kept = parked_of(engine)[0]
    for request in requests:
        if request is not kept.generation:
            request.cancel()
    wait_for(lambda: engine.call(lambda backend: engine._seats.running == [kept]))
    length = len(kept.answer.tokens)
    wait_for(lambda: len(kept.answer.tokens) > length + 5)


def test_close_ends_those_who_wait(crowded: tuple[Engine, list[Generation]]) -> None:
    engine, requests = crowded
    waiting = parked_of(engine)
    engine.close()
    for request in requests:
        with pytest.raises(Closed):
            request.result()
    assert all(request.parked == [] for request in waiting)


def test_cells_that_forks_share_count_once() -> None:
    backend = Costly(FLAT, delay=0.002)
    engine = engine_on(backend)
    endless = GenerateParams(temperature=0, ignore_eos=True)
    beginning = [BOS, *b"the same beginning. " * 20]
    requests = [engine.submit([*beginning, *b"and end %d" % i], endless) for i in range(4)]
    wait_for(
        lambda: engine.call(
            lambda _: len(engine._seats.running) == 4 and not any(r.in_prefill for r in engine._seats.running)
        )
    )

    def extra() -> list[int]:
        """Cells beyond those of the shared beginning, per request that runs."""
        shared = len(beginning) // 4 * 4
        return [
            engine._seats.cells()
            - shared
            - sum(r.sequence.length - shared for r in engine._seats.running if r.sequence)
        ]

    assert -64 < engine.call(lambda _: extra()[0]) < 64
    requests[0].cancel()
    wait_for(lambda: requests[0].done)
    assert -64 < engine.call(lambda _: extra()[0]) < 64
    engine.close()


@pytest.mark.parametrize("limit", [1, 3])
def test_forced_turns_change_no_answer(eager: None, limit: int) -> None:
    backend = Costly(TRUE)
    engine = engine_on(backend)
    engine._seats.turns.limit = lambda lengths, cells: limit  # type: ignore[method-assign]
    wanted = prompts(8, 100)
    answers, _times = run(engine, wanted)
    assert max(backend.together) == limit
    alone = Engine(EchoBackend())
    assert [answer.tokens for answer in answers] == [alone.submit(prompt, GREEDY).result().tokens for prompt in wanted]
    alone.close()
    engine.close()


def together_in_turns(model: edgellm.Model, texts: list[str], **options: object) -> tuple[list[Completion], int]:
    """The answers to all texts at once while one at a time decodes, and how often one was parked."""
    engine = model._engine
    if engine._seats.turns is not None:
        engine._seats.turns.limit = lambda lengths, cells: 1  # type: ignore[method-assign]
    parked = 0
    park = engine._seats.park

    def counted(request: Request) -> bool:
        nonlocal parked
        parked += 1
        return park(request)

    engine._seats.park = counted  # type: ignore[method-assign]
    answers: dict[int, Completion] = {}

    def ask(index: int) -> None:
        answers[index] = model.generate(texts[index], **options)  # type: ignore[arg-type]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [answers[index] for index in range(len(texts))], parked


OPTIONS = {"temperature": 0, "max_tokens": 30, "ignore_eos": True, "logprobs": 2, "cache": False}
TEXTS = [f"{word} " * (20 + 9 * i) for i, word in enumerate(["one", "two", "three", "four"])]


def test_turns_after_every_token_change_no_llama_cpp_answer(eager: None, tmp_path: Path) -> None:
    """Every pass is one token of one request, as when it runs alone. Only the cells are others, in another order."""
    with edgellm.load(tiny("llama").write(tmp_path / "model.gguf"), backend="llamacpp") as model:
        alone = [model.generate(text, **OPTIONS) for text in TEXTS]  # type: ignore[arg-type]
        together, parked = together_in_turns(model, TEXTS, **OPTIONS)
    assert parked > 40
    for expected, answer in zip(alone, together, strict=True):
        assert answer.tokens == expected.tokens
        assert answer.logprobs is not None
        assert expected.logprobs is not None
        for found, wanted in zip(answer.logprobs, expected.logprobs, strict=True):
            assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5)


def test_behind_a_sliding_window_nobody_waits(eager: None, tmp_path: Path) -> None:
    """The window of this model is 16 tokens; llama.cpp gives the cells behind it to whoever comes."""
    with edgellm.load(tiny("gemma3").write(tmp_path / "model.gguf"), backend="llamacpp") as model:
        together, parked = together_in_turns(model, TEXTS, **OPTIONS)
    assert parked == 0
    assert [len(answer.tokens) for answer in together] == [30] * 4


@pytest.mark.parametrize("error", [BackendFailed("this state cannot be saved"), MemoryError()], ids=["state", "memory"])
def test_where_state_cannot_be_saved_all_go_on(error: Exception, eager: None) -> None:
    class Unsaved(Slow):
        def save(self, start: int, stop: int) -> Buffer:
            if stop > 130:
                raise error
            return super().save(start, stop)

    class Backend(Costly):
        def new_sequence(self, expected: int = 0) -> EchoSequence:
            made = super().new_sequence(expected)
            made.__class__ = Unsaved
            return made

    backend = Backend(TRUE)
    engine = engine_on(backend)
    engine._seats.turns.limit = lambda lengths, cells: 2  # type: ignore[method-assign]
    answers, _times = run(engine, prompts(5, 100))
    assert [len(answer.tokens) for answer in answers] == [ANSWER] * 5
    assert backend.together.count(2) > 10
    assert max(backend.together) == 5
    engine.close()
