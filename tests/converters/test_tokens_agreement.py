"""Tiny Hugging Face tokenizers, trained here: our Vocabulary against `tokenizers`, `transformers` and llama.cpp."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import (
    CORPUS,
    SPECIAL,
    byte_level,
    save,
    sequence,
    size,
    special_token,
    steps,
    tokenizers,
    with_scores,
    wordpiece,
)
from tokens_oracle import llama_tokenizer, random_texts, without_llama_normalizer_bugs, write_files, write_vocabulary

from edgellm.converters.tokens import TokenType, Vocabulary, read_gguf, read_huggingface, to_files
from edgellm.errors import Unsupported
from edgellm.formats.gguf import GGUFFile


def agree(folder: Path, vocabulary: Vocabulary, special: list[str], *, differences: int = 0) -> None:
    """The folder's tokenizer, our GGUF in llama.cpp, and our files from that GGUF again give the same ids."""
    path = write_vocabulary(vocabulary, folder / "vocabulary.gguf")
    again = read_gguf(GGUFFile.open(path))
    files = write_files(to_files(again), folder / "again")
    hf = [tokenizers.Tokenizer.from_file(str(where / "tokenizer.json")) for where in (folder, files)]
    wrong = []
    with llama_tokenizer(path) as llama:
        for index, text in enumerate(random_texts(400, special)):
            parse = bool(index % 2)
            ids = llama.whole(text, special=parse)
            for tokenizer in hf:
                tokenizer.encode_special_tokens = not parse
                if text and tokenizer.encode(text).ids != ids:
                    wrong.append((text, tokenizer.encode(text).ids, ids))
    assert len(wrong) <= differences, wrong[:3]


ENDINGS, CL100K_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"
DIGIT = {"type": "Digits", "individual_digits": True}
QWEN2 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SPLITS: dict[str, list[Any]] = {
    "gpt-2": [],
    "smollm": [DIGIT],
    "qwen2": [QWEN2],
    "dbrx": [CL100K_ENDINGS + CL100K],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT],
    "deepseek-v3": [
        r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
        r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ],
}  # fmt: skip


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_tokenizers_agree(tmp_path: Path, pre: str) -> None:
    pre_tokenizer = steps(SPLITS[pre], use_regex=pre in ("gpt-2", "smollm"))
    document = byte_level(tmp_path, pre_tokenizer=pre_tokenizer)
    vocabulary = read_huggingface(tmp_path, size(document))
    assert (vocabulary.model, vocabulary.pre, vocabulary.notes) == ("gpt2", pre, ())
    agree(tmp_path, vocabulary, SPECIAL)


def test_sentencepiece_without_its_model_file_agrees(tmp_path: Path) -> None:
    document = with_scores(tmp_path)
    vocabulary = read_huggingface(tmp_path, size(document))
    assert (vocabulary.model, vocabulary.add_space_prefix) == ("llama", True)
    assert vocabulary.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert vocabulary.special["unk"] == 0
    agree(tmp_path, vocabulary, ["<s>", "</s>"])


def test_byte_bpe_that_is_no_sentencepiece_keeps_its_merges(tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document = with_scores(tmp_path, normalizer=replace)
    vocab = document["model"]["vocab"]
    vocab |= {text: len(vocab) + index for index, text in enumerate(["qx", "xz", "qxz"])}
    document["model"]["merges"] += [["q", "x"], ["x", "z"], ["q", "xz"]]
    post = {
        "type": "TemplateProcessing",
        "single": [special_token("<s>"), sequence("A")],
        "pair": [sequence("A"), sequence("B")],
    }
    post["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    save(tmp_path, {**document, "post_processor": post}, bos_token="<s>")
    vocabulary = read_huggingface(tmp_path, size(document))
    assert (vocabulary.model, vocabulary.add_bos) == ("gemma4", True)
    agree(tmp_path, vocabulary, ["<s>", "qxz", "xzqxz"])
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    save(tmp_path, {**document, "normalizer": prepend})
    with pytest.raises(Unsupported, match=r"no SentencePiece vocabulary, as .*there is no such merge"):
        read_huggingface(tmp_path, size(document))


def test_a_wordpiece_tokenizer_agrees(tmp_path: Path) -> None:
    document = wordpiece(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "type_vocab_size": 3}')
    vocabulary = read_huggingface(tmp_path, size(document))
    assert vocabulary.model == "bert"
    assert vocabulary.token_type_count == 3
    assert vocabulary.special["bos"] == vocabulary.special["cls"] == vocabulary.tokens.index("[CLS]")
    path = write_vocabulary(vocabulary, tmp_path / "vocabulary.gguf")
    hf = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    files = write_files(to_files(read_gguf(GGUFFile.open(path))), tmp_path / "again")
    again = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
    with llama_tokenizer(path) as llama:
        for text in [
            "The Quick, brown fox's dogs!",
            "Äpfel déjà vu",
            "日本語 中文",
            "xyzzy [MASK] \t 123",
            "пример 🚀",
        ]:
            assert hf.encode(text).ids == again.encode(text).ids == llama.whole(text, special=True), text


@pytest.mark.parametrize("build", [byte_level, with_scores])
def test_gguf_and_transformers_hold_the_same_vocabulary(tmp_path: Path, build: Any) -> None:
    document = build(tmp_path)
    save(tmp_path, document, bos_token=document["added_tokens"][1]["content"], add_bos_token=True)
    vocabulary = read_huggingface(tmp_path, size(document) + 1)
    assert read_gguf(GGUFFile.open(write_vocabulary(vocabulary, tmp_path / "v.gguf"))) == with_defaults(vocabulary)
    again = write_files(to_files(vocabulary), tmp_path / "again")
    assert read_huggingface(again, size(document) + 1) == vocabulary


def with_defaults(vocabulary: Vocabulary) -> Vocabulary:
    from dataclasses import replace

    assumed = {"bos": 1, "eos": 2, "unk": 0} if vocabulary.model == "llama" else {}
    return replace(vocabulary, special={**assumed, **vocabulary.special})


def qwen2(folder: Path) -> dict[str, Any]:
    return byte_level(folder, pre_tokenizer=steps([QWEN2], use_regex=False))


@pytest.mark.parametrize(
    ("build", "model_type"),
    [
        (byte_level, "llama"),
        (byte_level, "gpt2"),
        (qwen2, "qwen2"),
        (with_scores, "llama"),
        (with_scores, "gemma3_text"),
    ],
)
def test_transformers_reads_the_files_for_every_kind_of_model(tmp_path: Path, build: Any, model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    document = build(tmp_path)
    bos = document["added_tokens"][1]["content"]
    save(tmp_path, document, bos_token=bos, eos_token=document["added_tokens"][2]["content"], add_bos_token=True)
    vocabulary = read_huggingface(tmp_path, size(document))
    files = write_files(to_files(vocabulary), tmp_path / "again")
    (files / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == (bos, 2)
    path = write_vocabulary(vocabulary, tmp_path / "v.gguf")
    with llama_tokenizer(path) as llama:
        for text in random_texts(100, [bos]):
            text = unicodedata.normalize("NFC", text)  # transformers does so for Qwen, whatever the files say
            assert tokenizer(text).input_ids == llama.whole(text, special=True), text


def test_transformers_reads_the_files_of_a_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    document = wordpiece(tmp_path)
    files = write_files(to_files(read_huggingface(tmp_path, size(document))), tmp_path / "again")
    (files / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    expected = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in CORPUS:
        assert tokenizer(text).input_ids == expected.encode(text).ids


def test_minilm_agrees(minilm_folder: Path, tmp_path: Path) -> None:
    vocabulary = read_huggingface(minilm_folder, 30522)
    assert vocabulary.token_type_count == 2
    hf = tokenizers.Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    hf.no_truncation()
    hf.no_padding()
    with llama_tokenizer(write_vocabulary(vocabulary, tmp_path / "v.gguf")) as llama:
        for text in map(without_llama_normalizer_bugs, [*CORPUS[:4], *random_texts(300)]):
            assert llama.whole(text, special=True) == hf.encode(text).ids, text
