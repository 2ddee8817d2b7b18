"""Vocabulary: what a GGUF file says of text. llama.cpp reads it where it is installed; else the `tokenizers` library,
which is given the same tokens and rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from edgellm.backends.base import Tokenizer
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.specials import Specials, specials_of_header
from edgellm.formats.gguf import GGUFFile
from edgellm.tokenizers.files import to_document
from edgellm.tokenizers.gguf import read_gguf
from edgellm.tokenizers.text import make_tokenizer


class Vocabulary(Protocol):
    """special: where a text begins and ends, and what ends an answer. It ends with `close`."""

    tokenizer: Tokenizer
    special: Specials
    n_vocab: int

    def close(self) -> None:
        """Free it. Once: nothing may use the tokenizer any more."""


class LibraryVocabulary:
    """A vocabulary without llama.cpp. Raises InvalidModelFile, and Unsupported for a kind that is not known here."""

    def __init__(self, file: GGUFFile) -> None:
        read = read_gguf(file)
        tokenizer = make_tokenizer(to_document(read), str(file.path))
        self.tokenizer: Tokenizer = tokenizer
        self.n_vocab = len(read.tokens)
        self.special = replace(specials_of_header(file), begin=tokenizer.begin, end=tokenizer.end)

    def close(self) -> None:
        pass


def open_vocabulary(file: GGUFFile, *, trust: bool) -> Vocabulary:
    """The vocabulary of a file. trust: llama.cpp may read it without having been tried on it.

    Raises InvalidModelFile, Unsupported, UnsafeModel, ModelLoadError.
    """
    if not library.installed():
        return LibraryVocabulary(file)
    from edgellm.backends.llamacpp.vocabulary import open_vocabulary as of_llamacpp

    return of_llamacpp(file, trust=trust)
