"""Tokens that mean something, beside llama.cpp: what it says of a loaded vocabulary, and what a header tells before."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bpe_vocabulary, spm_vocabulary, tiny

import edgellm
from edgellm.backends.base import text_of
from edgellm.backends.llamacpp.library import load_library, model_params
from edgellm.backends.llamacpp.specials import Specials, specials, specials_of_header
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
from edgellm.errors import Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.tokenizers.ends import ENDS, GAPS

QUIET = edgellm.CacheParams(memory=0, disk=0)
NORMAL, CONTROL = 1, 3


@contextmanager
def vocabulary(path: Path) -> Iterator[Any]:
    """A llama_vocab pointer of a file that may hold a vocabulary alone."""
    lib, params = load_library(), model_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp refuses {path}"
    yield lib.llama_model_get_vocab(model)
    lib.llama_model_free(model)


def check(path: Path) -> tuple[Specials, Specials]:
    """What llama.cpp says, one question after another, is what we say; with what the header told."""
    lib = load_library()
    with GGUFFile.open(path) as file:
        header = specials_of_header(file)
    with vocabulary(path) as vocab:
        found = specials(lib, vocab)
        count = lib.llama_vocab_n_tokens(vocab)
        assert found.stop_ids == {token for token in range(count) if lib.llama_vocab_is_eog(vocab, token)}
        for token, ask in ((found.bos_id, lib.llama_vocab_bos), (found.eos_id, lib.llama_vocab_eos)):
            assert (-1 if token is None else token) == ask(vocab)
        around = (ctypes.c_int32 * 8)()
        size = lib.llama_tokenize(vocab, b"", 0, around, len(around), True, True)
        assert tuple(around[:size]) == (*found.begin, *found.end)
    return found, header


def known(found: Specials) -> Specials:
    """As far as a header tells."""
    return replace(found, begin=(), end=(), middle=(), typed=False)


@pytest.mark.parametrize(
    ("name", "tokens", "first"),
    [
        ("bert-bge", [101, 7, 102, 8, 9, 102], 3),  # [CLS] a [SEP] b c [SEP], whose second text has another type
        ("nomic-bert-moe", [0, 7, 2, 8, 9, 2], 6),  # <s> a </s> b c </s>, all of one type
    ],
)
def test_two_texts_are_parted(name: str, tokens: list[int], first: int, llama_vocabularies: Path) -> None:
    with vocabulary(llama_vocabularies / f"ggml-vocab-{name}.gguf") as vocab:
        assert LlamaTokenizer(load_library(), vocab).joined([7], [8, 9]) == (tokens, first)


def test_texts_that_nothing_parts_are_not_joined(llama_vocabularies: Path) -> None:
    nothing = pytest.raises(Unsupported, match="nothing between two texts")
    with vocabulary(llama_vocabularies / "ggml-vocab-qwen2.gguf") as vocab, nothing:
        LlamaTokenizer(load_library(), vocab).joined([7], [8, 9])


@pytest.mark.parametrize("separator", ["[SEP]", "</s>"])
def test_a_separator_that_also_ends_stands_once_or_twice(separator: str, tmp_path: Path) -> None:
    """RoBERTa has two of its own between texts, and BERT one, whatever a file says."""
    metadata = {**bpe_vocabulary(), **{f"tokenizer.ggml.add_{name}_token": True for name in ("bos", "eos", "sep")}}
    metadata["tokenizer.ggml.tokens"] = [separator, *metadata["tokenizer.ggml.tokens"][1:]]
    metadata["tokenizer.ggml.seperator_token_id"] = 0
    with vocabulary(write(metadata, tmp_path)) as vocab:
        middle = [0] if separator == "[SEP]" else [0, 0]
        assert LlamaTokenizer(load_library(), vocab).joined([7], [8]) == ([1, 7, *middle, 8, 0], 4 + len(middle))


@pytest.mark.parametrize("name", ["bert-bge", "phi-3", "qwen2", "refact", "nomic-bert-moe"])
def test_llama_cpp_s_vocabularies(name: str, llama_vocabularies: Path) -> None:
    found, header = check(llama_vocabularies / f"ggml-vocab-{name}.gguf")
    assert known(header) == known(found)


def write(metadata: dict[str, Any], folder: Path) -> Path:
    write_gguf(folder / "m.gguf", {"general.architecture": "llama", **metadata}, [])
    return folder / "m.gguf"


WORDS = [text for text in (*ENDS, *(text for texts in GAPS.values() for text in texts[:1])) if "tool_resp" not in text]


@settings(max_examples=60)
@given(data=st.data())
def test_headers_of_all_kinds(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any texts, of any type, any ids, there or not, inside the vocabulary or not."""
    metadata = data.draw(st.sampled_from([bpe_vocabulary, spm_vocabulary]))()
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens += data.draw(st.lists(st.sampled_from([*WORDS, "<|tool_response>", "<other>"]), unique=True, max_size=8))
    tokens = list(dict.fromkeys(tokens))
    types = np.resize(metadata["tokenizer.ggml.token_type"], len(tokens))
    types[3:] = np.where(types[3:] == 6, 6, NORMAL)
    for at in (0, 1, 2, *range(len(metadata["tokenizer.ggml.tokens"]), len(tokens))):
        types[at] = data.draw(st.sampled_from([NORMAL, CONTROL, 4]))
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] = np.zeros(len(tokens), np.float32)
    for role in ("bos", "eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"):
        metadata.pop(f"tokenizer.ggml.{role}_token_id", None)
        token = data.draw(st.sampled_from([None, None, 0, 5, len(tokens) - 1, len(tokens), 10**6, 2**32 - 1]))
        if token is not None:
            metadata[f"tokenizer.ggml.{role}_token_id"] = token
    for key in ("add_bos_token", "add_eos_token"):
        metadata.pop(f"tokenizer.ggml.{key}", None)
        if (value := data.draw(st.sampled_from([None, True, False]))) is not None:
            metadata[f"tokenizer.ggml.{key}"] = value
    found, header = check(write(metadata, tmp_path_factory.mktemp("header")))
    assert known(header) == known(found)


@pytest.mark.parametrize("pre", ["glm4", "chatglm-bpe"])
def test_a_beginning_that_is_asked_for_and_is_not_there(pre: str, tmp_path: Path) -> None:
    """llama.cpp ends the process when it is asked to put nothing in front of a text."""
    metadata = {**bpe_vocabulary(), "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": True}
    del metadata["tokenizer.ggml.bos_token_id"]
    path = write(metadata, tmp_path)
    with GGUFFile.open(path) as file:
        assert specials_of_header(file).bos_id is None
    with vocabulary(path) as vocab:
        assert LlamaTokenizer(load_library(), vocab).encode("hello", bos=True) == [262]


def first_normal(metadata: dict[str, Any]) -> None:
    metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"].copy()
    metadata["tokenizer.ggml.token_type"][0] = NORMAL


def last_is(text: str) -> dict[str, Any]:
    return {"tokenizer.ggml.tokens": [*bpe_vocabulary()["tokenizer.ggml.tokens"][:-1], text]}


CHANGES: dict[str, tuple[dict[str, Any], set[int]]] = {
    "a turn's end of type NORMAL": (last_is("<|im_end|>"), {0, 270}),
    "a normal </s>": (last_is("</s>"), {0, 270}),
    "eot of type NORMAL": ({"tokenizer.ggml.eot_token_id": 5}, {0, 5}),
    "eom of type NORMAL": ({"tokenizer.ggml.eom_token_id": 6}, {0, 6}),
    "eos outside": ({"tokenizer.ggml.eos_token_id": 10**6}, {0, 11}),  # the default of its kind
    "eos of -1": ({"tokenizer.ggml.eos_token_id": 2**32 - 1}, {0, 11}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_answer_ends_where_llama_cpp_says_so(name: str, tmp_path: Path) -> None:
    change, ends = CHANGES[name]
    model = tiny("llama")
    first_normal(model.metadata)
    model.metadata |= change
    path = model.write(tmp_path / "m.gguf")
    assert edgellm.inspect(path).stop_ids == ends
    with edgellm.load(path, ctx=64, cache=QUIET) as opened:
        assert opened.info.stop_ids == ends
        assert (opened.info.bos_id, opened.info.eos_id) == (
            edgellm.inspect(path).bos_id,
            edgellm.inspect(path).eos_id,
        )
        for token in ends:
            options = {"max_tokens": 3, "temperature": 0.0, "logit_bias": {token: 1e6}}
            done = opened.generate("hello", **options)
            assert (done.tokens, done.text, done.finish_reason) == ([], "", "stop")
            done = opened.generate("hello", ignore_eos=True, **options)
            assert (done.tokens, done.text, done.finish_reason) == ([token] * 3, "", "length")


TEMPLATE = "{% for m in messages %}<|bos|>{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (TEMPLATE, "<|bos|>hello"),
        (TEMPLATE.replace("<|bos|>", "{{ bos_token }}"), "<|bos|>hello"),
        ("{{ '\\n ' }}" + TEMPLATE, "\n <|bos|>hello"),
        (TEMPLATE.replace("<|bos|>", ""), "<|bos|>hello"),
    ],
)
@pytest.mark.parametrize("kind", [CONTROL, NORMAL])
def test_a_prompt_begins_once_and_does_not_end(template: str, shown: str, kind: int, tmp_path: Path) -> None:
    """Whatever the template writes, and though the model asks for an end behind a text."""
    if kind == NORMAL and shown[0] == "\n":
        pytest.skip("llama.cpp does not read such a text as a token")
    model = tiny("llama")
    model.metadata["tokenizer.ggml.token_type"] = np.array([CONTROL, kind, CONTROL] + [NORMAL] * 268, np.int32)
    model.metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    model.metadata |= {"tokenizer.chat_template": template}
    with edgellm.load(model.write(tmp_path / "m.gguf"), ctx=64, cache=QUIET) as opened:
        chat = opened.chat()
        done = chat.send("hello", max_tokens=1, temperature=0)
        answer = chat._answers()[0]
        tokens = answer.tokens[: answer.n_prompt]
        assert done.usage.prompt_tokens == len(tokens)
        assert opened.decode(tokens, special=True) == shown
        assert tokens.count(1) == 1
        assert 0 not in tokens
        assert opened.generate(shown, max_tokens=1).usage.prompt_tokens == len(tokens)
        assert opened.encode("hello") == [1, 262]
        assert opened.encode("hello", bos=False) == [262]
        assert opened.encode("<|bos|>", special=False)[0] == 1  # what is text is no beginning


def test_a_text_that_is_embedded_has_its_end(tmp_path: Path) -> None:
    """As llama.cpp puts it there (Qwen3-Embedding pools it)."""
    model = tiny("qwen3")
    model.metadata |= {"qwen3.pooling_type": 3, "tokenizer.ggml.add_eos_token": True}
    with edgellm.load(model.write(tmp_path / "m.gguf"), ctx=64, cache=QUIET) as opened:
        tokens = opened.encode("hello world")
        assert 0 not in tokens
        assert np.array_equal(opened.embed("hello world"), opened.embed([[*tokens, 0]]))
        assert not np.array_equal(opened.embed("hello world"), opened.embed([tokens]))


def test_text_and_tokens_there_and_back(tmp_path: Path) -> None:
    """The space that SentencePiece puts in front of a text, and of each part behind a control token, is no text."""
    path = write({**spm_vocabulary(), "tokenizer.ggml.add_space_prefix": True}, tmp_path)
    with vocabulary(path) as vocab:
        tokenizer = LlamaTokenizer(load_library(), vocab)
        for text in ("hello world", " hello", "  hello", "", " ", "a<s>b</s> c<s>", "<s>hello", "漢字 ☕"):
            for special in (False, True):
                tokens = tokenizer.encode(text, special=special)
                assert text_of(tokenizer, tokens, special=True) == text
        tokens = tokenizer.encode("hello", bos=True)
        assert text_of(tokenizer, tokens) == "hello"
        assert text_of(tokenizer, tokens[1:], before=tokenizer.encode("x")[-1]) == " hello"  # an answer goes on
        assert text_of(tokenizer, tokens[1:], before=1) == "hello"


def test_what_an_answer_begins_with(tmp_path: Path) -> None:
    model = tiny("gemma")
    model.metadata |= {"tokenizer.ggml.add_space_prefix": True}
    with edgellm.load(model.write(tmp_path / "m.gguf"), ctx=64, cache=QUIET) as opened:
        world = model.metadata["tokenizer.ggml.tokens"].index("▁world")
        options = {"max_tokens": 2, "temperature": 0.0, "logit_bias": {world: 1e6}}
        assert opened.decode([world, world]) == "world world"
        for prompt, expected in (("", "world world"), ("hello", " world world"), ("hello</s>", "world world")):
            assert opened.generate(prompt, **options).text == expected
            assert "".join(chunk.text for chunk in opened.stream(prompt, **options)) == expected


def test_an_answer_behind_a_control_token_returns_next_turn(tmp_path: Path) -> None:
    """Phi-3's and Zephyr's prompts end so: the space in front of the answer's first word is no text."""
    model = tiny("gemma")
    template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}<s>"
    model.metadata |= {"tokenizer.ggml.add_space_prefix": True, "tokenizer.chat_template": template}
    world = model.metadata["tokenizer.ggml.tokens"].index("▁world")
    with edgellm.load(model.write(tmp_path / "m.gguf"), ctx=64, cache=QUIET) as opened:
        chat = opened.chat()
        options = {"max_tokens": 2, "temperature": 0.0, "logit_bias": {world: 1e6}}
        assert chat.send("hello", **options).text == "world world"
        done = chat.send("hello", **options)
        first, last = (answer.tokens for answer in chat._answers())
        assert last[: len(first)] == first
        prompt = last[: done.usage.prompt_tokens]
        assert opened.decode(prompt, special=True) == "<s>hello</s><s>world world</s><s>hello</s><s>"
        assert prompt[len(first) :] == opened.encode("</s><s>hello</s><s>", bos=False)
