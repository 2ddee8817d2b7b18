"""to_files: a Vocabulary as the files that `transformers` and `tokenizers` read, giving llama.cpp's ids.

gpt2:  BPE + the regexes of the pre-tokenizer, each a Split, + ByteLevel
llama: BPE with byte fallback; every way to make a token of two tokens is a merge, in order of the token's score, as
       SentencePiece joins neighbours; spaces become ▁ in the normalizer
gemma4: BPE with byte fallback and the merges of the file, never across a line end
bert:  WordPiece with BERT's normalizer and pre-tokenizer
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.tokenizers.pre import ignores_merges, splits
from edgellm.tokenizers.vocabulary import DEFAULT_TEMPLATE, MATCHED, SPACE, TokenType, Vocabulary

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_MOST_CUTS = 200_000_000  # characters looked at for the merges of SentencePiece; real vocabularies have a tenth
_CONFIGURED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def to_files(vocabulary: Vocabulary) -> dict[str, str]:
    """File names (with "/" for folders) and contents: tokenizer.json, tokenizer_config.json, generation_config.json
    (the ids that end an answer), and the chat templates.

    Raises what `to_document` does.
    """
    texts, special = _texts(vocabulary), vocabulary.special
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": texts[special[name]] for name in _CONFIGURED if name in special}
    if vocabulary.model == "bert":
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        config |= {"add_bos_token": vocabulary.add_bos, "add_eos_token": vocabulary.add_eos}
    files = {
        "tokenizer.json": json.dumps(to_document(vocabulary), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
    }
    if ends := [special[name] for name in ("eos", "eot", "eom") if name in special]:
        generation = {f"{name}_token_id": special[name] for name in ("bos", "pad") if name in special}
        files["generation_config.json"] = json.dumps({**generation, "eos_token_id": ends}, indent=2)
    for name, template in vocabulary.chat_templates.items():
        default = name == DEFAULT_TEMPLATE
        files["chat_template.jinja" if default else f"additional_chat_templates/{name}.jinja"] = template
    return files


def to_document(vocabulary: Vocabulary) -> dict[str, Any]:
    """The object in a tokenizer.json.

    Raises Unsupported for a pre-tokenizer whose regexes are not known, and for WordPiece without an unknown token;
    InvalidModelFile for tokens so long that nobody could say how they come about.
    """
    texts = _texts(vocabulary)
    model, normalizer, pre_tokenizer, decoder = _PARTS[vocabulary.model](vocabulary, texts)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary, texts),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _post_processor(vocabulary, texts),
        "decoder": decoder,
        "model": model,
    }


def _texts(vocabulary: Vocabulary) -> list[str]:
    """The tokens as tokenizer.json spells them."""
    if vocabulary.model != "bert":
        return vocabulary.tokens
    return [
        text if kind in MATCHED else text[1:] if text.startswith(SPACE) else "##" + text
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]


def _added(vocabulary: Vocabulary, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The tokens that are looked for in a text before it is split."""
    swallowing = set(vocabulary.rstrip)
    return [
        {"id": number, "content": texts[number], "single_word": False, "lstrip": False, "rstrip": number in swallowing}
        | {"normalized": False, "special": kind != TokenType.USER_DEFINED}
        for number, kind in enumerate(vocabulary.types)
        if kind in MATCHED
    ]


_TO_MARKS: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_FROM_MARKS: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_Parts = tuple[dict[str, Any], Any, Any, Any]  # model, normalizer, pre-tokenizer, decoder


def _byte_level(vocabulary: Vocabulary, texts: Sequence[str]) -> _Parts:
    merges = [merge.split(" ", 1) for merge in vocabulary.merges or []]
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in splits(vocabulary.pre)
    ]
    model = _bpe(texts, merges, ignore_merges=ignores_merges(vocabulary.pre))
    return model, None, {"type": "Sequence", "pretokenizers": [*steps, _BYTE_LEVEL]}, _BYTE_LEVEL


def _bpe(texts: Sequence[str], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    vocab = {text: number for number, text in enumerate(texts)}
    return {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges, **settings}


def _sentencepiece(vocabulary: Vocabulary, texts: Sequence[str]) -> _Parts:
    index = {text: number for number, text in enumerate(texts)}
    scores = vocabulary.scores or [0.0] * len(texts)
    if sum(len(text) ** 2 for text in texts) > _MOST_CUTS:
        raise InvalidModelFile(
            f"tokens of up to {max(map(len, texts))} characters; the file is damaged: fetch it again"
        )
    joined = [number for number, kind in enumerate(vocabulary.types) if kind != TokenType.USER_DEFINED]
    joined.sort(key=lambda number: (-scores[number], number))  # the others are found before anything is joined
    listed = []
    for whole in map(texts.__getitem__, joined):
        pairs = []
        for cut in range(1, len(whole)):
            left = index.get(whole[:cut])
            if left is not None and (right := index.get(whole[cut:])) is not None:
                pairs.append((left, right, cut))
        if len(pairs) > 1:
            pairs.sort()
        listed += [[whole[:cut], whole[cut:]] for *_, cut in pairs]
    prefix = vocabulary.add_space_prefix
    normalizers = [{"type": "Prepend", "prepend": SPACE}, _TO_MARKS] if prefix else [_TO_MARKS]
    decoders = [*_FROM_MARKS, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else _FROM_MARKS
    model = _with_bytes(vocabulary, texts, listed)
    return model, {"type": "Sequence", "normalizers": normalizers}, None, {"type": "Sequence", "decoders": decoders}


def _ranked(vocabulary: Vocabulary, texts: Sequence[str]) -> _Parts:
    merges = [merge.split(" ", 1) for merge in vocabulary.merges or []]
    inside = [pair for pair in merges if "\n" not in (whole := "".join(pair)) or not whole.strip("\n")]
    return _with_bytes(vocabulary, texts, inside), _TO_MARKS, None, {"type": "Sequence", "decoders": _FROM_MARKS}


def _with_bytes(vocabulary: Vocabulary, texts: Sequence[str], merges: list[list[str]]) -> dict[str, Any]:
    unknown = vocabulary.special.get("unk")
    model = _bpe(texts, merges, fuse_unk=True, byte_fallback=True)
    return {**model, "unk_token": None if unknown is None else texts[unknown]}


def _wordpiece(vocabulary: Vocabulary, texts: Sequence[str]) -> _Parts:
    if "unk" not in vocabulary.special:
        raise Unsupported("a bert vocabulary without an unknown token cannot be written to a tokenizer.json")
    model = {
        "type": "WordPiece",
        "unk_token": texts[vocabulary.special["unk"]],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {text: number for number, text in enumerate(texts)},
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": vocabulary.strip_accents,
        "lowercase": vocabulary.lowercase,
    }
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    return model, normalizer, {"type": "BertPreTokenizer"}, decoder


_PARTS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _ranked, "bert": _wordpiece}


def _post_processor(vocabulary: Vocabulary, texts: Sequence[str]) -> dict[str, Any]:
    special = vocabulary.special
    if vocabulary.model == "bert":
        first: int | None = special.get("bos", special.get("cls"))
        last: int | None = special.get("sep")
    else:
        first = special.get("bos") if vocabulary.add_bos else None
        last = special.get("eos") if vocabulary.add_eos else None

    def token(number: int | None, segment: int) -> list[dict[str, Any]]:
        return [] if number is None else [{"SpecialToken": {"id": texts[number], "type_id": segment}}]

    def sequence(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    start = [*token(first, 0), sequence("A", 0), *token(last, 0)]
    once = vocabulary.model == "bert" or (first is not None and texts[first] == "[CLS]")
    again = [] if once else token(first, 1)
    used = [number for number in (first, last) if number is not None]
    return {
        "type": "TemplateProcessing",
        "single": start,
        "pair": [*start, *again, sequence("B", 1), *token(last, 1)],
        "special_tokens": {
            texts[number]: {"id": texts[number], "ids": [number], "tokens": [texts[number]]} for number in used
        },
    }
