"""Passes: whose rows are whose, what is refused, where an interruption leaves the sequences, and what closing frees."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from backend_cases import CTX, Case, feed, fresh, prompt
from numpy.typing import NDArray

from edgellm.backends.base import Backend, Sequence, Step
from edgellm.backends.echo import EchoBackend
from edgellm.errors import BackendFailed, Busy, Closed, ContextOverflow, EdgeLLMError, Interrupted, InvalidParameter

ONLY = "generates"
TOKENS = prompt(CTX + 8)


def rows_of(backend: Backend, tokens: list[int]) -> NDArray[np.float32]:
    """The logits after every token, fed alone: (n, n_vocab)."""
    sequence = backend.new_sequence()
    [rows] = backend.forward([Step(sequence, tokens, "all")])
    assert rows is not None
    copy: NDArray[np.float32] = rows.copy()
    sequence.close()
    return copy


def test_rows_of_a_shared_pass_belong_to_their_sequences(case: Case, opened: Backend) -> None:
    parts = [TOKENS[:24], TOKENS[40:52], TOKENS[60:80]]
    alone = [rows_of(opened, tokens) for tokens in parts]
    sequences = [opened.new_sequence() for _ in parts]
    steps = [Step(sequences[0], parts[0], "all"), Step(sequences[1], parts[1], "none")]
    results = opened.forward([*steps, Step(sequences[2], parts[2], "last")])
    assert [sequence.length for sequence in sequences] == [24, 12, 20]
    assert results[1] is None
    for rows, expected in ((results[0], alone[0]), (results[2], alone[2][-1:])):
        assert rows is not None
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, expected, rtol=0, atol=case.tolerance)
    assert np.abs(alone[0][-1] - alone[2][-1]).max() > 5 * case.tolerance  # or the test could not tell them apart
    for sequence in sequences:
        sequence.close()


def test_decoding_together_gives_the_rows_of_decoding_alone(case: Case, opened: Backend) -> None:
    starts = [prompt(8 + 5 * i, seed=i) for i in range(opened.max_sequences)]
    alone = []
    for start in starts:
        sequence = opened.new_sequence()
        feed(opened, sequence, start)
        alone.append([feed(opened, sequence, [token]) for token in (7, 90, 33)])
        sequence.close()
    sequences = [opened.new_sequence() for _ in starts]
    for sequence, start in zip(sequences, starts, strict=True):
        feed(opened, sequence, start)
    for turn, token in enumerate((7, 90, 33)):
        steps = [Step(sequence, [token], "last") for sequence in sequences]
        for row, expected in zip(opened.forward(steps), alone, strict=True):
            assert row is not None
            np.testing.assert_allclose(row[0], expected[turn], rtol=0, atol=case.tolerance)
    for sequence in sequences:
        sequence.close()


def test_rows_are_of_the_whole_vocabulary_and_read_only(opened: Backend) -> None:
    sequence = opened.new_sequence()
    [rows] = opened.forward([Step(sequence, TOKENS[:16], "all")])
    assert rows is not None
    assert rows.shape == (16, opened.info.n_vocab)
    assert np.isfinite(rows).all()
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    sequence.close()


def test_a_pass_that_is_refused_changes_nothing(case: Case, path: Path, opened: Backend) -> None:
    expected = fresh(opened, TOKENS[:80])
    sequence, other, closed = (opened.new_sequence() for _ in range(3))
    closed.close()
    stranger, echo = case.open(path), EchoBackend()
    feed(opened, sequence, TOKENS[:60])
    many = [0] * (opened.micro_batch + 1)
    good, n_vocab = Step(other, [5], "last"), opened.info.n_vocab
    cases: list[tuple[list[Step], type[EdgeLLMError]]] = [
        ([], BackendFailed),
        ([good, Step(sequence, [], "last")], BackendFailed),
        ([good, good], BackendFailed),
        ([Step(other, many, "last")], BackendFailed),
        ([good, Step(sequence, many[1:], "last")], BackendFailed),
        ([good, Step(stranger.new_sequence(), [5], "last")], BackendFailed),
        ([good, Step(echo.new_sequence(), [5], "last")], BackendFailed),
        ([good, Step(closed, [5], "last")], Closed),
        ([good, Step(sequence, [5, n_vocab], "last")], InvalidParameter),
        ([good, Step(sequence, [-1], "last")], InvalidParameter),
        ([good, Step(sequence, [1 << 40], "last")], InvalidParameter),
    ]
    for steps, error in cases:
        with pytest.raises(error):
            opened.forward(steps)
        assert (sequence.length, other.length) == (60, 0)
    for backend in (stranger, echo):
        backend.close()
    assert np.array_equal(feed(opened, sequence, TOKENS[60:80]), expected)
    for held in (sequence, other):
        held.close()


def test_a_context_is_filled_to_its_last_token_and_no_further(opened: Backend) -> None:
    assert opened.n_ctx == CTX
    sequence = opened.new_sequence()
    feed(opened, sequence, TOKENS[: CTX - 10])
    for tokens in (TOKENS[:11], TOKENS[:40]):
        with pytest.raises(ContextOverflow) as error:
            opened.forward([Step(sequence, tokens, "last")])
        assert (error.value.needed, error.value.n_ctx) == (CTX - 10 + len(tokens), CTX)
        assert sequence.length == CTX - 10
    feed(opened, sequence, TOKENS[CTX - 10 : CTX])
    assert sequence.length == CTX
    with pytest.raises(ContextOverflow):
        feed(opened, sequence, [5])
    sequence.close()


def test_sequences_are_leased_and_returned(opened: Backend) -> None:
    held = [opened.new_sequence(CTX) for _ in range(opened.max_sequences)]
    with pytest.raises(Busy):
        opened.new_sequence()
    feed(opened, held[3], TOKENS[:20])
    if opened.info.can_fork:
        with pytest.raises(Busy):
            held[3].fork()
    held[3].close()
    held[3].close()
    uses: list[Callable[[], Any]] = [
        lambda: held[3].truncate(0),
        lambda: held[3].fork(),
        lambda: held[3].save(0, 1),
        lambda: held[3].load([b""]),
    ]
    for use in uses:
        with pytest.raises(Closed):
            use()
    again = opened.new_sequence()
    assert again.length == 0
    for sequence in [*held, again]:
        sequence.close()


def test_an_interruption_between_passes_stops_the_next_one_only(opened: Backend) -> None:
    expected = fresh(opened, TOKENS[:40])
    sequence = opened.new_sequence()
    opened.interrupt()
    with pytest.raises(Interrupted):
        feed(opened, sequence, TOKENS[:40])
    sequence.close()
    sequence = opened.new_sequence()
    assert np.array_equal(feed(opened, sequence, TOKENS[:40]), expected)
    sequence.close()


def test_interrupted_at_any_moment_the_rest_can_be_fed(opened: Backend) -> None:
    """Reading a prompt: lengths are whole, and whoever goes on gets the logits of one that was left alone."""
    expected = fresh(opened, TOKENS[:CTX])
    chance = np.random.default_rng(4)
    for _ in range(12):
        timer = threading.Timer(float(chance.uniform(0, 0.02)), opened.interrupt)
        sequence = opened.new_sequence()
        fed = CTX
        timer.start()
        try:
            while True:  # some pass is in flight, or about to be, when the timer fires
                if fed == CTX:
                    sequence.close()
                    sequence, fed = opened.new_sequence(), 0
                opened.forward([Step(sequence, TOKENS[fed : fed + opened.micro_batch], "none")])
                fed += opened.micro_batch
        except Interrupted:
            assert fed <= sequence.length <= fed + opened.micro_batch
        timer.join()
        if not opened.info.can_truncate:  # nobody knows what an unfinished pass left of a state that is one whole
            sequence.close()
            sequence = opened.new_sequence()
        sequence = back_to(opened, sequence, TOKENS[: min(sequence.length, CTX - 8) // 4 * 4])
        assert np.array_equal(feed(opened, sequence, TOKENS[sequence.length : CTX]), expected)
        sequence.close()


def test_interrupted_sequences_each_keep_what_was_whole(case: Case, opened: Backend) -> None:
    if not opened.info.can_truncate:
        pytest.skip("nobody knows what an unfinished pass left of a state that is one whole")
    starts = [prompt(12, seed=i) for i in range(3)]
    expected = [fresh(opened, [*start, *TOKENS[:40]]) for start in starts]
    sequences = [opened.new_sequence() for _ in starts]
    for sequence, start in zip(sequences, starts, strict=True):
        feed(opened, sequence, start)
    chance = np.random.default_rng(5)
    for _ in range(8):
        timer = threading.Timer(float(chance.uniform(0, 0.01)), opened.interrupt)
        fed = 0
        timer.start()
        try:
            while True:
                if fed == 32:
                    timer.join()  # the next pass is then the one that is interrupted
                opened.forward([Step(sequence, [TOKENS[fed]], "last") for sequence in sequences])
                fed += 1
        except Interrupted:
            assert all(sequence.length - 12 in (fed, fed + 1) for sequence in sequences)
        timer.join()
        for i, start in enumerate(starts):
            sequences[i] = back_to(opened, sequences[i], [*start, *TOKENS[:fed]])
            np.testing.assert_allclose(
                feed(opened, sequences[i], TOKENS[fed:40]), expected[i], rtol=0, atol=case.tolerance
            )
            sequences[i] = back_to(opened, sequences[i], start)
    for sequence in sequences:
        sequence.close()


def back_to(backend: Backend, sequence: Sequence, tokens: list[int]) -> Sequence:
    """The sequence with nothing but `tokens`, which it begins with: fed again where a sliding window has moved on."""
    if sequence.truncate(len(tokens)):
        return sequence
    assert not backend.pass_shape.takes_turns  # state is not there to be saved at any time
    sequence.close()
    again = backend.new_sequence()
    feed(backend, again, tokens)
    return again


def test_a_closed_backend_says_so(case: Case, path: Path) -> None:
    backend = case.open(path)
    sequence = backend.new_sequence()
    feed(backend, sequence, TOKENS[:16])
    backend.close()
    backend.close()
    uses: list[Callable[[], Any]] = [
        backend.new_sequence,
        lambda: backend.forward([Step(sequence, [5], "last")]),
        lambda: backend.embed([[5]]),
        lambda: sequence.truncate(0),
        lambda: sequence.save(0, 8),
    ]
    for use in uses:
        with pytest.raises(Closed):
            use()
    sequence.close()


def test_closing_returns_the_memory(case: Case, path: Path) -> None:
    process = psutil.Process()

    def cycle() -> int:
        backend = case.open(path)
        feed(backend, backend.new_sequence(), TOKENS[:CTX])
        if backend.info.can_embed:
            backend.embed([TOKENS[:30]])
        backend.close()
        gc.collect()
        return int(process.memory_info().rss)

    for _ in range(4):
        before = cycle()
    for _ in range(3):  # a leak comes back; what the process does beside it, and the system with its pages, does not
        for _ in range(12):
            after = cycle()
        if (grown := after - before) < 8 << 20:
            break
        before = after
    assert grown < 8 << 20
