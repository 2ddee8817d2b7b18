"""Which tokens of a vocabulary mean something: where a text begins and ends, and what ends an answer.

A header leaves much of it open or says what cannot be, so llama.cpp decides (llama-vocab.cpp, where it loads one): by
defaults of the kind of tokenizer, and by the tokens' texts. `specials` asks it; `specials_of_header` follows its rules
for a file that is not loaded.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from edgellm import _native
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_strings import StringArray
from edgellm.tokenizers.ends import ENDS, GAPS, end_ids

DEFAULTS = {  # of tokenizer.ggml.model: the beginning and the end of a text
    "llama": (1, 2), "plamo2": (1, 2), "bert": (101, None), "t5": (None, 1),
    "gpt2": (11, 11), "hybriddna": (11, 11), "whitespace": (11, 11),
}  # fmt: skip
WITHOUT_BEGIN = ("chatglm-bpe", "glm4", "glm5")  # values of tokenizer.ggml.pre
PREFIX = "tokenizer.ggml."


@dataclass(frozen=True, slots=True)
class Specials:
    """stop_ids end an answer. begin and end are what the model asks for around a text, middle what it does between two,
    typed: which are of two kinds; none of it where the header alone is known."""

    bos_id: int | None
    eos_id: int | None
    stop_ids: frozenset[int]
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    middle: tuple[int, ...] = ()
    typed: bool = False


def specials(lib: Any, vocab: Any) -> Specials:
    """What llama.cpp says of a loaded vocabulary."""
    asked = (ask(vocab) for ask in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_sep))
    bos, eos, sep = (None if token < 0 else token for token in asked)
    is_end = ctypes.cast(lib._lib.llama_vocab_is_eog, ctypes.c_void_p).value or 0
    stops = _native.ids_where(is_end, vocab, lib.llama_vocab_n_tokens(vocab))
    begin, end = bos, eos
    kind = lib.llama_vocab_type(vocab)
    if kind == lib.LLAMA_VOCAB_TYPE_WPM:
        end = sep
    elif kind in (lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_UGM):
        begin = bos if lib.llama_vocab_get_add_bos(vocab) else None
        end = eos if lib.llama_vocab_get_add_eos(vocab) else None
    else:  # it adds nothing, whatever the header wishes
        begin = end = None
    middle = [end, sep if lib.llama_vocab_get_add_sep(vocab) and kind != lib.LLAMA_VOCAB_TYPE_WPM else None]
    if end == sep is not None and lib.llama_vocab_get_text(vocab, sep) == b"[SEP]":  # BERT's stands there once
        del middle[1]
    around = [tuple(token for token in tokens if token is not None) for tokens in ([begin], [end], middle)]
    typed = kind == lib.LLAMA_VOCAB_TYPE_WPM
    return Specials(bos, eos, frozenset(stops), around[0], around[1], around[2], typed)


def specials_of_header(file: GGUFFile) -> Specials:
    """What `specials` will say once the file is loaded, as far as a header tells: of several texts for one role of
    GAPS llama.cpp takes any, here they are all in stop_ids."""
    words = file.get(PREFIX + "tokens", StringArray, None)
    kind = file.metadata.get(PREFIX + "model")
    if words is None or not isinstance(kind, str) or kind in ("none", "no_vocab"):
        return Specials(None, None, frozenset())
    bos, eos = DEFAULTS.get(kind, (None, None))
    if file.metadata.get(PREFIX + "pre") in WITHOUT_BEGIN:
        bos = None
    bos, eos = _named(file, "bos", len(words), bos), _named(file, "eos", len(words), eos)
    others = {role: _named(file, role, len(words)) for role in ("eot", "eom", *GAPS)}
    wanted = {text.encode(): text for text in (*ENDS, *(text for texts in GAPS.values() for text in texts))}
    tokens = {wanted[word]: token for token, word in enumerate(words) if word in wanted}
    named = (token for token in (eos, *others.values()) if token is not None)
    return Specials(bos, eos, end_ids(tokens, named, [role for role in GAPS if others[role] is None]))


def _named(file: GGUFFile, role: str, count: int, default: int | None = None) -> int | None:
    """The id a header names; the default where it names none of the vocabulary's, None where that is none either."""
    key = f"{PREFIX}{role}_token_id"
    if key in file.metadata and file.kind(key) == "u32" and file.metadata[key] < count:
        return int(file.metadata[key])
    return default if default is not None and default < count else None
