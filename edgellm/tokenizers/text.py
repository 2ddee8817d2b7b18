"""TextTokenizer: a tokenizer.json through the `tokenizers` package, which only this file imports.

Format: https://huggingface.co/docs/tokenizers (the Rust library's own serialization).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.tokenizers.pieces import piece_of

MAX_BYTES = 256 << 20  # of a tokenizer.json; the largest known has 35 MB


class TextTokenizer:
    """See `edgellm.backends.base.Tokenizer`. Made by `open_tokenizer`.

    n_vocab: ids that the model knows, the library's or more. bos_id, eos_id: what the file or its configuration name,
    None without one.
    """

    def __init__(self, library: Any, config: Mapping[str, Any], decoder: Mapping[str, Any] | None, where: str) -> None:
        self._library = library
        self._lock = threading.Lock()  # how control tokens are read is a setting of the library's object
        self._piece_of = piece_of(decoder, where)
        self._added = {token: (added.content, added.special) for token, added in self._added_tokens()}
        self._pieces: dict[int, bytes] = {}
        self.n_vocab = max((library.get_vocab_size(), *(token + 1 for token in self._added)))
        self.bos_id, self.eos_id = (self._id(config.get(name)) for name in ("bos_token", "eos_token"))
        self._add_bos = config.get("add_bos_token") is True and self.bos_id is not None

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text is not valid Unicode: {error}") from error
        with self._lock:
            self._library.encode_special_tokens = not special
            tokens: list[int] = self._library.encode(text, add_special_tokens=bos).ids
        if bos and self._add_bos and tokens[:1] != [self.bos_id]:
            assert self.bos_id is not None  # or nothing is added
            tokens.insert(0, self.bos_id)
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise InvalidParameter(f"token {token} is outside the vocabulary of {self.n_vocab}")
        key = token if special else ~token
        cached = self._pieces.get(key)
        if cached is None:
            cached = self._pieces[key] = self._piece(token, special)
        return cached

    def widen(self, n_vocab: int) -> None:
        """The model has so many ids; those that the file does not know stand for nothing."""
        self.n_vocab = max(self.n_vocab, n_vocab)

    def id_of(self, token: str) -> int | None:
        """The id of a token's exact text."""
        found: int | None = self._library.token_to_id(token)
        return found

    @property
    def added(self) -> dict[str, int]:
        """The texts and ids of the tokens that no merging makes: control tokens and what a user defined."""
        return {content: token for token, (content, _) in self._added.items()}

    def _piece(self, token: int, special: bool) -> bytes:
        added = self._added.get(token)
        if added is not None:
            content, control = added
            return b"" if control and not special else content.encode("utf-8", "replace")
        text = self._library.id_to_token(token)
        return b"" if text is None else self._piece_of(text)

    def _added_tokens(self) -> list[tuple[int, Any]]:
        return list(self._library.get_added_tokens_decoder().items())

    def _id(self, token: object) -> int | None:
        """The id of a token that a configuration names: its text, or an object with its content."""
        if isinstance(token, Mapping):
            token = token.get("content")
        return self.id_of(token) if isinstance(token, str) else None


def open_tokenizer(path: Path, config: Mapping[str, Any]) -> TextTokenizer:
    """The tokenizer of a tokenizer.json. config: the object in tokenizer_config.json, {} without one.

    Raises InvalidModelFile for a file that is damaged, Unsupported for a decoder that is not known here and when the
    package is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise Unsupported(
            f"{path}: reading it needs the package tokenizers, which does not load here ({error}); "
            "install it with: pip install tokenizers"
        ) from error
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidModelFile(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise InvalidModelFile(f"{path}: more than {MAX_BYTES >> 20} MiB; this is no tokenizer")
    try:
        text = raw.decode("utf-8")
        decoder = json.loads(text).get("decoder")
        library = Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is not an Exception
        raise InvalidModelFile(f"{path}: no tokenizer: {str(error)[:200]}; fetch or write the file again") from None
    if decoder is not None and not isinstance(decoder, Mapping):
        raise InvalidModelFile(f"{path}: the decoder is not an object; fetch or write the file again")
    library.no_truncation()
    library.no_padding()
    return TextTokenizer(library, config, decoder, str(path))
