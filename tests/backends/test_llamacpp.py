"""The five verbs on llama.cpp, with logits compared bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.backends import open_backend
from edgellm.backends.base import Backend, Sequence, Step
from edgellm.backends.llamacpp import pool as llamacpp_pool
from edgellm.backends.llamacpp.backend import LlamaBackend
from edgellm.errors import BackendFailed, Busy, Interrupted, InvalidParameter
from edgellm.params import LoadParams

TEXT = "The little dog ran through the tall grass and the river sang about old mountains, ships and stars. " * 40


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    opened = open_backend(
        request.getfixturevalue(request.param), LoadParams(backend="llamacpp", ctx=2048, micro_batch=128)
    )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def small(smollm2: Path) -> Iterator[LlamaBackend]:
    opened = open_backend(smollm2, LoadParams(backend="llamacpp", ctx=1024))
    assert isinstance(opened, LlamaBackend)
    yield opened
    opened.close()


def feed(backend: Backend, sequence: Sequence, tokens: list[int]) -> NDArray[np.float32]:
    """Feed tokens in micro-batches; a copy of the logits after the last, (n_vocab,)."""
    rows = None
    for at in range(0, len(tokens), backend.micro_batch):
        rows = backend.forward([Step(sequence, tokens[at : at + backend.micro_batch], "last")])[0]
    assert rows is not None
    return rows[0].copy()


def prompt(backend: Backend, n: int) -> list[int]:
    tokens = backend.tokenizer.encode(TEXT, bos=True)
    assert len(tokens) >= n
    return tokens[:n]


def test_state_saved_in_blocks_and_loaded_gives_the_same_logits(backend: Backend) -> None:
    tokens = prompt(backend, 340)
    original = backend.new_sequence()
    feed(backend, original, tokens[:320])
    blocks = [original.save(0, 256), original.save(256, 300), original.save(300, 320)]
    expected = feed(backend, original, tokens[320:])
    original.close()
    restored = backend.new_sequence()
    restored.load([blocks[0]])
    restored.load(blocks[1:])
    assert restored.length == 320
    assert np.array_equal(feed(backend, restored, tokens[320:]), expected)
    restored.close()


def test_truncated_and_forked_sequences_go_on_like_fresh_ones(backend: Backend) -> None:
    tokens = prompt(backend, 320)
    fresh = backend.new_sequence()
    feed(backend, fresh, tokens[:280])
    expected = feed(backend, fresh, tokens[280:])
    fresh.close()

    sequence = backend.new_sequence()
    feed(backend, sequence, tokens[:280])
    twin = sequence.fork(280)
    feed(backend, sequence, [7] * 20)
    assert sequence.truncate(280)
    assert np.array_equal(feed(backend, sequence, tokens[280:]), expected)
    sequence.close()
    assert twin.length == 280
    assert np.array_equal(feed(backend, twin, tokens[280:]), expected)
    twin.close()


def test_several_sequences_in_one_pass_keep_apart(backend: Backend) -> None:
    first, second = prompt(backend, 64), prompt(backend, 400)[300:360]
    alone = []
    for tokens in (first, second):
        sequence = backend.new_sequence()
        alone.append(feed(backend, sequence, tokens))
        sequence.close()
    a, b = backend.new_sequence(), backend.new_sequence()
    rows = backend.forward([Step(a, first, "last"), Step(b, second, "all")])
    assert rows[0] is not None
    assert rows[1] is not None
    assert rows[0].shape == (1, backend.info.n_vocab)
    assert rows[1].shape == (len(second), backend.info.n_vocab)
    # Another pass size rounds differently; another sequence's tokens would change the logits by far more.
    assert np.abs(rows[0][0] - alone[0]).max() < 1.5
    assert np.abs(rows[1][-1] - alone[1]).max() < 1.5
    assert rows[0][0].argmax() == alone[0].argmax()
    a.close()
    b.close()


def test_the_pool_grows_without_changing_a_logit(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for cells in (256, 2048):
        monkeypatch.setattr(llamacpp_pool, "FIRST_CELLS", cells)
        opened = open_backend(smollm2, LoadParams(backend="llamacpp", ctx=2048, micro_batch=128))
        other, sequence = opened.new_sequence(), opened.new_sequence()
        feed(opened, other, prompt(opened, 40))
        logits = feed(opened, sequence, prompt(opened, 520))
        results.append((logits, feed(opened, other, prompt(opened, 80)[40:])))
        opened.close()
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


def test_an_interrupted_pass_keeps_whole_micro_batches(backend: Backend) -> None:
    tokens = prompt(backend, 160)
    fresh = backend.new_sequence()
    feed(backend, fresh, tokens[:128])
    expected = feed(backend, fresh, tokens[128:])
    fresh.close()
    sequence = backend.new_sequence()
    timer = threading.Timer(0.05, backend.interrupt)
    timer.start()

    def feed_again_and_again() -> None:
        for _ in range(1000):  # some pass is in flight when the timer fires
            sequence.truncate(0)
            feed(backend, sequence, tokens[:128])

    with pytest.raises(Interrupted):
        feed_again_and_again()
    assert sequence.length == 0
    feed(backend, sequence, tokens[:128])
    assert np.array_equal(feed(backend, sequence, tokens[128:]), expected)
    sequence.close()


def test_more_rows_than_a_pass_holds_are_refused(small: LlamaBackend) -> None:
    assert small.max_rows < small.micro_batch
    sequence = small.new_sequence()
    with pytest.raises(BackendFailed, match="rows of logits"):
        small.forward([Step(sequence, prompt(small, small.max_rows + 1), "all")])
    assert sequence.length == 0
    feed(small, sequence, prompt(small, 16))
    sequence.close()


def test_a_full_pool_says_so_and_computes_nothing(smollm2: Path) -> None:
    opened = open_backend(smollm2, LoadParams(backend="llamacpp", ctx=512))
    assert isinstance(opened, LlamaBackend)
    opened.pool.max_cells = opened.pool.cells
    a, b = opened.new_sequence(), opened.new_sequence()
    feed(opened, a, prompt(opened, 400))
    with pytest.raises(Busy, match="full"):
        feed(opened, b, prompt(opened, 200))
    assert (a.length, b.length) == (400, 0)
    a.close()
    feed(opened, b, prompt(opened, 200))
    opened.close()


def test_tokenizer_round_trip_and_bounds(backend: Backend) -> None:
    tokenizer = backend.tokenizer
    text = "naïve Ω 🙂\n\ttabs and   spaces"
    tokens = tokenizer.encode(text)
    assert b"".join(tokenizer.piece(token) for token in tokens).decode().lstrip(" ") == text
    assert tokenizer.encode("") == []
    with pytest.raises(InvalidParameter, match="outside the vocabulary"):
        tokenizer.piece(backend.info.n_vocab)
    with pytest.raises(InvalidParameter, match="Unicode"):
        tokenizer.encode("\ud800")
