"""EchoBackend keeps the rules of the protocol, and shows who relies on more."""

from __future__ import annotations

import threading
import time

import jinja2
import numpy as np
import pytest

from edgellm.backends.base import Step
from edgellm.backends.echo import BOS, EOS, IM_END, REPLY, EchoBackend, EchoSequence, open_echo
from edgellm.errors import BackendFailed, Busy, Closed, ContextOverflow, EdgeLLMError, Interrupted, InvalidParameter
from edgellm.params import LoadParams


@pytest.fixture
def echo() -> EchoBackend:
    return EchoBackend(n_ctx=64, micro_batch=32, max_sequences=3)


def feed(backend: EchoBackend, sequence: EchoSequence, tokens: list[int]) -> np.ndarray:
    """The logits after `tokens`: a copy of one row."""
    rows = None
    for start in range(0, len(tokens), backend.micro_batch):
        [rows] = backend.forward([Step(sequence, tokens[start : start + backend.micro_batch], "last")])
    assert rows is not None
    return rows[0].copy()


def fresh(backend: EchoBackend, tokens: list[int]) -> np.ndarray:
    sequence = backend.new_sequence()
    row = feed(backend, sequence, tokens)
    sequence.close()
    return row


def greedy(backend: EchoBackend, tokens: list[int], n: int) -> list[int]:
    sequence = backend.new_sequence()
    answer = [int(feed(backend, sequence, tokens).argmax())]
    while len(answer) < n and answer[-1] not in backend.info.stop_ids:
        answer.append(int(feed(backend, sequence, [answer[-1]]).argmax()))
    sequence.close()
    return answer


def test_it_echoes_a_prompt(echo: EchoBackend) -> None:
    prompt = echo.tokenizer.encode("abab", bos=True)
    assert prompt[0] == BOS
    assert greedy(echo, prompt, 20) == [REPLY, *b"abab", EOS]


def test_it_echoes_the_last_message_of_a_chat(echo: EchoBackend) -> None:
    template = jinja2.Environment().from_string(echo.info.chat_template or "")
    messages = [{"role": "user", "content": "one\ntwo"}]
    text = template.render(messages=messages, add_generation_prompt=True)
    prompt = echo.tokenizer.encode(text, special=True)
    assert b"".join(echo.tokenizer.piece(token, special=True) for token in prompt) == text.encode()
    assert greedy(echo, prompt, 20) == [*b"one\ntwo", IM_END]


def test_a_script_replaces_the_echo() -> None:
    backend = EchoBackend(script="é!")
    assert greedy(backend, [1, 2], 9) == [REPLY, *"é!".encode(), EOS]


def test_after_the_end_it_starts_again(echo: EchoBackend) -> None:
    assert int(fresh(echo, [*b"ab", REPLY, *b"ab", EOS]).argmax()) == ord("a")


def test_the_tokenizer_reads_control_tokens_only_when_told(echo: EchoBackend) -> None:
    tokenizer = echo.tokenizer
    assert tokenizer.encode("a<|eos|>é", special=True) == [97, EOS, *"é".encode()]
    assert tokenizer.encode("<|eos|>") == list(b"<|eos|>")
    assert [tokenizer.piece(EOS), tokenizer.piece(EOS, special=True)] == [b"", b"<|eos|>"]
    assert tokenizer.piece(200) == b"\xc8"
    assert len({tokenizer.piece(token, special=True) for token in range(echo.info.n_vocab)}) == echo.info.n_vocab
    with pytest.raises(InvalidParameter):
        tokenizer.piece(512)
    with pytest.raises(InvalidParameter):
        tokenizer.encode("\ud800")


def test_logits_depend_on_every_token_and_on_their_order(echo: EchoBackend) -> None:
    prompt = list(range(40))
    row = fresh(echo, prompt)
    assert np.array_equal(row, fresh(EchoBackend(), prompt))
    for position in range(40):
        assert np.abs(row - fresh(echo, [*prompt[:position], 99, *prompt[position + 1 :]])).max() > 0.1
    assert np.abs(row - fresh(echo, [1, 0, *prompt[2:]])).max() > 0.1


def test_splitting_a_prompt_changes_nothing(echo: EchoBackend) -> None:
    prompt = list(range(30))
    sequence = echo.new_sequence()
    [rows] = echo.forward([Step(sequence, prompt, "all")])
    assert rows is not None
    assert rows.shape == (30, 512)
    all_rows = rows.copy()
    other = echo.new_sequence()
    for position, token in enumerate(prompt):
        assert np.array_equal(feed(echo, other, [token]), all_rows[position])


def test_truncate_fork_save_and_load_are_exact(echo: EchoBackend) -> None:
    prompt = list(range(60))
    row = fresh(echo, prompt)
    sequence = echo.new_sequence()
    feed(echo, sequence, [*prompt[:50], 9, 9])
    assert sequence.truncate(50)
    twin = sequence.fork(20)
    assert np.array_equal(feed(echo, sequence, prompt[50:]), row)
    assert np.array_equal(feed(echo, twin, prompt[20:]), row)
    blocks = [sequence.save(at, at + 10) for at in range(0, 50, 10)]
    twin.close()
    restored = echo.new_sequence()
    restored.load(blocks[:2])
    restored.load(blocks[2:])
    assert restored.length == 50
    assert np.array_equal(feed(echo, restored, prompt[50:]), row)


def test_a_block_of_another_prefix_shows_in_the_logits(echo: EchoBackend) -> None:
    right, wrong = echo.new_sequence(), echo.new_sequence()
    prompt = list(range(30))
    feed(echo, right, prompt)
    feed(echo, wrong, [7, *prompt[1:]])
    for blocks in ([wrong.save(0, 10), right.save(10, 20)], [right.save(0, 10), wrong.save(10, 20)]):
        mixed = echo.new_sequence()
        mixed.load(blocks)
        row = feed(echo, mixed, prompt[20:])
        mixed.close()
        assert np.abs(row - fresh(echo, prompt)).max() > 0.1


def test_load_takes_all_blocks_or_none(echo: EchoBackend) -> None:
    sequence = echo.new_sequence()
    feed(echo, sequence, list(range(40)))
    first, third = sequence.save(0, 10), sequence.save(20, 30)
    target = echo.new_sequence()
    for blocks in ([first, third], [first, first], [first, b"x"], [first, first[:-1]], [b"?" + first[1:]]):
        with pytest.raises(BackendFailed):
            target.load(blocks)
        assert target.length == 0
    sequence.load([block(40, 24)])
    assert sequence.length == 64
    with pytest.raises(ContextOverflow):
        sequence.load([block(64, 1)])
    for start, stop in ((5, 5), (-1, 3), (0, 65)):
        with pytest.raises(BackendFailed):
            sequence.save(start, stop)


def block(start: int, count: int) -> bytes:
    """A block that another, larger model of the same kind saved."""
    sequence = EchoBackend().new_sequence()
    for token in range(start + count):
        sequence.append(token)
    return sequence.save(start, start + count)


def test_several_sequences_in_one_pass(echo: EchoBackend) -> None:
    a, b, c = (echo.new_sequence() for _ in range(3))
    rows = echo.forward([Step(a, [1, 2], "last"), Step(b, [3], "none"), Step(c, [4, 5, 6], "all")])
    assert rows[0] is not None
    assert rows[1] is None
    assert rows[2] is not None
    assert [len(rows[0]), len(rows[2])] == [1, 3]
    results = [rows[0][0].copy(), rows[2][1].copy(), rows[2][2].copy()]
    b.close()
    for row, tokens in zip(results, ([1, 2], [4, 5], [4, 5, 6]), strict=True):
        assert np.array_equal(row, fresh(echo, tokens))


def test_rows_are_read_only_and_gone_after_the_next_pass(echo: EchoBackend) -> None:
    sequence = echo.new_sequence()
    [rows] = echo.forward([Step(sequence, [1], "last")])
    assert rows is not None
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    echo.forward([Step(sequence, [2], "none")])
    assert np.isnan(rows).all()


def test_a_refused_pass_changes_nothing(echo: EchoBackend) -> None:
    sequence, other = echo.new_sequence(), echo.new_sequence()
    foreign = EchoBackend().new_sequence()
    feed(echo, sequence, list(range(60)))
    good = Step(other, [1], "last")
    cases: list[tuple[list[Step], type[EdgeLLMError]]] = [
        ([good, Step(sequence, [1] * 5, "last")], ContextOverflow),
        ([good, Step(sequence, [512], "last")], InvalidParameter),
        ([good, Step(sequence, [], "last")], BackendFailed),
        ([good, good], BackendFailed),
        ([good, Step(foreign, [1], "last")], BackendFailed),
        ([Step(other, [1] * 33, "last")], BackendFailed),
        ([], BackendFailed),
    ]
    for steps, error in cases:
        with pytest.raises(error):
            echo.forward(steps)
        assert (sequence.length, other.length) == (60, 0)
    with pytest.raises(ContextOverflow) as info:
        echo.forward([Step(sequence, [1] * 5, "none")])
    assert (info.value.needed, info.value.n_ctx) == (65, 64)


def test_places_for_sequences_run_out_and_come_back(echo: EchoBackend) -> None:
    sequences = [echo.new_sequence() for _ in range(3)]
    with pytest.raises(Busy):
        echo.new_sequence()
    with pytest.raises(Busy):
        sequences[0].fork()
    sequences[0].close()
    sequences[0].close()
    with pytest.raises(Closed):
        sequences[0].truncate(0)
    assert echo.new_sequence().length == 0


def test_an_interrupt_stops_the_next_pass_once(echo: EchoBackend) -> None:
    sequence = echo.new_sequence()
    echo.interrupt()
    with pytest.raises(Interrupted):
        feed(echo, sequence, [1])
    assert sequence.length == 0
    assert np.array_equal(feed(echo, sequence, [1]), fresh(echo, [1]))


def test_an_interrupt_wakes_a_slow_pass() -> None:
    backend = EchoBackend(delay=60)
    sequence = backend.new_sequence()
    timer = threading.Timer(0.05, backend.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        feed(backend, sequence, [1])
    timer.join()
    assert time.monotonic() - started < 30


def test_a_closed_model_refuses(echo: EchoBackend) -> None:
    sequence = echo.new_sequence()
    echo.close()
    echo.close()
    for call in (
        echo.new_sequence,
        lambda: echo.forward([Step(sequence, [1], "last")]),
        lambda: echo.embed([[1]]),
        lambda: sequence.save(0, 1),
    ):
        with pytest.raises(Closed):
            call()


def test_embeddings_are_unit_vectors_of_the_tokens(echo: EchoBackend) -> None:
    vectors = echo.embed([[1, 2], [1, 2], [2, 1]])
    assert vectors.shape == (3, echo.info.n_embd)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert np.array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.9
    assert echo.embed([]).shape == (0, echo.info.n_embd)


def test_open_echo_takes_the_load_params() -> None:
    backend = open_echo("some/where", LoadParams(ctx=128, micro_batch=16, backend="echo"))
    assert (backend.info.path, backend.n_ctx, backend.micro_batch) == ("some/where", 128, 16)
    assert open_echo("x", LoadParams()).n_ctx == 8192
    with pytest.raises(InvalidParameter):
        EchoBackend(n_vocab=260)
