"""Vocabulary: a tokenizer as GGUF sees it, whichever file it came from.

tokenizer.json, tokenizer.model, tokenizer_config.json …  ──read_huggingface──▶  Vocabulary  ──to_metadata──▶  GGUF
tokenizer.json, tokenizer_config.json, chat_template.jinja  ◀──to_files──        Vocabulary  ◀──read_gguf──   GGUF
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

VocabularyKind = Literal["gpt2", "llama", "gemma4", "bert"]
DEFAULT_TEMPLATE = "default"
SPACE = "▁"  # U+2581, how SentencePiece writes a space


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type`, which are SentencePiece's own."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # matched in a text only when special tokens are parsed
    USER_DEFINED = 4  # matched in every text, before anything else
    UNUSED = 5
    BYTE = 6


MATCHED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)  # looked for in a text before it is split


@dataclass
class BaseVocabulary:
    """A vocabulary before added tokens, special names and padding; tokens, types and scores by id, with holes maybe.

    The fields are those of Vocabulary.
    """

    model: VocabularyKind
    tokens: dict[int, str]
    types: dict[int, int]
    pre: str = "default"
    scores: dict[int, float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    add_space_prefix: bool = False
    lowercase: bool = False
    strip_accents: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` holds.

    model: gpt2 is byte-level BPE, llama is SentencePiece BPE (highest score merges first), gemma4 is BPE over ▁-text
    with byte fallback (lowest rank merges first), bert is WordPiece.
    pre: llama.cpp's name of the pre-tokenizer ("default" for llama and bert).
    tokens, types: (n_vocab); a bert token that starts a word has ▁ in front, one that continues it nothing.
    scores: (n_vocab), llama only. merges: "left right" in order of rank, gpt2 and gemma4 only.
    special: ids by name: bos, eos, eot, eom, unk, pad, sep, cls, mask, fim_pre, fim_suf, fim_mid, fim_pad, fim_rep,
    fim_sep. A model that ends its turn with several tokens has them as eos, eot and eom.
    add_space_prefix: a space is put before a text (llama only).
    rstrip: ids of tokens that swallow the spaces behind them (llama.cpp does so for Phi-3, which it knows by its name).
    lowercase, strip_accents: what is done to a text first (bert only).
    token_type_count: the segments of a BERT model's input.
    chat_templates: Jinja source by name; "default" is the one used when none is asked for.
    notes: where llama.cpp will split texts differently from the tokenizer this came from, one sentence each.
    """

    model: VocabularyKind
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    rstrip: tuple[int, ...] = ()
    lowercase: bool = False
    strip_accents: bool = False
    token_type_count: int | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
