"""tokenizer.model: the protobuf, written here field by field."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens_oracle import llama_tokenizer, random_texts, write_vocabulary

from edgellm.converters.tokens import TokenType, read_huggingface
from edgellm.converters.tokens.sentencepiece import read_sentencepiece
from edgellm.errors import InvalidModelFile, Unsupported

Piece = tuple[str, float, int]
BYTES: list[Piece] = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
START: list[Piece] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES]
WORDS = ["▁t", "he", "▁the", "in", "er", "qu", "ic", "ick", "▁▁", "▁quick"]
PIECES = [*START, *((text, -float(rank), 1) for rank, text in enumerate([*WORDS, "▁", *map(chr, range(97, 123))]))]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces: Iterable[Piece] = PIECES, trainer: bytes = field(3, 2), normalizer: bytes = field(4, 0)) -> bytes:
    listed = [field(1, text.encode()) + field(2, score) + field(3, kind) for text, score, kind in pieces]
    return b"".join(field(1, piece) for piece in listed) + field(2, trainer) + field(3, normalizer)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_pieces_scores_types_and_ids(tmp_path: Path) -> None:
    trainer = field(3, 2) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)
    read = read_sentencepiece(write(tmp_path / "tokenizer.model", model(trainer=trainer)))
    assert read.tokens == dict(enumerate(text for text, _, _ in PIECES))
    assert read.scores == dict(enumerate(score for _, score, _ in PIECES))
    assert read.types == dict(enumerate(kind for _, _, kind in PIECES))
    assert read.special == {"unk": 0, "bos": 1, "eos": 2}
    assert read.add_space_prefix
    plain = model(normalizer=field(3, 0) + field(4, 0))
    assert not read_sentencepiece(write(tmp_path / "tokenizer.model", plain)).add_space_prefix


def test_a_folder_with_a_model_file_only_agrees_with_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    write(tmp_path / "tokenizer.model", model())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": len(PIECES)}))
    vocabulary = read_huggingface(tmp_path, len(PIECES) + 2)
    assert vocabulary.types[len(PIECES) :] == [TokenType.USER_DEFINED, TokenType.UNUSED]
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, True)
    vocab = {text: index for index, text in enumerate(vocabulary.tokens)}
    merges = [
        (text[:cut], text[cut:])
        for text in WORDS
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    bpe = tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    oracle = tokenizers.Tokenizer(bpe)
    oracle.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    oracle.add_tokens([tokenizers.AddedToken("<extra>", normalized=False)])
    with llama_tokenizer(write_vocabulary(vocabulary, tmp_path / "v.gguf")) as llama:
        for text in [*random_texts(300, ["<extra>"]), "the quick  quicker in the queue"]:
            assert llama.encode(text) == oracle.encode(text).ids, text


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (model(trainer=b""), "type 1"),
        (model(trainer=field(3, 4)), "type 4"),
        (model(normalizer=b""), "removes extra spaces"),
        (model(normalizer=field(2, b"table") + field(4, 0)), "normalizes texts by a table"),
    ],
)
def test_what_llama_cannot_do_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(Unsupported, match=complaint):
        read_sentencepiece(write(tmp_path / "tokenizer.model", data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        model()[:-1],
        model()[: len(model()) // 2],
        b"\xff" * 30,
        field(1, 7),
        field(1, field(1, 7)),
        field(1, field(1, b"\xff")),
        field(1, field(3, 9)),
        field(1, field(2, b"long score")),
        varint(1 << 3 | 2) + varint(1 << 62),
    ],
)
def test_damaged_models_are_typed_errors(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidModelFile, match="fetch or convert it again"):
        read_sentencepiece(write(tmp_path / "tokenizer.model", data))


@given(at=st.integers(0, len(model()) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_a_typed_error(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    data = bytearray(model())
    data[at] = value
    path = write(tmp_path_factory.getbasetemp() / "changed.model", bytes(data))
    try:
        read = read_sentencepiece(path)
    except (InvalidModelFile, Unsupported):
        return
    assert len(read.tokens) == len(read.scores) == len(read.types)
