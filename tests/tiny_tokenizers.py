"""Tiny Hugging Face tokenizers, trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. I've 123 dogs, he'll have 4567!",
    "def function(x):\n    return x + 1\n\n\tif x > 10:  # why?\n",
    "Äpfel und Öl, déjà vu; пример текста на русском языке; 日本語のテキスト，中文文本。 한국어 텍스트",
    "ภาษาไทย हिन्दी العربية עברית 🚀🙂  ½ ² Ⅷ ١٢٣",
] * 3
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]


def byte_level(folder: Path, **changes: Any) -> dict[str, Any]:
    """The JSON of a byte-level tokenizer of 400 tokens and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return save(folder, {**document, **changes})


def with_scores(folder: Path, **changes: Any) -> dict[str, Any]:
    """The JSON of a Llama-like tokenizer: a BPE vocabulary over ▁-text, and every cut of each token as a merge."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        [text for line in CORPUS for text in line.split()],
        trainers.BpeTrainer(vocab_size=520, special_tokens=special, show_progress=False),
    )
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    vocabulary = document["model"]["vocab"]
    document["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in vocabulary
        if token not in special
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return save(folder, {**document, **changes})


def save(folder: Path, document: dict[str, Any], **config: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return document


def size(document: dict[str, Any]) -> int:
    return len({*document["model"]["vocab"], *(token["content"] for token in document["added_tokens"])})


def steps(parts: list[Any], *, use_regex: bool) -> dict[str, Any]:
    """The JSON of a pre-tokenizer: regexes (or whole steps), then ByteLevel."""
    listed = [
        {"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False}
        if isinstance(part, str)
        else part
        for part in parts
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "Sequence", "pretokenizers": [*listed, last]}


def special_token(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def wordpiece(folder: Path) -> dict[str, Any]:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(CORPUS, vocab_size=400, show_progress=False)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    cls, sep = (document["model"]["vocab"][text] for text in ("[CLS]", "[SEP]"))
    document["post_processor"] = {"type": "BertProcessing", "cls": ["[CLS]", cls], "sep": ["[SEP]", sep]}
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    return save(folder, document, **names)
