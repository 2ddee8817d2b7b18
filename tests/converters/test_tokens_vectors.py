"""Real vocabularies, GGUF to tokenizer.json to GGUF: llama.cpp's published ids, and its own on random texts.

llama.cpp ships vocabularies with texts (.inp) and the ids of the original Hugging Face tokenizers (.out). The ones not
tried are of kinds that are not converted: nomic-bert-moe (unigram); aquila, baichuan and gpt-neox have no vectors.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokens_oracle import (
    llama_tokenizer,
    random_texts,
    without_llama_normalizer_bugs,
    write_files,
    write_vocabulary,
)

from edgellm.converters.tokens import TokenType, Vocabulary, read_gguf, read_huggingface, to_files
from edgellm.formats.gguf import GGUFFile

tokenizers = pytest.importorskip("tokenizers")

QUICK = [
    "bert-bge",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen35",
]
SLOW = ["command-r", "gemma-4", "mpt", "qwen2", "refact", "starcoder"]  # megabytes more of what the others show
ALL = bool(os.environ.get("EDGELLM_TEST_ALL_VOCABULARIES"))
# texts of 2,000 that `tokenizers` and llama.cpp split differently, whichever file the vocabulary comes from
DIFFERENCES = {
    "falcon": 1,  # its vocabulary lacks bytes: llama.cpp drops them after merging, tokenizers before
    "phi-3": 2,  # llama.cpp swallows only ASCII spaces behind a special token
}
SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)


@pytest.mark.parametrize("name", [*QUICK, *(SLOW if ALL else [])])
def test_vocabulary_survives_both_ways(llama_vocabularies: Path, tmp_path: Path, name: str) -> None:
    path = llama_vocabularies / f"ggml-vocab-{name}.gguf"
    texts = (llama_vocabularies / f"{path.name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [
        list(map(int, line.split())) for line in (llama_vocabularies / f"{path.name}.out").read_text().split("\n")
    ]
    assert len(expected) >= len(texts) >= 46
    compare(path, tmp_path, dict(zip(texts, expected, strict=False)), DIFFERENCES.get(name, 0))


def test_smollm2_survives_both_ways(smollm2: Path, tmp_path: Path) -> None:
    compare(smollm2, tmp_path, {}, 0)


@pytest.mark.skipif(not ALL, reason="20 s for 262,144 tokens; set EDGELLM_TEST_ALL_VOCABULARIES")
def test_gemma3_survives_both_ways(gemma3: Path, tmp_path: Path) -> None:
    compare(gemma3, tmp_path, {}, 0)


def compare(path: Path, tmp_path: Path, vectors: dict[str, list[int]], differences: int) -> None:
    file = GGUFFile.open(path)
    original = read_gguf(file)
    folder = write_files(to_files(original), tmp_path / "folder")
    again = read_huggingface(folder, len(original.tokens))
    check_fields(original, again)
    ours = write_vocabulary(again, tmp_path / "again.gguf", name=file.get("general.name", str, ""))
    hf = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llama_tokenizer(path) as theirs, llama_tokenizer(ours) as mine:
        hf.encode_special_tokens = True  # as text
        for text, ids in vectors.items():
            assert hf.encode(text, add_special_tokens=False).ids == ids, text
            assert mine.encode(text) == ids, text
        special = [
            text
            for text, before, after in zip(original.tokens, original.types, again.types, strict=True)
            if before in SPECIAL and (before == TokenType.USER_DEFINED) == (after == TokenType.USER_DEFINED)
        ][:60]
        wrong = []
        for index, text in enumerate(random_texts(2000, special)):
            parse = bool(index % 2)
            text = without_llama_normalizer_bugs(text) if original.model == "bert" else text
            ids = theirs.whole(text, special=parse) if text else []
            assert (mine.whole(text, special=parse) if text else []) == ids, text
            hf.encode_special_tokens = not parse
            if text and hf.encode(text).ids != ids:
                wrong.append(text)
        assert len(wrong) <= differences, wrong


def check_fields(original: Vocabulary, again: Vocabulary) -> None:
    assert again.tokens == original.tokens
    assert again.merges == original.merges
    assert again.model == original.model
    assert (again.add_bos, again.add_eos, again.add_space_prefix) == (
        original.add_bos, original.add_eos, original.add_space_prefix,
    )  # fmt: skip
    assert original.special.items() <= again.special.items()
    assert again.chat_templates == original.chat_templates
    assert (again.lowercase, again.strip_accents) == (original.lowercase, original.strip_accents)
