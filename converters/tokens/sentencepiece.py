"""tokenizer.model: the protobuf of a SentencePiece model, read without its library.

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 text   2 score f32   3 type (the values of TokenType; normal when absent)
    TrainerSpec      3 model_type (1 unigram, the default; 2 BPE)   40 unk_id  41 bos_id  42 eos_id  43 pad_id
    NormalizerSpec   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   (true when absent)

Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from edgellm.errors import Unsupported
from edgellm.formats.mapped import MappedFile
from edgellm.formats.protobuf import Wire, schema, signed

from .vocabulary import BaseVocabulary, TokenType

_BPE = 2
_MODEL = schema("span 1* piece", "span 2 trainer", "span 3 normalizer")
_PIECE = schema("span 1 text", "four 2 score", "varint 3 type")
_TRAINER = schema("varint 3 type", "varint 40 unk", "varint 41 bos", "varint 42 eos", "varint 43 pad")
_NORMALIZER = schema("span 2 charsmap", "varint 3 prefix", "varint 4 squeeze")


def read_sentencepiece(path: Path) -> BaseVocabulary:
    """Read `tokenizer.model`. Raises InvalidModelFile (damaged), Unsupported (unigram, or it normalizes the text)."""
    with closing(MappedFile(path)) as file:
        return _read(Wire(file), file)


def _read(wire: Wire, file: MappedFile) -> BaseVocabulary:
    base = BaseVocabulary("llama", tokens={}, types={}, scores={})
    trainer = {"type": 1, "unk": 0, "bos": 1, "eos": 2, "pad": -1}
    normalizer = {"charsmap": 0, "prefix": 1, "squeeze": 1}
    for part, start, stop in wire.fields(0, file.size, _MODEL):
        if part == "piece":
            _add_piece(base, wire, start, stop)
        elif part == "trainer":
            trainer |= {name: signed(value) for name, value, _ in wire.fields(start, stop, _TRAINER)}
        else:
            for name, value, end in wire.fields(start, stop, _NORMALIZER):
                normalizer[name] = end - value if name == "charsmap" else value
    if not base.tokens:
        raise wire.error("not a SentencePiece model: it has no pieces", 0)
    if trainer["type"] != _BPE:
        raise Unsupported(
            f"{file.path}: a SentencePiece model of type {trainer['type']} (unigram is 1); only BPE (2) can be "
            "converted"
        )
    if normalizer["charsmap"] or normalizer["squeeze"]:
        what = "normalizes texts by a table" if normalizer["charsmap"] else "removes extra spaces"
        raise Unsupported(f"{file.path}: this SentencePiece model {what}, which llama.cpp's llama vocabulary does not")
    base.special = {name: token for name, token in trainer.items() if name != "type" and token in base.tokens}
    base.add_space_prefix = bool(normalizer["prefix"])
    return base


def _add_piece(base: BaseVocabulary, wire: Wire, start: int, stop: int) -> None:
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    for name, value, end in wire.fields(start, stop, _PIECE):
        if name == "text":
            text = wire.text(value, end)
        elif name == "score":
            (score,) = wire.singles(value, end)
        else:
            kind = value
    if not text or kind not in list(TokenType):
        raise wire.error(f"a piece {text!r} of type {kind}", start)
    token = len(base.tokens)
    base.tokens[token], base.types[token] = text, kind
    assert base.scores is not None  # as `_read` made it
    base.scores[token] = score
