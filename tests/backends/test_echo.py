"""EchoBackend keeps the rules of the protocol, and shows who relies on more."""

from __future__ import annotations

import threading
import time
from typing import Any

import jinja2
import numpy as np
import pytest

from edgellm.backends.base import Step
from edgellm.backends.checked import CheckedBackend, CheckedSequence
from edgellm.backends.echo import BOS, EOS, IM_END, REPLY, EchoBackend, EchoSequence, open_echo
from edgellm.backends.onnx.pool import OnnxPool
from edgellm.backends.pool import Pool
from edgellm.errors import Interrupted, InvalidParameter
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


def test_what_lacks_a_part_is_not_made(echo: EchoBackend) -> None:
    class Backend(CheckedBackend[EchoSequence]):
        _forward = EchoBackend._forward

    class Sequence(CheckedSequence[Pool[Any]]):
        _load = EchoSequence._load

    with pytest.raises(TypeError, match=r"_embed.*_new_sequence.*interrupt"):
        Backend(echo.info, echo.tokenizer, echo.pool)
    with pytest.raises(TypeError, match=r"_copy_to.*_save.*_truncate"):
        Sequence(echo.pool)
    with pytest.raises(TypeError, match=r"_open.*bind.*close.*reserve.*resize.*views"):
        OnnxPool("model", echo.pool.limits, (), 64)
    assert not echo.pool.open


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


def test_rows_are_read_only_and_gone_after_the_next_pass(echo: EchoBackend) -> None:
    sequence = echo.new_sequence()
    [rows] = echo.forward([Step(sequence, [1], "last")])
    assert rows is not None
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    echo.forward([Step(sequence, [2], "none")])
    assert np.isnan(rows).all()


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


def test_open_echo_takes_the_load_params() -> None:
    backend = open_echo("some/where", LoadParams(ctx=128, micro_batch=16, backend="echo"))
    assert (backend.info.path, backend.n_ctx, backend.micro_batch) == ("some/where", 128, 16)
    assert open_echo("x", LoadParams()).n_ctx == 8192
    with pytest.raises(InvalidParameter):
        EchoBackend(n_vocab=260)
