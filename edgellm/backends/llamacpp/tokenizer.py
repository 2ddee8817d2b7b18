"""LlamaTokenizer: the vocabulary inside a GGUF file, through llama.cpp."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from edgellm import _native
from edgellm.backends.base import INSIDE, Tokenizer
from edgellm.backends.llamacpp.specials import specials
from edgellm.errors import BackendFailed, InvalidParameter, NotEnoughMemory, Unsupported
from edgellm.tokenizers.begin import begun

PROBE = b"a"  # a text that every vocabulary can write
# llama.cpp cuts a text into words by regular expressions, and those of some vocabularies take stack for every character
# that one match spans: 323 bytes with GCC 12. A caller's may have 512 KiB or less, so a long text gets one of its own.
STACK = 256 << 10
STACK_PER_CHARACTER = 1024
MAX_STACK = 2 << 30  # of which only what is used takes memory
# It takes time by the square of how many control tokens a text has, so that a long one goes there in parts.
PART = 16 << 10  # bytes


class LlamaTokenizer(Tokenizer):
    """Safe from any thread: llama.cpp's vocabulary is read-only. It must outlive every call: see `SharedTokenizer`."""

    def __init__(self, lib: Any, vocab: Any) -> None:
        self._lib = lib
        self._vocab = vocab
        self._n_vocab = lib.llama_vocab_n_tokens(vocab)
        self._pieces: dict[int, bytes] = {}
        self._tokenize, self._address = (
            ctypes.cast(each, ctypes.c_void_p).value or 0 for each in (lib._lib.llama_tokenize, vocab)
        )
        self.special = specials(lib, vocab)
        self.begin, self.end = self.special.begin, self.special.end
        # Tokens that a text is cut at before it is tokenized; each part in between begins as a text does.
        self._controls = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN  # those only with `special`
        self._cuts = self._controls | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        written = b"".join(self._piece(token, False) for token in self._tokens(PROBE, special=False))
        self._lead = written.removesuffix(PROBE) if written.endswith(PROBE) else b""

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text is not valid Unicode: {error}") from error
        begin = self.begin if bos else ()
        if special and begin and not self._is_cut(begin[0]):  # llama.cpp would read its text as any other
            written = self.piece(begin[0], special=True)
            if data.startswith(written):
                return [*begin, *self._tokens(data[len(written) :], special=special)]
        return begun(self._tokens(data, special=special), begin, lambda token: self.piece(token, special=True))

    def joined(self, first: list[int], second: list[int]) -> tuple[list[int], int]:
        special = self.special
        if not special.middle:
            raise Unsupported("this vocabulary has nothing between two texts, so that no model could tell them apart")
        tokens = [*special.begin, *first, *special.middle, *second, *special.end]
        return tokens, len(tokens) - len(second) - len(special.end) if special.typed else len(tokens)

    def _tokens(self, data: bytes, *, special: bool) -> list[int]:
        """What llama.cpp makes of UTF-8, without what the model asks for around a text."""
        if not data:
            return []
        first, count = _native.longest_stretch(data)
        stack = STACK + STACK_PER_CHARACTER * count
        if stack > MAX_STACK:
            raise InvalidParameter(
                f"{count} characters from character {first} on have no end of a sentence or line among them: too many "
                "to tokenize at once; take the text apart there"
            )
        try:
            found = list[int]()
            for part in self._parts(data, special):
                found += _native.tokenize(self._tokenize, self._address, part, bool(special), stack)
            return found
        except MemoryError:
            raise NotEnoughMemory(
                f"no memory, or no thread with a stack of {stack >> 10} KiB, to tokenize a text of {len(data)} bytes; "
                "close other programs or shorten it"
            ) from None
        except ValueError:
            raise InvalidParameter(f"a text of {len(data)} bytes is too long to tokenize") from None
        except RuntimeError as error:
            raise BackendFailed(f"llama.cpp cannot tokenize a text of {len(data)} bytes: {error}") from error

    def _parts(self, data: bytes, special: bool) -> Iterator[bytes]:
        """A text in parts that have the tokens that all of it has: cut before tokens that llama.cpp cuts it at."""
        at, look = 0, PART
        while look < len(data):
            texts, first, lengths = self._sure[special]
            begin = first.search(data, look)
            if begin is None:
                break
            look, start = begin.end(), begin.start()
            if any(data[start : start + length] in texts for length in lengths):
                yield data[at:start]
                at, look = start, start + PART
        if at < len(data):
            yield data[at:]

    @cached_property
    def _sure(self) -> list[tuple[set[bytes], re.Pattern[bytes], set[int]]]:
        """The texts that llama.cpp takes for a token wherever they stand, what finds their first bytes, and their
        lengths; the second ones where control tokens count.

        It looks for the texts of these tokens one by one in what is left of a text (llama_vocab's
        tokenizer_st_partition), so a text counts for sure if it can share no character with another one; some tokens
        take away the blanks before or behind them. What is between two is tokenized by itself, as if it were all.
        """
        lib, texts = self._lib, self._cut_texts
        firsts = {text[:1] for text in texts}
        inner = {text[at : at + 1] for text in texts for at in range(1, len(text))}
        shorter = {text[:at] for text in texts for at in range(1, len(text))}
        sure = {
            text: kind
            for text, kind in texts.items()
            if not kind & lib.LLAMA_TOKEN_ATTR_LSTRIP
            and text == text.strip() != b""
            and text[:1] not in inner
            and text not in shorter
            and not any(text[at : at + 1] in firsts or text[:at] in texts for at in range(1, len(text)))
        }
        made = []
        for kinds in (lib.LLAMA_TOKEN_ATTR_USER_DEFINED, self._cuts):
            of = {text for text, kind in sure.items() if kind & kinds}
            first = re.compile(b"|".join(map(re.escape, {text[:1] for text in of})) or b"(?!)")
            made.append((of, first, {len(text) for text in of}))
        return made

    @cached_property
    def _cut_texts(self) -> dict[bytes, int]:
        """The texts of the tokens that a text is cut at, and their kinds: 0.2 µs for each token of the vocabulary."""
        lib, vocab, cuts = self._lib, self._vocab, self._cuts
        kinds = ((token, lib.llama_vocab_get_attr(vocab, token)) for token in range(self._n_vocab))
        return {lib.llama_vocab_get_text(vocab, token): kind for token, kind in kinds if kind & cuts}

    def marks(self, template: str) -> set[str]:
        written = template.encode("utf-8", "replace")
        return {
            text.decode("utf-8", "replace")
            for text, kind in self._cut_texts.items()
            if kind & self._controls or (text.strip() and text in written)
        }

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        key = 2 * token + special  # of its own for every number, also for one outside the vocabulary
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._piece(token, special)
        if self._lead and before != INSIDE and (before is None or self._is_cut(before)) and not self._is_cut(token):
            return piece.removeprefix(self._lead)  # a text, or a part of it that begins as one does, goes on here
        return piece

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

    def _is_cut(self, token: int) -> bool:
        known = 0 <= token < self._n_vocab  # or llama.cpp ends the process
        return known and bool(self._lib.llama_vocab_get_attr(self._vocab, token) & self._cuts)
