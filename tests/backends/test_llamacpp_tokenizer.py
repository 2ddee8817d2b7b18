"""Texts on their way into llama.cpp: a stack for the longest of them, and errors where it has no answer.

Which expressions take stack for every character was measured for every value of `tokenizer.ggml.pre` that llama.cpp
knows; RECURSIVE has one of each.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny
from tokens_oracle import llama_tokenizer, random_texts

from edgellm import _native
from edgellm.backends.llamacpp import tokenizer as tokenizing
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
from edgellm.errors import BackendFailed, InvalidParameter, NotEnoughMemory

RECURSIVE = [
    "afmoe", "bailingmoe", "bloom", "deepseek-coder", "deepseek-llm", "deepseek-v3", "default", "exaone-moe", "falcon",
    "gpt-4o", "granite-embed-multi-97m", "jais-2", "minicpm5", "seed-coder", "spark2_5", "superbpe", "tekken",
    "tiny_aya", "ufakzeka", "viking", "youtu",
]  # fmt: skip
FLAT = ["chameleon", "gpt-2", "kimi-k2", "laguna", "llama-bpe", "qwen2", "qwen35", "smollm"]
RUNS = ["A", "aB", " ", "\n", "=", "/\n", "中", "e\u0301", "🙂", "a ", "\u3000 "]
CHILD = """
import sys, threading
from pathlib import Path
from edgellm.backends.llamacpp.library import load_library, model_params
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
lib, failed = load_library(), []
def read():
    params = model_params()
    params.vocab_only = True
    for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        tokenizer = LlamaTokenizer(lib, lib.llama_model_get_vocab(model))
        pieces = {}
        for run in sys.argv[2:]:
            print(path.name, ascii(run), flush=True)
            text = "begin " + run * (10000 // len(run)) + " end"
            ids = tokenizer.encode(text)
            pieces.update((token, tokenizer.piece(token)) for token in set(ids) - pieces.keys())
            if b"".join(pieces[token] for token in ids) != text.encode():
                failed.append((path.name, run))
threading.stack_size(128 << 10)
thread = threading.Thread(target=read)
thread.start()
thread.join()
raise SystemExit(str(failed) if failed else 0)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="the names of libstdc++ are those of Linux")


def vocabulary(folder: Path, pre: str) -> Path:
    model = tiny("llama")
    model.metadata["tokenizer.ggml.pre"] = pre
    model.tensors.clear()
    return model.write(folder / f"{pre}.gguf")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Iterator[LlamaTokenizer]:
    with llama_tokenizer(vocabulary(tmp_path, "deepseek-llm")) as opened:
        yield opened


def test_long_runs_from_a_thread_with_a_small_stack(tmp_path: Path) -> None:
    for pre in [*RECURSIVE, *FLAT]:
        vocabulary(tmp_path, pre)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), *RUNS], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"at {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    assert len(done.stdout.splitlines()) == len(RUNS) * len([*RECURSIVE, *FLAT])


def test_the_ids_are_those_of_the_plain_call(tokenizer: LlamaTokenizer) -> None:
    lib, vocab = tokenizer._lib, tokenizer._vocab
    for text in random_texts(300, ["<|bos|>", "<|end|>"]):
        for special, bos in ((False, True), (True, False)):
            data = text.encode()
            ids = (ctypes.c_int32 * (len(data) + 8))()
            count = lib.llama_tokenize(vocab, data, len(data), ids, len(ids), bos, special)
            assert tokenizer.encode(text, special=special, bos=bos) == ids[:count]


WORDS = {  # and their kinds, as GGUF numbers them: 3 control, 4 what a user defined
    "<|im_start|>": 3, "<|im_end|>": 3, "<|end_of|>": 4, "<|endoftext|>": 3, "[INST]": 3, "[/INST]": 4, "{{": 3,
    "\n\n": 4, "  ": 4, " y ": 3, "zbz": 4, "▁▁": 4, "<mask>": 3, "\t": 4,
}  # fmt: skip
OTHERS = ["", "]xxxxxxxx", "x[", "[INST]ab", "[IN", "INS", "|>a<|"]  # that share characters with one of them


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ["spm", "spm-space", "phi-3", "bpe", "jina-v2-de"])  # the blanks around some go
def test_a_text_in_parts_has_the_ids_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, other: str
) -> None:
    model = tiny("llama" if kind in ("bpe", "jina-v2-de") else "gemma2")
    meta, words = model.metadata, {**WORDS, **({other: 4} if other else {})}
    added = {"tokens": [*words], "token_type": [*words.values()], "scores": [0] * len(words)}
    for name in (f"tokenizer.ggml.{each}" for each in added):
        if name in meta:
            made = [*meta[name], *added[name.removeprefix("tokenizer.ggml.")]]
            meta[name] = made if name.endswith("tokens") else np.array(made, meta[name].dtype)
    meta |= {"general.name": kind, "tokenizer.ggml.add_space_prefix": kind == "spm-space"}
    meta |= {"tokenizer.ggml.pre": kind} if kind == "jina-v2-de" else {}
    model.tensors.clear()
    parts = 0
    with llama_tokenizer(model.write(tmp_path / "v.gguf")) as tokenizer:
        pairs = ["q" + first + blank + last for first in words for last in words for blank in ("", " ", "\n\n", "\t")]
        pairs += ["q" + first + last[1:] for first in words for last in words if first[-1] == last[0]]
        for text in [*random_texts(200, [*words], seed=1), *pairs]:
            for special in (False, True):
                monkeypatch.setattr(tokenizing, "PART", 1 << 20)
                whole = tokenizer.encode(3 * text, special=special)
                monkeypatch.setattr(tokenizing, "PART", 1)
                assert tokenizer.encode(3 * text, special=special) == whole, text
                parts += len(list(tokenizer._parts(3 * text.encode(), special)))
    assert parts > 2 * (200 + len(pairs))


def test_llama_cpp_gets_few_control_tokens_at_once(tokenizer: LlamaTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, tokenize = list[int](), _native.tokenize
    with monkeypatch.context() as patch:
        patch.setattr("edgellm._native.tokenize", lambda *given: [sizes.append(len(given[2])), *tokenize(*given)][1:])
        found = tokenizer.encode("<|end|>\n" * 20_000, special=True)
    assert found == tokenizer.encode("<|end|>\n", special=True) * 20_000
    assert (max(sizes) < 2 * tokenizing.PART, sum(sizes)) == (True, 160_000)


def test_what_no_stack_can_hold_is_refused_with_its_place(
    tokenizer: LlamaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "MAX_STACK", tokenizing.STACK + 1000 * tokenizing.STACK_PER_CHARACTER)
    assert tokenizer.encode("x. " * 5000 + "x" * 1000)
    with pytest.raises(InvalidParameter, match="1002 characters from character 14999 on"):
        tokenizer.encode("ü, x. " * 2500 + "ä" * 1001)


def test_a_stack_that_the_system_does_not_have(tokenizer: LlamaTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "STACK", 1 << 61)
    monkeypatch.setattr(tokenizing, "MAX_STACK", 1 << 62)
    with pytest.raises(NotEnoughMemory, match="a text of 3 bytes"):
        tokenizer.encode("abc")


@pytest.mark.parametrize(
    ("text", "stretch"),
    [
        ("", (0, 0)),
        ("word", (0, 4)),
        ("one two, three", (0, 8)),  # letters and single blanks may go on, a comma and a blank do not
        ("1 2 3 45", (6, 2)),
        ("a  b", (1, 2)),
        ("ab  \t  c", (2, 5)),
        ("x = 1\n\n\nyy", (4, 4)),  # line ends belong to what is before them
        ("--\n/\n/ -", (0, 6)),
        ("да, 中文 好", (3, 5)),
        (". \u00a0\u3000 . .", (1, 4)),  # what is outside of ASCII may be anything
    ],
)
def test_the_longest_stretch_of_a_text(text: str, stretch: tuple[int, int]) -> None:
    assert _native.longest_stretch(text.encode()) == stretch


TYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32,
    ctypes.c_bool, ctypes.c_bool,
)  # fmt: skip


def call(function: Callable[..., int], stack: int = 1 << 16) -> list[int]:
    """`_native.tokenize` of b"abc" with a function of Python."""
    kept = TYPE(function)
    return _native.tokenize(ctypes.cast(kept, ctypes.c_void_p).value or 0, 7, b"abc", True, stack)


@pytest.mark.parametrize("stack", [1 << 16, 1 << 28])
def test_a_call_that_needs_more_stack_gets_its_own_thread(stack: int) -> None:
    calls: list[tuple[Any, ...]] = []

    def function(*given: Any) -> int:
        vocabulary, text, size, tokens, room, add, parse = given
        calls.append((vocabulary, text[:size], room, add, parse, threading.get_ident()))
        if room < 50:
            return -50
        tokens[0], tokens[49] = 4, 5
        return 50

    ids = call(function, stack)
    assert (len(ids), ids[0], ids[49]) == (50, 4, 5)
    assert [each[:5] for each in calls] == [(7, b"abc", 11, False, True), (7, b"abc", 50, False, True)]
    assert {each[5] == threading.get_ident() for each in calls} == {stack < 1 << 20}


def test_a_text_with_more_tokens_than_numbers() -> None:
    with pytest.raises(ValueError, match="text"):
        call(lambda *given: -(2**31))


@linux
@pytest.mark.parametrize(
    ("thrower", "error"),
    [
        ("_ZSt17__throw_bad_allocv", NotEnoughMemory),
        ("_ZSt21__throw_runtime_errorPKc", BackendFailed),
        ("_ZSt20__throw_out_of_rangePKc", BackendFailed),
        ("_ZSt19__throw_regex_errorNSt15regex_constants10error_typeE", BackendFailed),
    ],
)
def test_what_llama_cpp_throws_is_an_error_of_ours(
    tokenizer: LlamaTokenizer, thrower: str, error: type[Exception]
) -> None:
    words = ctypes.create_string_buffer(b"the reason")
    tokenizer._tokenize = ctypes.cast(getattr(ctypes.CDLL("libstdc++.so.6"), thrower), ctypes.c_void_p).value or 0
    tokenizer._address = ctypes.addressof(words)
    with pytest.raises(error, match="a text of 3 bytes" + (".*the reason" if "PKc" in thrower else "")):
        tokenizer.encode("abc")
