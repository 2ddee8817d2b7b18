"""Spelling: what one token of a tokenizer.json stands for.

Encoding writes a text in an alphabet before it looks words up: GPT-2's (ByteLevel), or one with a mark in place of the
space (Metaspace, Replace). Here that is undone for one token alone, last step first, so that an answer can be shown as
it grows; and what a token says it is undone by how it was made, because published files have decoders that do not fit
or none. The file's own decoder is asked where encoding drops the space between words (as BERT's does), and where it
says nothing of an alphabet at all.

    ByteLevel      one character per byte                Replace      a mark for the space, any text for any other
    Metaspace      a mark for the space (▁)              byte fallback   <0x0A> is the byte 10
    prefix         ##x continues a word                  suffix       x</w> ends one

Steps: https://huggingface.co/docs/tokenizers/api/normalizers, and beside it pre-tokenizers, models and decoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgellm.errors import InvalidModelFile

Step = Mapping[str, Any]
Undo = tuple[bytes, bytes] | None  # what is replaced by what; None: GPT-2's alphabet by bytes
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
DROPS_SPACES = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit")
BEFORE, BEHIND = "\ufdd0", "\ufdd1"  # no characters, so no decoder changes them


class Spelling:
    """document: the object in a tokenizer.json; library: the tokenizer made from it. `where` names it in messages.

    suffix ends a word, and nothing else tells words apart: the space between two is not in their spelling. "" where
    there is none.

    Raises InvalidModelFile for steps that are none.
    """

    def __init__(self, document: Step, library: Any, where: str) -> None:
        steps = [*_flat(document, "normalizer", where), *_flat(document, "pre_tokenizer", where)]
        decoder = list(_flat(document, "decoder", where))
        kinds = [step["type"] for step in decoder]
        model = document.get("model")
        model = model if isinstance(model, Mapping) else {}
        knows = library.token_to_id
        self._library = None
        self._undo = [undo for step in reversed(steps) for undo in _undone(step)]
        if _writes_bytes(self._undo, kinds, knows):
            self._undo = self._undo if None in self._undo else [None]
        else:
            self._undo = [undo for undo in self._undo if undo is not None]
        self._bytes = bool(model.get("byte_fallback")) or "ByteFallback" in kinds or _all_bytes(knows)
        self._prefix = str(model.get("continuing_subword_prefix") or "")
        self._suffix = str(model.get("end_of_word_suffix") or "")
        self._words = any(_drops_spaces(step) for step in steps) and all(undo is None for undo in self._undo)
        if self._words and not self._suffix:
            self._suffix = next((str(step.get("suffix", "")) for step in decoder if step["type"] == "BPEDecoder"), "")
        self.suffix = self._suffix if self._words else ""
        asks = bool(decoder) and not self._undo and not self.suffix
        if self._words:
            fits = "WordPiece" in kinds and self._prefix in ("", *(str(step.get("prefix")) for step in decoder))
            asks = asks and (fits or not self._prefix)
        else:
            asks = asks and "WordPiece" not in kinds and "ByteLevel" not in kinds and knows(" ") is None
        if asks:
            self._library = library.decoder
        self._spaced = self._words and not self._undo and not self.suffix

    def spell(self, token: str) -> bytes:
        """The bytes of a token inside a text; without the suffix, if one ends words."""
        if self._bytes and (match := BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self._library is not None:
            return self._decoded(token).encode("utf-8", "replace")
        if self._suffix:
            token = token.removesuffix(self._suffix)
        goes_on = bool(self._prefix) and token.startswith(self._prefix)
        if goes_on:
            token = token[len(self._prefix) :]
        elif self._spaced:
            token = f" {token}"
        data = token.encode("utf-8", "replace")
        for undo in self._undo:
            data = _byte_level(data) if undo is None else data.replace(*undo)
        return data

    def ends_word(self, token: str) -> bool:
        """Whether a space follows, where the suffix alone tells so."""
        return bool(self.suffix) and token.endswith(self.suffix)

    def _decoded(self, token: str) -> str:
        """What the file's decoder adds to a text for a token between two others."""
        decode = self._library.decode  # type: ignore[union-attr]
        head = decode([BEFORE])
        tail = decode([BEFORE, BEHIND])[len(head) :]
        text: str = decode([BEFORE, token, BEHIND])
        return text.removeprefix(head).removesuffix(tail)


def _flat(document: Step, key: str, where: str) -> Iterable[Step]:
    """The steps of a normalizer, a pre-tokenizer or a decoder, in the order they are taken."""
    step = document.get(key)
    if step is None:
        return
    pending = [step]
    while pending:
        step = pending.pop()
        if not isinstance(step, Mapping) or not isinstance(step.get("type"), str):
            raise InvalidModelFile(f"{where}: the {key} is not one; fetch or write the file again")
        if step["type"] != "Sequence":
            yield step
            continue
        inner = next((step[name] for name in ("normalizers", "pretokenizers", "decoders") if name in step), None)
        if not isinstance(inner, list):
            raise InvalidModelFile(f"{where}: the {key} is not one; fetch or write the file again")
        pending += reversed(inner)


def _undone(step: Step) -> list[Undo]:
    """How what a step of encoding writes is read. Nothing for one that loses what it changes."""
    kind = step["type"]
    if kind == "ByteLevel":
        return [None]
    old, new = " ", ""
    if kind == "Metaspace":
        new = str(step.get("replacement", "▁"))
    elif kind == "Replace":
        pattern = step.get("pattern")
        old, new = str(pattern.get("String", "") if isinstance(pattern, Mapping) else ""), str(step.get("content", ""))
    return [(new.encode(), old.encode())] if old.isspace() and new and not new.isspace() else []


def _drops_spaces(step: Step) -> bool:
    return step["type"] in DROPS_SPACES or step.get("behavior") == "Removed"


def _writes_bytes(undo: list[Undo], decoder: list[str], knows: Any) -> bool:
    """Whether words are in GPT-2's alphabet. Steps and vocabulary may disagree; then the vocabulary knows best."""
    space, marks = knows(_CHARACTERS[0x20]) is not None, [each[0].decode() for each in undo if each is not None]
    if None in undo:
        return space or knows("▁") is None
    if marks:
        return space and knows(_CHARACTERS[0x0A]) is not None and all(knows(mark) is None for mark in marks)
    return "ByteLevel" in decoder and space and knows(" ") is None


def _all_bytes(knows: Any) -> bool:
    """Whether there is a token for every byte, though no step speaks of them."""
    return knows("<0x00>") is not None and all(knows(f"<0x{byte:02X}>") is not None for byte in range(256))


def _alphabet() -> dict[int, str]:
    """The character of each byte in GPT-2's alphabet: printable Latin-1 stands for itself, the others follow at 256."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}


_CHARACTERS = _alphabet()
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def _byte_level(data: bytes) -> bytes:
    """A token with characters outside the alphabet is plain text, as it is for the library."""
    try:
        return bytes([_BYTES[character] for character in data.decode("utf-8", "replace")])
    except KeyError:
        return data
