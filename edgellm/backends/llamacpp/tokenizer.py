"""LlamaTokenizer: the vocabulary inside a GGUF file, through llama.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

from edgellm.backends.base import Tokenizer
from edgellm.errors import BackendFailed, InvalidParameter


class LlamaTokenizer(Tokenizer):
    """Safe from any thread: llama.cpp's vocabulary is read-only."""

    def __init__(self, lib: Any, vocab: Any) -> None:
        self._lib = lib
        self._vocab = vocab
        self._n_vocab = lib.llama_vocab_n_tokens(vocab)
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text is not valid Unicode: {error}") from error
        if not data and not bos:
            return []
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, bos, special)
            if n == -(2**31):
                raise InvalidParameter(f"a text of {len(data)} bytes is too long to tokenize")
            if n >= 0:
                return tokens[:n]
            room = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        key = 2 * token + special  # of its own for every number, also for one outside the vocabulary
        cached = self._pieces.get(key)
        if cached is None:
            cached = self._pieces[key] = self._piece(token, special)
        return cached

    def _piece(self, token: int, special: bool) -> bytes:
        if not 0 <= token < self._n_vocab:
            raise InvalidParameter(f"token {token} is outside the vocabulary of {self._n_vocab}")
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            if -n <= room:
                raise BackendFailed(f"llama.cpp gives no text for token {token}")
            room = -n
