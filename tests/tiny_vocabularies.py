"""Tiny vocabularies of several kinds, opened by the engines that read them: llama.cpp, and the tokenizers library.

spm, spm-space     SentencePiece in GGUF, with add_space_prefix or without     bpe   byte-level BPE in GGUF
prepend, metaspace-first, metaspace-always    the same SentencePiece vocabulary as a tokenizer.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_models import bpe_vocabulary, spm_vocabulary
from tokens_oracle import llama_tokenizer

from edgellm.backends.base import Tokenizer
from edgellm.formats.gguf_writer import write_gguf
from edgellm.tokenizers.text import open_tokenizer

METASPACE = {"type": "Metaspace", "replacement": "▁", "split": True}
ONNX: dict[str, dict[str, Any]] = {
    "prepend": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
    },
    "metaspace-first": {"pre_tokenizer": {**METASPACE, "prepend_scheme": "first", "split": False}},
    "metaspace-always": {"pre_tokenizer": {**METASPACE, "prepend_scheme": "always"}},
}


def tokenizer_json(parts: dict[str, Any]) -> dict[str, Any]:
    """The SentencePiece vocabulary of `tiny_models` as a tokenizer.json."""
    vocabulary = spm_vocabulary()["tokenizer.ggml.tokens"]
    merges = [
        [token[:cut], token[cut:]]
        for token in vocabulary[259:]
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": id_,
                "content": token,
                "special": True,
                "normalized": False,
                **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
            }
            for id_, token in enumerate(vocabulary[:3])
        ],
        "model": {
            "type": "BPE",
            "vocab": {token: id_ for id_, token in enumerate(vocabulary)},
            "merges": merges,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                *({"type": kind} for kind in ("ByteFallback", "Fuse")),
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        **parts,
    }


KINDS = ("spm", "spm-space", "bpe", *ONNX)


@contextmanager
def vocabulary(kind: str, folder: Path) -> Iterator[Tokenizer]:
    """The tokenizer of one of KINDS, written into an empty folder."""
    if kind in ONNX:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(ONNX[kind])), encoding="utf-8")
        yield open_tokenizer(folder / "tokenizer.json", {})
        return
    metadata = bpe_vocabulary() if kind == "bpe" else spm_vocabulary()
    if kind == "bpe":  # a token that ends inside a character, and one of a line end and what stands before it
        metadata["tokenizer.ggml.merges"] += ["x Ã", ". Ċ"]
        metadata["tokenizer.ggml.tokens"] += ["xÃ", ".Ċ"]
        metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1]
    else:
        metadata["tokenizer.ggml.add_space_prefix"] = kind == "spm-space"
    write_gguf(folder / "m.gguf", {"general.architecture": "llama", **metadata}, [])
    with llama_tokenizer(folder / "m.gguf") as tokenizer:
        yield tokenizer
