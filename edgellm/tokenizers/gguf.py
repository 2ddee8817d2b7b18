"""Vocabulary to and from the `tokenizer.*` keys of a GGUF file.

Keys and storage types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer, with the ones that
llama.cpp added since (llm_kv_names in src/llama-arch.cpp). "seperator" is spelled so.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, cast

import numpy as np

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_strings import StringArray
from edgellm.tokenizers.ends import ENDS, GAPS
from edgellm.tokenizers.vocabulary import DEFAULT_TEMPLATE, MATCHED, TokenType, Vocabulary, VocabularyKind

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_NAMES = "bos eos eot eom unk sep pad cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep"
_SPELLED = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
_SPECIAL = {name: f"{_SPELLED.get(name, name)}_token_id" for name in _NAMES.split()}
_OLD_SPECIAL = {"fim_pre": "prefix_token_id", "fim_suf": "suffix_token_id", "fim_mid": "middle_token_id"}
# what llama.cpp assumes where a file is silent
_ASSUMED = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gemma4": {},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}
# texts around a gap in code, besides those of GAPS
_FIM = """
    <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
    <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
    <|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
"""
# tokens that llama.cpp makes control tokens by their text, whatever their type says (llama_vocab::impl::load)
_CONTROL = frozenset((*ENDS, *chain(*GAPS.values()), *_FIM.split()))
_SHOWN = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}  # and these user-defined
_BEGIN_WITH_BOS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}


def to_metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.*` pairs for `write_gguf`."""
    v = vocabulary
    pairs: dict[str, Any] = {"model": v.model, "pre": v.pre, "tokens": v.tokens}
    if v.scores is not None:
        pairs["scores"] = np.array(v.scores, np.float32)
    pairs["token_type"] = np.array(v.types, np.int32)
    if v.merges is not None:
        pairs["merges"] = v.merges
    pairs |= {_SPECIAL[name]: number for name, number in v.special.items()}
    if v.model == "bert":
        pairs |= {"normalizer.lowercase": v.lowercase, "normalizer.strip_accents": v.strip_accents}
    else:
        pairs |= {"add_bos_token": v.add_bos, "add_eos_token": v.add_eos, "add_space_prefix": v.add_space_prefix}
    if v.token_type_count is not None:
        pairs["token_type_count"] = v.token_type_count
    metadata = {_KEY + name: value for name, value in pairs.items()}
    named = [name for name in v.chat_templates if name != DEFAULT_TEMPLATE]
    metadata |= {f"{_TEMPLATE}.{name}": v.chat_templates[name] for name in named}
    if named:
        metadata["tokenizer.chat_templates"] = named
    if DEFAULT_TEMPLATE in v.chat_templates:
        metadata[_TEMPLATE] = v.chat_templates[DEFAULT_TEMPLATE]
    return metadata


def read_gguf(file: GGUFFile) -> Vocabulary:
    """The vocabulary of a GGUF file; what it leaves out is what llama.cpp assumes.

    Raises Unsupported for other kinds of vocabulary, InvalidModelFile for lists that do not fit together.
    """
    model = file.get(_KEY + "model", str, None)
    if model not in _ASSUMED:
        raise Unsupported(f"{file.path}: a vocabulary of kind {model!r}; convertible: {', '.join(_ASSUMED)}")
    pre = "gemma4" if model == "gemma4" else file.get(_KEY + "pre", str, "default")
    tokens = _strings(file, "tokens")
    if tokens is None or len(set(tokens)) != len(tokens):
        raise InvalidModelFile(f"{file.path}: tokenizer.ggml.tokens is missing or has a token twice; convert it again")
    types = _array(file, "token_type", np.int32, len(tokens))
    special = {name: number for name, number in _ASSUMED[model].items() if number < len(tokens)}
    for name, key in [*_OLD_SPECIAL.items(), *_SPECIAL.items()]:
        number = file.get(_KEY + key, int, None)
        if number is not None:
            if not 0 <= number < len(tokens):
                raise InvalidModelFile(f"{file.path}: {_KEY}{key} is {number}, there are {len(tokens)} tokens")
            special[name] = number
    lowercase = file.get(_KEY + "normalizer.lowercase", bool, model == "bert")
    merges = _strings(file, "merges") if model in ("gpt2", "gemma4") else None
    if model in ("gpt2", "gemma4") and merges is None:
        raise InvalidModelFile(f"{file.path}: a {model} vocabulary without tokenizer.ggml.merges; convert it again")
    types = _acted_on(tokens, types or [int(TokenType.NORMAL)] * len(tokens))
    scores = _array(file, "scores", np.float32, len(tokens)) if model == "llama" else None
    return Vocabulary(
        model=cast(VocabularyKind, model),
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores or [0.0] * len(tokens) if model == "llama" else None,
        merges=merges,
        special=special,
        add_bos=file.get(_KEY + "add_bos_token", bool, model != "gpt2" or pre in _BEGIN_WITH_BOS),
        add_eos=file.get(_KEY + "add_eos_token", bool, model == "bert"),
        add_space_prefix=model == "llama" and file.get(_KEY + "add_space_prefix", bool, True),
        rstrip=_rstrip(file, tokens, types),
        lowercase=lowercase,
        strip_accents=file.get(_KEY + "normalizer.strip_accents", bool, lowercase),
        token_type_count=file.get(_KEY + "token_type_count", int, None),
        chat_templates=_templates(file),
    )


def _acted_on(tokens: list[str], types: list[int]) -> list[int]:
    """The types as llama.cpp changes them when it loads the file."""
    control = _CONTROL - {"</s>"} if "<|tool_response>" in tokens else _CONTROL
    return [
        int(TokenType.USER_DEFINED)
        if text in _SHOWN
        else int(TokenType.CONTROL)
        if text in control and kind != TokenType.UNKNOWN
        else kind
        for text, kind in zip(tokens, types, strict=True)
    ]


def _rstrip(file: GGUFFile, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    """The tokens that swallow the spaces behind them: llama.cpp knows Phi-3's by the model's name."""
    name = file.get("general.name", str, "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return ()
    listed = [number for number, kind in enumerate(types) if kind in MATCHED]
    return tuple(number for number in listed if tokens[number] not in ("<unk>", "<s>", "<|endoftext|>"))


def _templates(file: GGUFFile) -> dict[str, str]:
    found = {}
    default = file.get(_TEMPLATE, str, None)
    if default is not None:
        found[DEFAULT_TEMPLATE] = default
    for key in file.metadata:
        if key.startswith(_TEMPLATE + "."):
            found[key[len(_TEMPLATE) + 1 :]] = file.get(key, str, "")
    return found


def _strings(file: GGUFFile, name: str) -> list[str] | None:
    values = file.get(_KEY + name, StringArray, None)
    if values is None:
        return None
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise InvalidModelFile(f"{file.path}: {_KEY}{name} holds bytes that are not UTF-8: {error.object!r}") from None


def _array(file: GGUFFile, name: str, kind: type[np.generic], count: int) -> list[Any] | None:
    values = file.get(_KEY + name, np.ndarray, None)
    if values is None:
        return None
    if values.dtype != kind or len(values) != count:
        raise InvalidModelFile(
            f"{file.path}: {_KEY}{name} has {len(values)} {values.dtype}, expected {count} {kind.__name__}"
        )
    return cast("list[Any]", values.tolist())
