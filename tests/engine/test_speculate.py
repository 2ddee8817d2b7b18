"""Drafts: they change nothing of an answer nor of what is kept, come from the right texts, and are made where they
pay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.backends.base import PassShape, Rows, Step
from edgellm.backends.echo import BOS, EchoBackend, EchoSequence
from edgellm.engine.engine import Engine, _Call
from edgellm.engine.rowcost import RowCost
from edgellm.engine.speculate import MOST, TOGETHER
from edgellm.errors import Busy, Interrupted, Unsupported
from edgellm.events import Chunk, Completion, Timings
from edgellm.kv.blocks import root_key
from edgellm.kv.memory import MemoryTier
from edgellm.kv.prefixes import PrefixCache
from edgellm.params import GenerateParams


class Exact(EchoBackend):
    """Its rows are the same in every pass, and it says so. Remembers the tokens of its passes.

    cells: of all sequences; more is Busy. breaks: in which passes an interruption comes, and about how many tokens of
    each step are computed then.
    """

    pass_shape = PassShape()

    def __init__(self, cells: int = 1 << 30, breaks: dict[int, int] | None = None, **options: Any) -> None:
        super().__init__(**{"micro_batch": 64, **options})
        self.passes: list[list[int]] = []
        self.cells = cells
        self.breaks = breaks or {}

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        sizes = [len(step.tokens) for step in steps]
        self.passes.append(sizes)
        if self.pool.used() + sum(sizes) > self.cells:
            raise Busy("the cells are full")
        part = self.breaks.get(len(self.passes))
        if part is not None:
            for step in steps if max(sizes) > 1 else ():
                super().forward([Step(step.sequence, step.tokens[: part % len(step.tokens) + 1], "none")])
            raise Interrupted("noise")
        return super().forward(steps)

    @property
    def drafted(self) -> bool:
        return any(1 < size <= MOST + 1 for sizes in self.passes for size in sizes)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cost nothing: every draft pays."""
    monkeypatch.setattr(RowCost, "seconds", lambda self, rows: 1.0 + 1e-6 * rows)


def engine_on(backend: EchoBackend) -> Engine:
    known = PrefixCache(root_key("echo", "test"), MemoryTier(1 << 24), None, label="echo", room=backend.n_ctx)
    return Engine(backend, known)


def tokens(text: str) -> list[int]:
    return [BOS, *text.encode()]


def ask_together(
    engine: Engine, prompts: list[list[int]], params: GenerateParams
) -> list[tuple[list[tuple[str, list[int]]], Completion]]:
    """The chunks and the answer to each of the prompts, which the engine sees at once."""
    gate = threading.Event()
    engine._inbox.put(_Call(lambda _: gate.wait(), Future()))
    generations = [engine.submit(each, params, stream=True) for each in prompts]
    gate.set()
    found = []
    for generation in generations:
        chunks = list(generation)
        assert chunks[-1].completion is not None
        assert "".join(chunk.text for chunk in chunks) == chunks[-1].completion.text
        found.append(([(chunk.text, chunk.tokens) for chunk in chunks], chunks[-1].completion))
    return found


def kept(engine: Engine) -> Any:
    """What is known afterwards: cells of the sequence that stays alive, and all parked blocks."""

    def look(_: object) -> Any:
        live, known = engine.reuse._live, engine.reuse._known
        cells = None
        if live is not None:
            assert isinstance(live.sequence, EchoSequence)
            cells = (live.sequence.tokens, live.sequence.hashes, live.sequence.length)
        assert known is not None
        return cells, {key: bytes(known.memory.read(key) or b"") for key in list(known.memory._held)}

    return engine.call(look)


words = st.sampled_from(["ab", "abc", "the ", "cat ", "x", "\n", "é"])
prompts = st.lists(words, min_size=1, max_size=30).map(lambda parts: tokens("".join(parts) * 2))
options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.0, 1.0, 3.0, 5.0]),
        "max_tokens": st.sampled_from([0, 1, 2, 7, 40, 90]),
        "seed": st.integers(0, 9),
        "ignore_eos": st.booleans(),
    },
    optional={
        "stop": st.sampled_from([["cat"], ["ab", "x\n"], ["the cat "], ["#"]]),
        "logprobs": st.integers(0, 3),
        "repeat_penalty": st.sampled_from([1.1, 4.0]),
        "presence_penalty": st.sampled_from([0.5, 2.0]),
        "dry_multiplier": st.sampled_from([0.8, 5.0]),
        "xtc_probability": st.sampled_from([0.3, 1.0]),
        "top_k": st.sampled_from([0, 5]),
        "min_p": st.just(0.0),
        "logit_bias": st.just({97: 3.0, 98: float("-inf")}),
        "cache": st.sampled_from([False, "memory"]),
    },
)
quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@quiet
@given(st.lists(prompts, min_size=1, max_size=4), options, st.sampled_from([16, 64]), st.booleans())
def test_nothing_changes(free: None, asked: list[list[int]], chosen: dict[str, Any], batch: int, strict: bool) -> None:
    """Nor does it where rows were inexact, as this backend says then, and are not."""
    found = []
    for speculate in (False, True):
        backend = Exact(micro_batch=batch)
        if strict:
            backend.pass_shape = EchoBackend.pass_shape
        engine = engine_on(backend)
        params = GenerateParams(**chosen, speculate=speculate)
        answers = ask_together(engine, asked, params)
        state = None
        if len(asked) == 1:  # of several the one that ends last stays alive, which may be another
            state = kept(engine)
            answers += ask_together(engine, asked, params)
        found.append(([(chunks, replace(done, timings=Timings())) for chunks, done in answers], state))
        engine.close()
    assert found[0] == found[1]


@quiet
@given(
    st.lists(prompts, min_size=2, max_size=4),
    st.integers(0, 300),
    st.dictionaries(st.integers(2, 40), st.integers(0, 9), max_size=6),
)
def test_nor_where_room_is_short_or_passes_are_interrupted(
    free: None, asked: list[list[int]], more: int, breaks: dict[int, int]
) -> None:
    params = GenerateParams(temperature=0, max_tokens=60, ignore_eos=True)
    alone = engine_on(EchoBackend())
    expected = [alone.submit(each, params).result().tokens for each in asked]
    alone.close()
    engine = engine_on(Exact(max(map(len, asked)) + 60 + more, breaks))
    answers = ask_together(engine, asked, params)
    assert [done.tokens for _, done in answers] == expected
    engine.close()


forms = st.sampled_from(
    [
        {"regex": "(the |cat |ab){1,12}x"},
        {"choices": ("the cat the cat the cat", "ab", "the cat the ab")},
        {"grammar": 'start: ("ab" "c"? "x")+ "\\n"'},
        {
            "schema": {
                "type": "object",
                "properties": {"cat": {"type": "string", "maxLength": 9}, "the": {"enum": ["x", "abc"]}},
                "required": ["cat", "the"],
                "additionalProperties": False,
            }
        },
    ]
)


@quiet
@given(
    st.lists(st.tuples(prompts, forms), min_size=1, max_size=4),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([None, 0]),
    st.integers(0, 300),
    st.dictionaries(st.integers(2, 40), st.integers(0, 9), max_size=4),
)
def test_answers_with_forms_stay_the_same(
    free: None,
    asked: list[tuple[list[int], dict[str, Any]]],
    temperature: float,
    logprobs: int | None,
    more: int,
    breaks: dict[int, int],
) -> None:
    """With drafts or without, parked and interrupted or not, together or alone, twice in turn."""

    def ask(engine: Engine, speculate: bool) -> list[Any]:
        params = GenerateParams(temperature=temperature, logprobs=logprobs, seed=3, max_tokens=60, speculate=speculate)
        made = [engine.submit(prompt, replace(params, **form)) for prompt, form in asked * 2]
        return [(done.tokens, done.text, done.parsed) for done in (each.result() for each in made)]

    alone = engine_on(EchoBackend(max_sequences=1))
    expected = ask(alone, False)
    alone.close()
    engine = engine_on(Exact(max(len(prompt) for prompt, _ in asked) + 60 + more, breaks))
    assert ask(engine, True) == expected
    engine.close()


def test_drafts_are_made_and_counted(free: None) -> None:
    backend = Exact()
    engine = engine_on(backend)
    [(_, done)] = ask_together(engine, [tokens("to be or not to be, " * 3)], GenerateParams(temperature=0))
    assert done.text == "to be or not to be, " * 3
    assert 2 * len(backend.passes) < len(done.tokens)
    assert len(backend.passes) == 1 + len(done.tokens) - done.timings.accepted  # the stop token is none of the answer
    assert done.timings.drafted > done.timings.accepted > 30
    engine.close()


def test_nobody_gets_drafts_who_did_not_ask_where_rows_differ(free: None) -> None:
    for shape, speculate, expected in (
        (PassShape(), None, True),
        (PassShape(), False, False),
        (EchoBackend.pass_shape, None, False),
        (EchoBackend.pass_shape, True, True),
        (PassShape(align=1, shortest=2), None, False),
        (PassShape(all_rows=False), None, False),
    ):
        backend = Exact()
        backend.pass_shape = shape
        engine = engine_on(backend)
        params = GenerateParams(temperature=0, speculate=speculate, cache=False)
        done = engine.submit(tokens("again and again and again "), params).result()
        assert (done.timings.drafted > 0) == expected
        engine.close()


@pytest.mark.parametrize("why", ["cut back", "last token alone"])
def test_where_it_cannot_be_it_is_refused(why: str) -> None:
    backend = Exact()
    if why == "cut back":
        backend.info = replace(backend.info, can_truncate=False)
    else:
        backend.pass_shape = PassShape(all_rows=False)
    engine = engine_on(backend)
    with pytest.raises(Unsupported, match=why):
        engine.submit(tokens("x"), GenerateParams(speculate=True))
    engine.submit(tokens("x"), GenerateParams()).result()
    engine.close()


def test_a_sink_that_cancels_gets_no_more(free: None) -> None:
    engine = engine_on(Exact())
    seen: list[Chunk] = []

    def sink(item: Chunk | BaseException) -> None:
        assert isinstance(item, Chunk)
        seen.append(item)
        if len(seen) == 17:
            generation.cancel()

    started = threading.Event()
    engine._inbox.put(_Call(lambda _: started.wait(), Future()))
    generation = engine.submit(tokens("round and round " * 4), GenerateParams(temperature=0), stream=True, sink=sink)
    started.set()
    done = generation.result()
    assert (done.finish_reason, len(seen)) == ("cancelled", 18)
    assert done.text == ("round and round " * 4)[:17]  # <|reply|> has no text, and no chunk
    assert done.timings.accepted > 0
    assert kept(engine)[0][0] == [*tokens("round and round " * 4), *done.tokens[:-1]]
    engine.close()


def test_state_that_cannot_be_cut_is_computed_again(free: None) -> None:
    class Stubborn(EchoSequence):
        def truncate(self, length: int) -> bool:
            return length == self.length and super().truncate(length)

    class Backend(Exact):
        def _new_sequence(self, expected: int) -> EchoSequence:
            return Stubborn(self.pool, expected)

    backend = Backend()
    engine = engine_on(backend)
    text = "go on and go on, and go off, and go on and go off. "
    [(_, done)] = ask_together(engine, [tokens(text)], GenerateParams(temperature=0))
    assert done.text == text
    assert backend.drafted
    engine.close()


def test_a_draft_without_room_parks_nobody(free: None) -> None:
    backend = Exact(cells=125)
    engine = engine_on(backend)
    params = GenerateParams(temperature=0, ignore_eos=True, max_tokens=60)
    [(_, done)] = ask_together(engine, [tokens("again and again " * 4)], params)
    assert done.finish_reason == "length"
    assert done.timings.accepted > 0
    assert len(done.tokens) == 60
    engine.close()


# Where drafts come from


def drafts_of(engine: Engine, prompt: list[int], owner: bytes, cache: Any = True) -> int:
    params = GenerateParams(temperature=0, max_tokens=40, ignore_eos=True, cache=cache)
    return engine.submit(prompt, params, owner=owner).result().timings.drafted


def test_earlier_texts_are_found_by_their_owner_alone(free: None) -> None:
    letters = "".join(chr(97 + 7 * i % 26) for i in range(26))
    backend = Exact(script=letters + letters.upper())
    engine = engine_on(backend)
    other = [tokens(f"{i}") for i in range(9)]
    assert drafts_of(engine, other[0], b"one", "memory") == 0
    assert drafts_of(engine, other[1], b"two", "memory") == 0
    assert drafts_of(engine, other[2], b"", True) == 0
    assert drafts_of(engine, other[3], b"one", "memory") > 0
    assert drafts_of(engine, other[4], b"", True) > 0
    assert drafts_of(engine, other[5], b"one", False) == 0
    engine.call(lambda _: engine.forget(b"one"))
    assert drafts_of(engine, other[6], b"one", "memory") == 0
    assert drafts_of(engine, other[7], b"", True) > 0
    for i in range(20):
        engine.submit(tokens("x"), GenerateParams(cache="memory"), owner=b"%d" % i).result()
    assert drafts_of(engine, other[8], b"two", "memory") == 0  # bounded: who was there long ago
    engine.close()


# When they are made


class Timed(Exact):
    """On a clock of its own: a pass of n rows takes `cost(n)` seconds."""

    def __init__(self, cost: Callable[[int], float], **options: Any) -> None:
        super().__init__(**options)
        self.cost = cost
        self.now = 0.0

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        self.now += self.cost(sum(len(step.tokens) for step in steps))
        return super().forward(steps)


def timed(backend: Timed, prompt: str, **chosen: Any) -> tuple[float, Completion]:
    """How long an answer took, and it."""
    engine = Engine(backend, clock=lambda: backend.now)
    done = engine.submit(tokens(prompt), GenerateParams(ignore_eos=True, cache=False, **chosen)).result()
    engine.close()
    return backend.now, done


def bound_by_memory(rows: int) -> float:
    return 0.003 * max(1.0, rows / 12)


def in_proportion(rows: int) -> float:
    return 0.003 * rows


@pytest.fixture
def hard() -> str:
    """A prompt whose echo looks like what was there before, and mostly goes on otherwise."""
    pairs = [first + second for first in "abcdefghij" for second in "abcdefghij"]
    return "".join(pairs[37 * i % 100] for i in range(100))


def test_copies_are_as_much_faster_as_passes_allow() -> None:
    text = "".join(chr(97 + 11 * i % 26) for i in range(26)) * 9
    slow, _ = timed(Timed(bound_by_memory), text, temperature=0, max_tokens=600, speculate=False)
    fast, done = timed(Timed(bound_by_memory), text, temperature=0, max_tokens=600)
    assert fast < slow / 6
    assert done.timings.accepted > 500


def test_nothing_is_lost_where_rows_cost_as_much_as_passes() -> None:
    text = "the same words " * 20
    slow, _ = timed(Timed(in_proportion), text, temperature=0, max_tokens=1200, speculate=False)
    fast, done = timed(Timed(in_proportion), text, temperature=0, max_tokens=1200)
    assert fast < 1.02 * slow
    assert done.timings.drafted > 0  # it was tried


@pytest.mark.parametrize("cost", [bound_by_memory, in_proportion])
def test_nothing_is_lost_where_nothing_comes_again(hard: str, cost: Callable[[int], float]) -> None:
    slow, _ = timed(Timed(cost), hard, temperature=5, seed=1, max_tokens=1200, speculate=False)
    fast, _ = timed(Timed(cost), hard, temperature=5, seed=1, max_tokens=1200)
    assert fast < 1.02 * slow


def test_what_once_was_slow_is_tried_again() -> None:
    backend = Timed(in_proportion)
    text = "the same words " * 20
    engine = Engine(backend, clock=lambda: backend.now)
    params = GenerateParams(temperature=0, ignore_eos=True, cache=False, max_tokens=1500)
    engine.submit(tokens(text), params).result()
    backend.cost = bound_by_memory
    backend.passes.clear()
    done = engine.submit(tokens(text), params).result()
    assert done.timings.accepted > 1000
    assert len(backend.passes) < 500
    engine.close()


def test_several_answers_share_the_rows(free: None) -> None:
    backend = Exact(max_sequences=TOGETHER + 2)
    engine = engine_on(backend)
    texts = [f"{i} and {i} and {i} and {i} and " * 3 for i in range(TOGETHER)]
    params = GenerateParams(temperature=0, cache=False)
    answers = ask_together(engine, [tokens(text) for text in texts], params)
    assert [done.text for _, done in answers] == texts
    assert max(map(sum, backend.passes)) <= 64
    assert any(len(sizes) == TOGETHER and max(sizes) > 1 for sizes in backend.passes)
    backend.passes.clear()
    ask_together(engine, [tokens(text) for text in [*texts, *texts[:2]]], params)
    assert all(max(sizes) == 1 for sizes in backend.passes if len(sizes) == TOGETHER + 2)
    engine.close()
