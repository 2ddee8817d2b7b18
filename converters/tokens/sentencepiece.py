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
from edgellm.formats.protobuf import Wire, schema
from edgellm.tokenizers.vocabulary import BaseVocabulary, TokenType

_BPE = 2
_MODEL = schema("span 1* pieces", "span 2 trainer", "span 3 normalizer")
_PIECE = schema("text 1 text", "float 2 score", "int 3 type 1")
_TRAINER = schema("int 3 type 1", "int 40 unk", "int 41 bos 1", "int 42 eos 2", "int 43 pad -1")
_NORMALIZER = schema("lossy 2 charsmap", "int 3 prefix 1", "int 4 squeeze 1")


def read_sentencepiece(path: Path) -> BaseVocabulary:
    """Read `tokenizer.model`. Raises InvalidModelFile (damaged), Unsupported (unigram, or it normalizes the text)."""
    with closing(MappedFile(path)) as file:
        return _read(Wire(file), file)


def _read(wire: Wire, file: MappedFile) -> BaseVocabulary:
    model = wire.read((0, file.size), _MODEL)
    trainer, normalizer = wire.read(model["trainer"], _TRAINER), wire.read(model["normalizer"], _NORMALIZER)
    pieces = [wire.read(place, _PIECE) for place in model["pieces"]]
    for piece, place in zip(pieces, model["pieces"], strict=True):
        if not piece["text"] or piece["type"] not in list(TokenType):
            raise wire.error(f"a piece {piece['text']!r} of type {piece['type']}", place[0])
    tokens, types, scores = ({i: each[name] for i, each in enumerate(pieces)} for name in ("text", "type", "score"))
    base = BaseVocabulary("llama", tokens=tokens, types=types, scores=scores)
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
