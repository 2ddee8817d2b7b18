"""Penalties and DRY against llama.cpp's own, and the breakers that DRY stops at."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from sampling_oracle import OFF, ByteTokenizer, adjusted, oracle, rows, sampler
from tiny_models import spm_vocabulary
from tokens_oracle import llama_tokenizer

from edgellm.backends.echo import IM_END, EchoTokenizer
from edgellm.engine.penalties import breaker_sequences, match_lengths
from edgellm.engine.sampling import Sampler
from edgellm.errors import InvalidParameter
from edgellm.formats.gguf_writer import write_gguf
from edgellm.params import GenerateParams


@pytest.mark.parametrize("last_n", [-1, 0, 5, 64])
@pytest.mark.parametrize(("repeat", "frequency", "presence"), [(1.3, 0, 0), (0.8, 0.5, 0), (1.0, 0.3, -0.4), (2, 1, 1)])
def test_penalties_give_llama_cpps_logits(last_n: int, repeat: float, frequency: float, presence: float) -> None:
    history = np.random.default_rng(7).integers(0, 60, 90).tolist()
    it = sampler(
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalty_last_n=last_n,
        prompt=history[:50],
    )
    for token in history[50:]:
        it.accept(token)
    for row in rows(256, 5):
        size = len(history) if last_n < 0 else last_n
        step = lib.llama_sampler_init_penalties(256, size, repeat, frequency, presence)
        expected = oracle(row, step, accept=history)
        np.testing.assert_allclose(adjusted(it, row), expected["logit"], rtol=1e-6, atol=1e-6)


class LlamaVocabulary:
    """The vocabulary of a GGUF file through llama.cpp, without its weights."""

    def __init__(self, path: Path) -> None:
        params = lib.llama_model_default_params()
        params.vocab_only, params.use_extra_bufts = True, False
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 8))()
        return tokens[: lib.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), bos, special)]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, special)
        return buffer.raw[:size]


@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> Iterator[LlamaVocabulary]:
    opened = LlamaVocabulary(smollm2)
    yield opened
    lib.llama_model_free(opened.model)


PHRASES = ["the cat sat on the mat", " and", ":", "\n", '"', " the cat", " sat on", "THE END", "HE EN", " a", "the the"]
BREAKERS: list[tuple[str, ...]] = [(), ("\n", ":", '"', "*"), ("THE END", "cat sat", "on the m"), ("é", " the", "at")]


@pytest.mark.parametrize("breakers", BREAKERS)
def test_dry_gives_llama_cpps_logits(vocabulary: LlamaVocabulary, breakers: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(breakers))
    row = np.zeros(vocabulary.n_vocab, np.float32)
    penalized = 0
    for allowed, last_n, base in [(2, -1, 1.75), (0, 40, 1.2), (1, -1, 3.0), (4, 25, 1.0), (0, -1, 1e25), (2, 7, 50.0)]:
        params = GenerateParams(
            **{**OFF, "seed": 1},
            dry_multiplier=0.8,
            dry_base=base,
            dry_allowed_length=allowed,
            dry_last_n=last_n,
            dry_breakers=breakers,
        )
        for length in (1, 3, 10, 30):
            text = "".join(PHRASES[i] for i in rng.integers(0, len(PHRASES), length))
            history = vocabulary.encode(text)
            split = len(history) // 2
            it = Sampler(params, vocabulary.n_vocab, vocabulary, history[:split])
            for token in history[split:]:
                it.accept(token)
            strings = (ctypes.c_char_p * len(breakers))(*(breaker.encode() for breaker in breakers))
            size = len(history) if last_n < 0 else last_n
            step = lib.llama_sampler_init_dry(
                vocabulary.vocab,
                0.8,
                base,
                allowed,
                size,
                ctypes.cast(strings, ctypes.POINTER(ctypes.c_char_p)),
                len(strings),
            )
            expected = np.zeros_like(row)
            result = oracle(row, step, accept=history)
            expected[result["id"]] = result["logit"]
            np.testing.assert_allclose(adjusted(it, row), expected, rtol=1e-5)
            penalized += int((expected < 0).sum())
    assert penalized > 15


def test_dry_has_a_ceiling_in_a_long_loop() -> None:
    it = sampler(dry_multiplier=1.0, dry_base=2.0, dry_breakers=(), prompt=[5, 6] * 300)
    for token in [5, 6] * 300:
        it.accept(token)
    row = adjusted(it, np.zeros(256, np.float32))
    assert -math.inf < row[5] < -1e38
    assert np.count_nonzero(row) == 1


def test_match_lengths_agree_with_the_definition() -> None:
    rng = np.random.default_rng(3)
    for size in (1, 2, 3, 10, 40):
        for _ in range(20):
            window = rng.integers(0, 3, size).astype(np.int32)
            for limit in (0, 2, size):
                expected = []
                for end in range(size - 1):
                    length = 0
                    while length < min(limit, end + 1) and window[end - length] == window[size - 1 - length]:
                        length += 1
                    expected.append(length)
                assert match_lengths(window, limit).tolist() == expected


def test_breakers_are_found_in_and_across_tokens() -> None:
    class Words(ByteTokenizer):
        calls = 0

        def piece(self, token: int, *, special: bool = False) -> bytes:
            self.calls += 1
            return [b"ab", b"xab", b"b", b"abc!", "é".encode(), b"\xc3", b"a", b"c"][token]

        def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
            return {"c": [7], "bc": [2, 7]}[text]

    words = Words()
    found = breaker_sequences(words, 8, ("abc", "é"))
    assert found == {0: ((7,),), 1: ((7,),), 3: ((),), 4: ((),), 6: ((2, 7),)}
    words.calls = 0
    assert breaker_sequences(words, 8, ("abc", "é")) is found
    assert words.calls == 0
    assert breaker_sequences(Words(), 8, ("abc",)) != found


def test_a_breaker_may_end_in_a_control_token() -> None:
    found = breaker_sequences(EchoTokenizer(512), 512, ("\n<|im_end|>",))
    assert found[ord("\n")] == (tuple(b"<|im_end|>"), (IM_END,))
    assert IM_END not in found  # the end alone is none


def test_what_completes_a_breaker_does_not_begin_a_text(tmp_path: Path) -> None:
    """Where a vocabulary puts a space before a text, a model writes none in the middle of one."""
    metadata = spm_vocabulary() | {"tokenizer.ggml.add_space_prefix": True}
    write_gguf(tmp_path / "vocabulary.gguf", {"general.architecture": "llama", **metadata}, [])
    with llama_tokenizer(tmp_path / "vocabulary.gguf") as tokenizer:
        tokens = metadata["tokenizer.ggml.tokens"]
        found = breaker_sequences(tokenizer, len(tokens), ("!hello",))
        assert found[tokens.index("!")] == ((tokens.index("hello"),),)


def test_a_breaker_of_any_length_would_take_any_time() -> None:
    GenerateParams(dry_breakers=("x" * 40,))
    with pytest.raises(InvalidParameter, match="at most 40 characters"):
        GenerateParams(dry_breakers=("\n", "x" * 41))
