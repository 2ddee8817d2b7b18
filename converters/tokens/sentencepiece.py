"""tokenizer.model: the protobuf of a SentencePiece model, read without its library.

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 text   2 score f32   3 type (the numbers of TokenType; normal when absent)
    TrainerSpec      3 model_type (1 unigram, the default; 2 BPE)   40 unk_id  41 bos_id  42 eos_id  43 pad_id
    NormalizerSpec   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   (true when absent)

Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.files import read_file
from edgellm.formats.reading import reading

from .vocabulary import TokenType

_BPE = 2
_LARGEST = 256 << 20  # bytes
_IDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}


@dataclass(frozen=True)
class SentencePiece:
    """A BPE model: tokens, scores and types by id, the special ids, and whether a text gets a space in front."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    special: dict[str, int]
    add_space_prefix: bool


def read_sentencepiece(path: Path) -> SentencePiece:
    """Read `tokenizer.model`. Raises InvalidModelFile (damaged), Unsupported (unigram, or it normalizes texts)."""
    try:
        with reading(path):
            raw = read_file(path, _LARGEST)
        return _read(raw, path)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise InvalidModelFile(
            f"{path}: not a SentencePiece model, or a damaged one ({error}); fetch it again"
        ) from None


def _read(data: bytes, path: Path) -> SentencePiece:
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    algorithm, charsmap, prefix, squeeze = 1, False, True, True
    ids = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_message(value)))
            tokens.append(_message(piece.get(1, b"")).decode())
            scores.append(struct.unpack("<f", _message(piece[2]))[0] if 2 in piece else 0.0)
            types.append(int(TokenType(_integer(piece.get(3, 1)))))
        elif number == 2:
            for field, setting in _fields(_message(value)):
                if field == 3:
                    algorithm = _integer(setting)
                elif field in _IDS:
                    ids[_IDS[field]] = _integer(setting)
        elif number == 3:
            spec = dict(_fields(_message(value)))
            charsmap, prefix, squeeze = bool(spec.get(2)), bool(spec.get(3, 1)), bool(spec.get(4, 1))
    if not tokens:
        raise ValueError("no pieces")
    if algorithm != _BPE:
        raise Unsupported(
            f"{path}: a SentencePiece model of type {algorithm} (unigram is 1); only BPE (2) can be converted"
        )
    if charsmap or squeeze:
        what = "normalizes texts by a table" if charsmap else "removes extra spaces"
        raise Unsupported(f"{path}: this SentencePiece model {what}, which llama.cpp's llama vocabulary does not")
    special = {name: number for name, number in ids.items() if 0 <= number < len(tokens)}
    return SentencePiece(tokens, scores, types, special, prefix)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message in order: numbers as int (two's complement of 64 bits), the others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value - (1 << 64) if value >> 63 else value
            continue
        size = {1: 8, 5: 4}.get(wire, -1)
        if wire == 2:
            size, at = _varint(data, at)
        if size < 0 or at + size > len(data):
            raise ValueError(f"field {number} at byte {at} has wire type {wire} or ends outside")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text or message belongs")
    return value


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a text where a number belongs")
    return value
