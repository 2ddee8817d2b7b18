"""Vocabulary: what a GGUF file says of text, through llama.cpp, without its weights: for engines that bring none."""

from __future__ import annotations

import os
from typing import Any

from edgellm.backends.base import Tokenizer
from edgellm.backends.llamacpp import library, proof, signals
from edgellm.backends.llamacpp.reason import reason, refusal
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
from edgellm.formats.gguf import GGUFFile


class Vocabulary:
    """tokenizer: see there. It ends with `close`."""

    def __init__(self, lib: Any, model: int) -> None:
        self._lib, self._model = lib, model
        vocab = lib.llama_model_get_vocab(model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(vocab)
        tokenizer = LlamaTokenizer(lib, vocab)
        self.tokenizer: Tokenizer = tokenizer
        self.special = tokenizer.special

    def close(self) -> None:
        """Free it. Once: nothing may use the tokenizer any more."""
        self._lib.llama_model_free(self._model)


def open_vocabulary(file: GGUFFile, *, trust: bool) -> Vocabulary:
    """The vocabulary of a file that llama.cpp is known to survive: one that is not is tried in a child process first.

    Raises what `proof.make_safe` raises, and ModelLoadError.
    """
    lib = library.load_library()
    proof.make_safe(file, trust=trust, extra_bufts=library.extra_buffers().use)
    p = library.model_params()
    p.vocab_only = True
    raised: list[BaseException] = []
    with signals.kept(raised), library.capture_log() as lines:
        model = lib.llama_model_load_from_file(os.fsencode(file.path), p)
    try:
        if raised:
            raise raised[0]
        if not model:
            raise refusal(file.path, "refused the vocabulary", reason(lines))
        return Vocabulary(lib, model)
    except BaseException:
        if model:
            lib.llama_model_free(model)
        raise
