"""What shares a pass where the backend allows it: prompts, prompts and answers, several tokens of an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from backend_cases import PARAMS, onnx_quantized, prompt

from edgellm.backends import open_backend
from edgellm.backends.base import PassShape, Rows, Step
from edgellm.backends.echo import BOS, EchoBackend
from edgellm.engine.engine import Engine, _Call
from edgellm.engine.sampling import Sampler
from edgellm.errors import Interrupted
from edgellm.events import Completion
from edgellm.model import Model
from edgellm.params import GenerateParams

GREEDY = GenerateParams(temperature=0, speculate=False)  # a token is a step
STRICT = EchoBackend.pass_shape


class Shaped(EchoBackend):
    """Remembers the tokens of each sequence in each pass."""

    def __init__(self, shape: PassShape, **options: int) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.pass_shape = shape
        self.passes: list[list[int]] = []

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        self.passes.append([len(step.tokens) for step in steps])
        return super().forward(steps)


def tokens(text: str) -> list[int]:
    return [BOS, *text.encode()]


def ask_together(engine: Engine, prompts: list[list[int]], params: GenerateParams = GREEDY) -> list[Completion]:
    """The answers to prompts that the engine sees at once."""
    gate = threading.Event()
    engine._inbox.put(_Call(lambda backend: gate.wait(), Future()))
    generations = [engine.submit(each, params) for each in prompts]
    gate.set()
    return [generation.result() for generation in generations]


TEXTS = [f"{i}, of {6 * i + 3} letters and more".ljust(6 * i + 30, "x") for i in range(6)]


@pytest.mark.parametrize("mixes", [False, True])
def test_prompts_share_a_pass_where_nothing_depends_on_it(mixes: bool) -> None:
    backend = Shaped(PassShape(mixes_prefill_and_decode=mixes), micro_batch=64)
    engine = Engine(backend)
    answers = ask_together(engine, [tokens(text) for text in TEXTS])
    assert [answer.text for answer in answers] == TEXTS
    assert [answer.cache.computed for answer in answers] == [len(tokens(text)) for text in TEXTS]
    assert all(sum(each) <= 64 for each in backend.passes)
    several = [each for each in backend.passes if sum(size > 1 for size in each) > 1]
    assert several
    mixed = [each for each in backend.passes if 1 in each and max(each) > 8]
    assert bool(mixed) == mixes
    engine.close()


def test_prompts_read_alone_where_the_backend_says_so() -> None:
    backend = Shaped(STRICT, micro_batch=64)
    engine = Engine(backend)
    assert [answer.text for answer in ask_together(engine, [tokens(text) for text in TEXTS])] == TEXTS
    assert all(len(each) == 1 or max(each) == 1 for each in backend.passes)
    engine.close()


@pytest.mark.parametrize("shape", [PassShape(), PassShape(mixes_prefill_and_decode=True), STRICT])
def test_a_short_prompt_does_not_wait_for_a_long_one(shape: PassShape) -> None:
    backend = Shaped(shape, micro_batch=64)
    engine = Engine(backend)
    order: list[str] = []
    gate = threading.Event()
    engine._inbox.put(_Call(lambda backend: gate.wait(), Future()))
    texts = {"long": "a" * 4000, "short": "b" * 40, "next": "c" * 45}
    waiting = []
    for name, text in texts.items():
        generation = engine.submit(tokens(text), GREEDY)
        generation.at_end(lambda name=name: order.append(name))  # type: ignore[misc]
        waiting.append(generation)
    gate.set()
    assert [each.result().text for each in waiting] == list(texts.values())
    assert order[-1] == "long"
    read_first = [sum(each) for each in backend.passes[:8]]
    assert sum(read_first) >= 100  # the long one goes on meanwhile
    assert max(map(max, backend.passes[:8])) > 8
    engine.close()


def test_an_onnx_prompt_has_the_same_bits_beside_others(tmp_path: Path) -> None:
    backend = open_backend(onnx_quantized(tmp_path), PARAMS)
    shares: list[int] = []
    forward = backend.forward

    def counted(steps: list[Step]) -> list[Rows | None]:
        shares.append(sum(len(step.tokens) > 1 for step in steps))
        return forward(steps)

    backend.forward = counted  # type: ignore[method-assign]
    engine = Engine(backend)
    params = GenerateParams(temperature=0, max_tokens=1, logprobs=5, ignore_eos=True, cache=False)
    prompts = [prompt(10 + 7 * i, seed=i) for i in range(6)]
    alone = [engine.submit(each, params).result() for each in prompts]
    assert max(shares) == 1
    together = ask_together(engine, prompts, params)
    assert max(shares) > 2
    assert [each.logprobs for each in together] == [each.logprobs for each in alone]
    engine.close()


def test_a_prompt_that_fills_a_small_pass_is_read() -> None:
    engine = Engine(EchoBackend(n_ctx=12, micro_batch=12))
    params = GenerateParams(temperature=0, max_tokens=1, timeout=20)
    assert engine.submit(tokens("ten tokens"), params).result().finish_reason == "length"
    engine.close()


def test_a_pass_holds_no_more_answers_than_rows() -> None:
    backend = Shaped(PassShape(), micro_batch=16, max_sequences=40)
    engine = Engine(backend)
    texts = [f"answer {i:02}" for i in range(40)]
    params = replace(GREEDY, max_tokens=50, ignore_eos=True)
    answers = ask_together(engine, [tokens(text) for text in texts], params)
    assert [answer.text[:9] for answer in answers] == texts
    assert [1] * 16 in backend.passes
    assert max(map(sum, backend.passes)) == 16
    engine.close()


@pytest.mark.parametrize(("limit", "most"), [(3, 3), (None, 6)])
def test_no_more_decode_at_once_than_the_backend_states(limit: int | None, most: int) -> None:
    backend = Shaped(PassShape(limit=limit), micro_batch=64)
    engine = Engine(backend)
    assert [answer.text for answer in ask_together(engine, [tokens(text) for text in TEXTS])] == TEXTS
    assert max(len(each) for each in backend.passes if max(each) == 1) == most
    assert (engine._seats.turns is None) == (limit is None)
    engine.close()


class Late(Shaped):
    """Is interrupted when all of a pass is computed, and its rows are lost: in the passes of those numbers."""

    late: tuple[int, ...] = ()

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        rows = super().forward(steps)
        if len(self.passes) in self.late:
            raise Interrupted("noise")
        return rows


@pytest.mark.parametrize("shape", [STRICT, PassShape(), PassShape(mixes_prefill_and_decode=True)])
@pytest.mark.parametrize("late", [(1,), (2,), (1, 2, 3), (5, 6, 9)])
def test_rows_that_an_interruption_takes_are_computed_again(shape: PassShape, late: tuple[int, ...]) -> None:
    backend = Late(shape, micro_batch=64)
    backend.late = late
    engine = Engine(backend)
    assert [answer.text for answer in ask_together(engine, [tokens(text) for text in TEXTS[:2]])] == TEXTS[:2]
    assert len(backend.passes) > max(late)
    engine.close()


# Several tokens of an answer


def test_forced_tokens_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a 'q' follow 'uit', whatever the logits."""
    script = "a quit and a quit more"

    def forced(self: Sampler) -> Sequence[int]:
        return b"uit" if answer and answer[-1] == ord("q") else b""

    def accept(self: Sampler, token: int) -> None:
        answer.append(token)

    monkeypatch.setattr(Sampler, "forced", forced)
    monkeypatch.setattr(Sampler, "accept", accept)
    answer: list[int] = []
    backend = Shaped(STRICT)
    engine = Engine(backend)
    done = engine.submit(tokens(script), GREEDY).result()
    assert done.text == script
    assert backend.passes.count([4]) == 2
    assert len(backend.passes) == 1 + len(done.tokens) - 2 * 3
    for params in (GenerateParams(temperature=0, max_tokens=6), GenerateParams(temperature=0, stop=["ui"])):
        answer.clear()
        ends = "a qui" if params.max_tokens else "a q"
        assert engine.submit(tokens(script), params).result().text == ends
    engine.close()


def test_forced_tokens_that_fill_more_than_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is chosen before the last of them is read, whoever chooses."""
    monkeypatch.setattr(Sampler, "accept", lambda self, token: answer.append(token))
    monkeypatch.setattr(Sampler, "forced", lambda self: b"u" * 30 if answer[-1] == ord("q") else b"")
    texts = set()
    for takes in (True, False):
        backend = Shaped(STRICT, micro_batch=16)
        monkeypatch.setattr(backend, "takes", lambda plan, takes=takes: takes)
        answer: list[int] = []
        engine = Engine(backend)
        texts.add(engine.submit(tokens("a quiz of 12"), GREEDY).result().text)
        assert [16] in backend.passes
        engine.close()
    assert len(texts) == 1


# Between the passes


def test_a_function_between_turns_leaves_the_live_state() -> None:
    with Model(EchoBackend()) as model:
        first = model.generate("a beginning that is long enough to be known", temperature=0)
        model.embed(["something else"])
        again = model.generate([*model.encode("a beginning that is long enough to be known"), *first.tokens, 65])
        assert again.cache.from_live > 40
        model.score("what needs a sequence of its own")
        assert model.generate("a beginning that is long enough to be known").cache.from_live == 0


def test_a_pass_wakes_a_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = 0

    async def run(model: Model, clients: int) -> list[str]:
        nonlocal woken
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counted(*args: object) -> asyncio.Handle:
            nonlocal woken
            woken += 1
            return call(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

        async def one(text: str) -> str:
            return "".join([chunk.text async for chunk in model.astream(text, temperature=0)])

        return list(await asyncio.gather(*(one(f"the text of client {i:02}") for i in range(clients))))

    backend = Shaped(STRICT)
    with Model(backend) as model:
        assert asyncio.run(run(model, 8)) == [f"the text of client {i:02}" for i in range(8)]
    answers = 8 * len("the text of client 00")
    assert woken <= len(backend.passes) + 2 * 8  # and as each begins and ends
    assert woken < answers / 2


@pytest.mark.parametrize(("sequences", "least", "most"), [(8, 20, 40), (64, 1, 6)])
def test_the_last_of_many_clients_waits_for_its_first_token(sequences: int, least: float, most: float) -> None:
    """200 clients of 100 tokens at 10 ms for a pass, on a clock that counts passes."""
    backend = Shaped(PassShape(), max_sequences=sequences)
    engine = Engine(backend)
    first: dict[int, float] = {}
    params = replace(GREEDY, max_tokens=100, ignore_eos=True, cache=False)
    gate = threading.Event()
    engine._inbox.put(_Call(lambda _: gate.wait(), Future()))

    def arrived(client: int) -> None:
        first.setdefault(client, 0.01 * len(backend.passes))

    generations = [
        engine.submit(tokens(f"{i}"), params, stream=True, sink=lambda _, i=i: arrived(i))  # type: ignore[misc]
        for i in range(200)
    ]
    gate.set()
    for generation in generations:
        generation.result()
    assert least < max(first.values()) < most
    engine.close()
