"""What one token of a tokenizer.json stands for, from the file's decoder.

A decoder of the `tokenizers` library works on a whole list of tokens; here each of its steps is taken on one token
alone, so that an answer can be shown as it grows. What only looks at the ends of a text (Strip, Fuse, the space that
Metaspace and WordPiece leave out in front) is not done: a streamed text may have one space more in front.

Steps, as https://huggingface.co/docs/tokenizers/api/decoders names them:

    ByteLevel      GPT-2's alphabet: one character per byte
    Metaspace      a replacement character (▁) for the space          Replace        any text for any other
    ByteFallback   <0x0A> is the byte 10                              WordPiece      ##x continues a word
    BPEDecoder     a suffix (</w>) ends a word
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from edgellm.errors import InvalidModelFile, Unsupported

Piece = Callable[[str], bytes]
IGNORED = ("Fuse", "Strip", "ByteFallback")
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def piece_of(decoder: Mapping[str, Any] | None, where: str) -> Piece:
    """The function from a token's text to its bytes. `where` names the file in messages.

    Raises Unsupported for a decoder that is not known here, InvalidModelFile for one that is broken.
    """
    steps = _flat(decoder, where)
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return _byte_level
    replacements = [pair for step in steps if (pair := _replacement(step, where))]
    fallback = "ByteFallback" in kinds
    word_piece = next((str(step.get("prefix", "##")) for step in steps if step["type"] == "WordPiece"), None)
    for kind in kinds:
        if kind not in (*IGNORED, "Metaspace", "Replace", "WordPiece", "BPEDecoder"):
            raise Unsupported(f"{where}: the decoder {kind!r} is not one that edgellm knows; export the model anew")

    def piece(token: str) -> bytes:
        if fallback and (match := BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        if word_piece is not None:
            token = token[len(word_piece) :] if token.startswith(word_piece) else f" {token}"
        return token.encode("utf-8", "replace")

    return piece


def _flat(decoder: Mapping[str, Any] | None, where: str) -> list[Mapping[str, Any]]:
    """The steps of a decoder; those of a Sequence, one level deep."""
    if decoder is None:
        return []
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) and "type" in step for step in steps):
        raise InvalidModelFile(f"{where}: the decoder is not one; fetch or write the file again")
    return steps


def _replacement(step: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """What a step replaces in every token, and by what."""
    kind = step["type"]
    if kind == "Metaspace":
        return str(step.get("replacement", "▁")), " "
    if kind == "BPEDecoder":
        return str(step.get("suffix", "</w>")), " "
    if kind != "Replace":
        return None
    pattern = step.get("pattern")
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if not isinstance(text, str) or not text:
        raise Unsupported(f"{where}: a decoder that replaces by a regular expression; export the model anew")
    return text, str(step.get("content", ""))


def _alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet: printable Latin-1 stands for itself, the others follow at 256."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


_BYTES = _alphabet()


def _byte_level(token: str) -> bytes:
    """A token with characters outside the alphabet is plain text, as it is for the library."""
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode("utf-8", "replace")
