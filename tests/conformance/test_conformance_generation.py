"""What a user of `Model` relies on: the same answer again, log-probabilities, stop strings, limits, cancellation."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import psutil
import pytest
from backend_cases import CTX, Case, feed, prompt
from numpy.typing import NDArray

import edgellm
from edgellm.backends.base import Backend
from edgellm.errors import Closed, ContextOverflow, InvalidParameter
from edgellm.model import Model

ONLY = "distinct"
PROMPT = prompt(60)


@pytest.fixture
def letters(model: Model) -> dict[int, float]:
    """A logit bias that leaves only tokens of one or more small letters."""
    pieces = {token: model.decode([token]) for token in range(model.info.n_vocab)}
    return {token: -np.inf for token, text in pieces.items() if not (text.isascii() and text.islower())}


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def test_a_greedy_answer_is_the_likeliest_token_again_and_again(model: Model, opened: Backend) -> None:
    sequence = opened.new_sequence()
    expected = [int(feed(opened, sequence, PROMPT).argmax())]
    while len(expected) < 20:
        expected.append(int(feed(opened, sequence, [expected[-1]]).argmax()))
    sequence.close()
    for cache in (True, True, False):
        model.generate(prompt(50, seed=9), max_tokens=5)
        done = model.generate(PROMPT, temperature=0, max_tokens=20, ignore_eos=True, cache=cache)
        assert done.tokens == expected
        assert done.finish_reason == "length"
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (60, 20)
    streamed = [token for chunk in model.stream(PROMPT, temperature=0, max_tokens=20, ignore_eos=True)
                for token in chunk.tokens]  # fmt: skip
    assert streamed == expected


def test_a_seed_gives_the_same_answer_again(model: Model) -> None:
    options: dict[str, Any] = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}
    answers = {seed: model.generate(PROMPT, seed=seed, max_tokens=24, **options).tokens for seed in (1, 2, 3)}
    assert len({tuple(answer) for answer in answers.values()}) == 3
    for seed, answer in answers.items():
        assert model.generate(PROMPT, seed=seed, max_tokens=24, cache=False, **options).tokens == answer
    drawn = model.generate(PROMPT, max_tokens=24, **options)
    assert model.generate(PROMPT, seed=drawn.seed, max_tokens=24, **options).tokens == drawn.tokens


def test_log_probabilities_are_those_of_the_logits(model: Model) -> None:
    """The first of them to the last bit of what is stored; the others are computed in passes of another size."""
    done = model.generate(PROMPT, seed=5, temperature=2.0, max_tokens=12, logprobs=100, ignore_eos=True)
    assert done.logprobs is not None
    assert [entry.token for entry in done.logprobs] == done.tokens
    rows = np.concatenate(list(model.logits([*PROMPT, *done.tokens], start=len(PROMPT) - 1)))
    scores = model.score([*PROMPT, *done.tokens])[len(PROMPT) - 1 :]
    for i, entry in enumerate(done.logprobs):
        expected = log_softmax(rows[i])
        assert abs(np.exp(expected).sum() - 1) < 1e-9
        tolerance = 1e-5 if i == 0 else 0.02
        assert entry.logprob == pytest.approx(expected[entry.token], abs=tolerance)
        assert scores[i] == pytest.approx(expected[entry.token], abs=1e-5)
        listed = [logprob for _, _, logprob in entry.top]
        assert len(listed) == min(100, model.info.n_vocab)
        assert listed == sorted(listed, reverse=True)
        assert sum(map(np.exp, listed)) < 1 + 1e-6
        for token, text, logprob in entry.top:
            assert logprob == pytest.approx(expected[token], abs=tolerance)
            assert text == model._engine.backend.tokenizer.piece(token, special=True)
            assert token != entry.token or logprob == entry.logprob


def test_nothing_of_a_stop_string_leaks(model: Model, letters: dict[int, float]) -> None:
    options: dict[str, Any] = {"seed": 6, "temperature": 3.0, "logit_bias": letters, "ignore_eos": True}
    whole = model.generate(PROMPT, max_tokens=40, **options)
    assert whole.text.islower()
    assert len(whole.text) >= 40
    for at, size in ((0, 1), (3, 2), (10, 5), (17, 12), (len(whole.text) - 3, 3)):
        stop = whole.text[at : at + size]
        expected = whole.text[: whole.text.index(stop)]
        shown = ""
        for chunk in model.stream(PROMPT, max_tokens=40, stop=[stop, "#never#"], **options):
            shown += chunk.text
            assert expected.startswith(shown)
        assert shown == expected
        assert chunk.finish_reason == "stop"
        assert chunk.completion is not None
        assert chunk.completion.text == expected


def test_an_end_that_never_comes_holds_nothing_back(model: Model, letters: dict[int, float]) -> None:
    options: dict[str, Any] = {"seed": 6, "temperature": 3.0, "logit_bias": letters, "ignore_eos": True}
    whole = model.generate(PROMPT, max_tokens=10, **options)
    nearly = whole.text[-3:] + "#"
    assert model.generate(PROMPT, max_tokens=10, stop=nearly, **options).text == whole.text


def test_an_answer_ends_with_the_context(model: Model) -> None:
    long = prompt(CTX - 12)
    done = model.generate(long, temperature=0, ignore_eos=True)
    assert done.finish_reason == "length"
    assert len(long) + len(done.tokens) in (CTX, CTX + 1)  # the last token needs no room
    for length in (CTX, CTX + 1, 3 * CTX):
        with pytest.raises(ContextOverflow) as error:
            model.generate(prompt(length))
        assert (error.value.needed, error.value.n_ctx) == (length + 1, CTX)
    for bad in ([], [model.info.n_vocab], [-1]):
        with pytest.raises(InvalidParameter):
            model.generate(bad)
    again = model.generate(long, temperature=0, ignore_eos=True)
    assert again.tokens == done.tokens


def test_many_requests_at_once_all_end(model: Model) -> None:
    n = model._engine.backend.max_sequences + 4
    done: dict[int, edgellm.Completion] = {}

    def ask(i: int) -> None:
        done[i] = model.generate(prompt(20 + 7 * i, seed=i), temperature=0, max_tokens=12, ignore_eos=True)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(done[i].tokens) for i in range(n)] == [12] * n


def test_one_of_two_requests_is_cancelled_again_and_again(model: Model) -> None:
    prompts = [prompt(30, seed=seed) for seed in range(4)]
    expected = [model.generate(each, temperature=0, max_tokens=24, ignore_eos=True).tokens for each in prompts]
    process = psutil.Process()
    memory = []
    for i in range(20):
        token = edgellm.CancelToken()
        done: dict[str, edgellm.Completion] = {}

        def ask(name: str, text: list[int], n: int, cancel: Any, into: dict[str, edgellm.Completion]) -> None:
            into[name] = model.generate(text, temperature=0, max_tokens=n, ignore_eos=True, cancel=cancel)

        kept = threading.Thread(target=ask, args=("kept", prompts[i % 4], 24, None, done))
        cut = threading.Thread(target=ask, args=("cut", prompt(90, seed=i), 200, token, done))
        kept.start()
        cut.start()
        timer = threading.Timer(0.001 * (i % 20), token.cancel)
        timer.start()
        for thread in (kept, cut, timer):
            thread.join(60)
        assert done["kept"].tokens == expected[i % 4]
        assert done["cut"].finish_reason in ("cancelled", "length")
        if i in (9, 19):
            gc.collect()
            memory.append(process.memory_info().rss)
    assert memory[1] - memory[0] < 8 << 20
    assert model.generate(prompts[0], temperature=0, max_tokens=24, ignore_eos=True).tokens == expected[0]


def test_closing_during_a_generation_ends_it(case: Case, model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=250, temperature=0, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(Closed):
        for _ in stream:
            pass
    for use in (lambda: model.generate(PROMPT), lambda: model.score(PROMPT)):
        with pytest.raises(Closed):
            use()


def test_a_stop_string_may_be_the_text_of_a_control_token(model: Model) -> None:
    control = next(token for token in range(model.info.n_vocab) if not model.decode([token]))
    text = model.decode([control], special=True)
    options: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "logit_bias": {control: 100.0}, "max_tokens": 4}
    for stop in (text, text[1:], [text + text, "#never#"]):
        done = model.generate(PROMPT, stop=stop, **options)
        assert (done.text, done.finish_reason) == ("", "stop")
        assert done.tokens == [control] * (2 if isinstance(stop, list) else 1)
    assert model.generate(PROMPT, stop=text + "#never#", **options).finish_reason == "length"
