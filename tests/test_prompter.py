"""Whoever brings a conversation back finds its answers in the model's own tokens; nobody else's are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_said import gguf, onnx
from tiny_vocabularies import ONNX

import edgellm
from edgellm.backends.echo import EchoTokenizer
from edgellm.engine.textstream import TextStream
from edgellm.errors import ContextOverflow, InvalidParameter, Unsupported
from edgellm.model import Model
from edgellm.params import GenerateParams
from edgellm.said import Answer, Said

WILD: dict[str, Any] = {"temperature": 1.6, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module", params=[gguf, onnx(next(iter(ONNX))), None], ids=["gguf", "onnx", "echo"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    cache = edgellm.CacheParams(disk=0)
    path = request.param(tmp_path_factory.mktemp("model")) if request.param else "x"
    with edgellm.load(path, backend="auto" if request.param else "echo", ctx=2048, cache=cache) as opened:
        yield opened


@pytest.fixture
def echo() -> Iterator[Model]:
    with edgellm.load("x", backend="echo", ctx=512, cache=edgellm.CacheParams(disk=0)) as opened:
        yield opened


def ten_turns(model: Model, **options: Any) -> None:
    """Each through a chat of its own, made from the messages."""
    messages: list[dict[str, Any]] = []
    known: list[int] = []
    for turn in range(10):
        chat = model.chat(messages=messages)
        done = chat.send(f"and now {turn}", seed=turn, **options)
        turn_now = model.prompter.answers(chat.messages)[-1]
        assert turn_now.tokens[: len(known)] == known
        new = done.usage.prompt_tokens - len(known)
        # The last token of an answer has no state yet, and passes begin at a multiple of four or take eight at least.
        assert done.cache.computed <= new + 1 + model._engine.backend.pass_shape.shortest if known else True
        messages, known = json.loads(json.dumps(chat.messages)), shown(model, turn_now)


def shown(model: Model, answer: Answer) -> list[int]:
    """Its tokens, without those of a character that max_tokens cut: no message shows any of it."""
    stream, kept = TextStream(), answer.n_prompt
    for at in range(answer.n_prompt, len(answer.tokens)):
        stream.push(model._engine.backend.tokenizer.piece(answer.tokens[at], before=answer.tokens[at - 1]))
        kept = kept if stream.pending else at + 1
    assert len(answer.tokens) - kept < 4
    return answer.tokens[:kept]


def test_a_rebuilt_conversation_computes_no_answer_again(model: Model) -> None:
    echo = model.backend == "echo"  # whose tokens from 256 on stand for nothing, so that no message shows them
    ten_turns(model, **WILD, logit_bias=dict.fromkeys(range(256, model.info.n_vocab), -100.0) if echo else {})


def test_so_does_a_real_model(smollm2: Path) -> None:
    with edgellm.load(smollm2, ctx=2048, cache=edgellm.CacheParams(disk=0)) as opened:
        ten_turns(opened, **WILD)


# One memory, in bounds


def answered(said: Said, prompt: str, text: str, place: int = 1, *, proven: bool = True) -> None:
    tokens = EchoTokenizer(512).encode(prompt)
    said.add(Answer(place, prompt, text, tokens + EchoTokenizer(512).encode(text), len(tokens)), proven=proven)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "-"}, {"role": "assistant", "content": text}]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=6), st.text("xy", max_size=3), st.booleans()), max_size=60)
)
def test_it_stays_in_bounds_and_forgets_the_oldest_first(turns: list[tuple[str, str, bool]]) -> None:
    said, prompt = Said(EchoTokenizer(512), limit=8000), ""
    for question, text, goes_on in turns:
        prompt = prompt + question if goes_on else question
        answered(said, prompt, text)
        assert said.nbytes == sum(known.nbytes for known in said._used) <= 8000
        assert [known.text for known in said._beginning(prompt)][:1] == [text]
        order = list(said._used)
        assert all(order.index(known) < order.index(known.before) for known in order if known.before in said._used)
        assert all(known.before in (*order, said._top) for known in order)
        prompt += text


def test_what_is_used_stays_longest() -> None:
    said = Said(EchoTokenizer(512), limit=12_000)
    answered(said, "a conversation:", "hi")
    for number in range(100):
        answered(said, f"another one, {number}:", "hello")
        assert said.answers("a conversation:", messages("hi"))
        said.tokens("a conversation:hi again", messages("hi"))
    assert len(said) < 30
    assert not said.answers("another one, 0:", messages("hello"))


def test_an_answer_longer_than_the_memory_is_not_kept() -> None:
    said = Said(EchoTokenizer(512), limit=2000)
    answered(said, "a:", "x" * 2000)
    assert (len(said), said.nbytes) == (0, 0)


def test_what_a_file_claims_must_be_its_text() -> None:
    said, tokens = Said(EchoTokenizer(512)), EchoTokenizer(512).encode
    said.add(Answer(1, "a:", "hi", [*tokens("something else"), *tokens("hi")], 14), proven=False)
    said.add(Answer(1, "a:", "hi", [*tokens("a:"), *tokens("no")], 2), proven=False)
    said.add(Answer(1, "a:", "hi", [*tokens("a:"), ord("h"), 257, ord("i")], 2), proven=False)  # unseen in the text
    assert len(said) == 0
    answered(said, "a:", "hi", proven=False)
    answered(said, "a:hi b:", "ho", proven=False)
    assert len(said) == 2


def test_nothing_private_is_in_it(model: Model) -> None:
    before = len(model.prompter.said)
    chat, other = model.chat(private=True), model.chat()
    chat.send("a secret", seed=1, **WILD)
    twin = chat.fork()
    twin.send("another", seed=2, **WILD)
    for cache in ("memory", False):
        other.send("not to be kept", seed=3, cache=cache, **WILD)
    list(chat.stream("and more", seed=4, **WILD))
    assert len(model.prompter.said) == before
    assert len(chat._answers()) == 2
    fresh = model.chat(messages=chat.messages)
    whole = model.prompter.read(chat.messages, title="x").text
    assert model.prompter.read(chat.messages).tokens == model.encode(whole)
    assert fresh._answers() == []
    assert model.prompter.prepare(chat.messages, GenerateParams(cache="memory")).said is not model.prompter.said


def test_a_private_conversation_knows_its_own(model: Model) -> None:
    chat, known = model.chat(private=True), list[int]()
    for turn in range(3):
        chat.send(f"turn {turn}", seed=turn, **{**WILD, "temperature": 1.0})
        answer = chat._answers()[-1]
        assert answer.tokens[: len(known)] == known
        known = answer.tokens[: answer.n_prompt]


# What a server does


def test_a_request_with_its_messages_is_prepared_and_remembered(echo: Model) -> None:
    params, history = GenerateParams(temperature=0), list[dict[str, Any]]()
    for turn in range(3):
        history.append({"role": "user", "content": f"question {turn}"})
        turn_now = echo.prompter.prepare(history, params)
        done = echo.generate(turn_now, params)
        echo.prompter.remember(turn_now, done.text, done.tokens)
        assert done.cache.computed < 50
        assert turn_now.title == "question 0"
        parts = [{"type": "text", "text": done.text}]
        history.append({"role": "assistant", "content": parts if turn else done.text})
    assert len(echo.prompter.answers(history)) == 3
    with pytest.raises(Unsupported, match="documents"):
        echo.prompter.prepare(history, params, documents=[{"title": "f"}])


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    system=st.booleans(),
    max_tokens=st.sampled_from([None, 8, 200]),
)
def test_as_few_turns_as_needed_are_left_out(lengths: list[int], system: bool, max_tokens: int | None) -> None:
    with edgellm.load("x", backend="echo", ctx=256, cache=edgellm.CacheParams(memory=0, disk=0)) as model:
        given = [{"role": "system", "content": "S"}] if system else []
        for length in lengths:
            given += [{"role": "user", "content": "u" * length}, {"role": "assistant", "content": "a"}]
        given.pop()
        params = GenerateParams(max_tokens=max_tokens, overflow="drop-oldest")
        room = 255 - min(max_tokens or 63, 127)
        fewest = next(
            (
                n
                for n in range(len(lengths))
                if len(model.prompter.read([*given[:system], *given[system + 2 * n :]]).tokens) <= room
            ),
            None,
        )
        if fewest is None:
            with pytest.raises(ContextOverflow, match="the message has"):
                model.prompter.prepare(given, params)
            return
        turn = model.prompter.prepare(given, params)
        assert turn.dropped == given[system : system + 2 * fewest]
        assert turn.messages == [*given[:system], *given[system + 2 * fewest :]]


@pytest.mark.parametrize("messages", [None, 5, "x", [None], ["x"], iter(())])
def test_what_is_no_list_of_messages_is_refused(model: Model, messages: Any) -> None:
    with pytest.raises(InvalidParameter, match="messages"):
        model.prompter.prepare(messages, GenerateParams())
