"""Text and tokens through tokenizer.json: against the `tokenizers` library's own decoder, and against llama.cpp."""

from __future__ import annotations

import json
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import tiny_onnx
from tiny_models import byte_characters
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokens_oracle import llama_tokenizer, random_texts, write_files

from edgellm.converters.tokens import read_gguf, to_files
from edgellm.errors import BackendFailed, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.tokenizers.pieces import Spelling
from edgellm.tokenizers.text import TextTokenizer, open_tokenizer

TEXTS = ["hello world", "  two  spaces ", "naïve ☕ 漢字\n\ttab", "", " x", "a<|end|>b"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate([*byte_characters(), "he", "ll"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback() -> Tokenizer:
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "▁h", "he"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "h")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -1.0), *((chr(code), -2.0) for code in range(33, 127)), ("▁hello", -0.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    pieces = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "##ly", *map(chr, range(97, 123))]
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(4)  # as in the files of embedding models
    tokenizer.enable_padding(length=16)
    return tokenizer


KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "metaspace": metaspace, "word piece": word_piece}


def opened(tokenizer: Tokenizer, folder: Path, config: dict[str, Any] | None = None) -> TextTokenizer:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return open_tokenizer(path, config or {})


def joined(tokenizer: TextTokenizer, tokens: list[int], *, special: bool = False) -> str:
    return b"".join(tokenizer.piece(token, special=special) for token in tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_the_library_s_text(kind: str, tmp_path: Path) -> None:
    library = KINDS[kind]()
    tokenizer = opened(library, tmp_path)
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        found, expected = joined(tokenizer, tokens), library.decode(tokens)
        assert found == expected or found == f" {expected}"  # a text begins with the space that ▁ stands for
        if kind == "byte level":
            assert found == text
        elif kind == "byte fallback":
            assert found == (f" {text}" if text else "")
    for token in range(tokenizer.n_vocab):
        expected = library.decode([3, token], skip_special_tokens=False)
        assert joined(tokenizer, [3, token]).strip() == expected.strip() or "\ufffd" in expected


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_control_tokens_in_a_text_are_text(kind: str, tmp_path: Path) -> None:
    library = KINDS[kind]()
    library.add_special_tokens([AddedToken("<|end|>", special=True)])
    library.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer = opened(library, tmp_path)
    end, tool = library.token_to_id("<|end|>"), library.token_to_id("<tool>")
    assert end is not None
    assert tool is not None
    assert end not in tokenizer.encode("a<|end|>b")
    assert joined(tokenizer, tokenizer.encode("a<|end|>b")).strip() == "a<|end|>b"
    assert end in tokenizer.encode("a<|end|>b", special=True)
    assert tokenizer.piece(end) == b""
    assert tokenizer.piece(end, special=True) == b"<|end|>"
    assert tokenizer.piece(tool) == b"<tool>"  # what a user added is text, as in llama.cpp


def test_no_normalizer_makes_a_control_token(tmp_path: Path) -> None:
    """What only becomes its text in small letters, or in another form of Unicode, is text."""
    library = byte_level()
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    library.add_special_tokens([AddedToken("<|end|>", special=True, normalized=True, rstrip=True)])
    end = library.token_to_id("<|end|>")
    texts = ("a<|END|>b", "a＜|end|>b", "a<|end|> b")
    assert [library.encode(text).ids.count(end) for text in texts] == [1, 1, 1]
    tokenizer = opened(library, tmp_path)
    assert [tokenizer.encode(text, special=True).count(end) for text in texts] == [0, 0, 1]
    assert tokenizer.encode(texts[2], special=True) == tokenizer.encode("a<|end|>b", special=True)  # blanks are eaten
    prefixed = byte_fallback()
    prefixed.add_special_tokens([AddedToken("<s>", special=True, normalized=True)])
    ids = prefixed.encode("x <s>", add_special_tokens=False).ids
    assert opened(prefixed, tmp_path).encode("x <s>", special=True) == ids


def test_what_the_model_asks_for_comes_first(tmp_path: Path) -> None:
    fallback = opened(byte_fallback(), tmp_path)
    assert fallback.encode("h", bos=True) == [1, *fallback.encode("h")]
    words = opened(word_piece(), tmp_path)
    assert words.encode("hello worlds", bos=True) == [1, *words.encode("hello worlds")]
    assert words.end == (2,)
    assert len(words.encode("a b c d e f g h")) == 8  # neither cut nor padded
    library = byte_level()
    library.add_special_tokens(["<s>"])
    config = {"bos_token": {"content": "<s>"}, "eos_token": "<none>", "add_bos_token": True}
    level = opened(library, tmp_path, config)
    assert level.bos_id == library.token_to_id("<s>")
    assert level.eos_id is None
    assert level.encode("a", bos=True) == [level.bos_id, *level.encode("a")]
    assert opened(library, tmp_path, {**config, "add_bos_token": False}).encode("a", bos=True) == level.encode("a")


def test_bytes_that_are_half_a_character_stay_bytes(tmp_path: Path) -> None:
    for make in (byte_level, byte_fallback):
        tokenizer = opened(make(), tmp_path)
        pieces = [tokenizer.piece(token) for token in tokenizer.encode("漢")]
        assert b"".join(pieces).lstrip() == "漢".encode()
        assert len(pieces) >= 3


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = opened(byte_level(), tmp_path)
    with pytest.raises(InvalidParameter, match="vocabulary"):
        tokenizer.piece(tokenizer.n_vocab)
    with pytest.raises(InvalidParameter, match="vocabulary"):
        tokenizer.piece(-1)
    last = tokenizer.n_vocab
    tokenizer.widen(last + 10)  # a matrix padded to a round number of rows
    assert tokenizer.piece(last) == b""
    with pytest.raises(InvalidParameter, match="Unicode"):
        tokenizer.encode("\ud800")


def test_a_text_that_the_library_refuses(tmp_path: Path) -> None:
    library = Tokenizer(models.Unigram([("a", -1.0)], unk_id=None))
    tokenizer = opened(library, tmp_path)
    assert tokenizer.encode("aa") == [0, 0]
    with pytest.raises(BackendFailed, match=r"3 characters cannot be tokenized: .*unknown token"):
        tokenizer.encode("aab")
    assert tokenizer.encode("a") == [0]


@pytest.mark.parametrize("run", ["A", " ", "\n", "=", "中", "e\u0301", "1"])
def test_long_runs_of_one_kind_from_a_thread_with_a_small_stack(run: str, tmp_path: Path) -> None:
    tokenizer, found = opened(byte_level(), tmp_path), []
    before = threading.stack_size(128 << 10)
    try:
        thread = threading.Thread(target=lambda: found.append(joined(tokenizer, tokenizer.encode(run * 10000))))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert found == [run * 10000]


def test_half_of_a_surrogate_pair_names_no_token(tmp_path: Path) -> None:
    names = {"bos_token": "\ud800", "eos_token": {"content": "he"}, "additional_special_tokens": ["\udfff"]}
    tokenizer = opened(byte_level(), tmp_path, names)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, tokenizer.id_of("he"))
    assert tokenizer.id_of("\ud800") is None


def test_it_can_be_a_key_and_be_forgotten(tmp_path: Path) -> None:
    tokenizer = opened(byte_level(), tmp_path)
    assert {tokenizer: 1}[tokenizer] == 1
    reference = weakref.ref(tokenizer)
    del tokenizer
    assert reference() is None


def test_threads_do_not_see_each_other_s_wishes(tmp_path: Path) -> None:
    tiny_onnx.write_tokenizer(tmp_path)
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json", {})
    text = "hello<|end|>world " * 20
    expected = {special: tokenizer.encode(text, special=special) for special in (False, True)}
    wrong: list[int] = []

    def check(special: bool) -> None:
        wrong.extend(1 for _ in range(200) if tokenizer.encode(text, special=special) != expected[special])

    threads = [threading.Thread(target=check, args=(special,)) for special in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert expected[True] != expected[False]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"decoder": 3}', '{"model": {"type": "BPE"}}', '{"decoder": [], "model": 1}']
)
def test_files_that_are_no_tokenizer(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidModelFile, match="tokenizer"):
        open_tokenizer(path, {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidModelFile, match="tokenizer"):
        open_tokenizer(path, {})
    with pytest.raises(InvalidModelFile, match="read"):
        open_tokenizer(tmp_path / "none.json", {})


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize("step", [3, {"type": "Sequence"}, {"type": "Sequence", "decoders": [{}]}])
def test_steps_that_are_none(part: str, step: Any) -> None:
    with pytest.raises(InvalidModelFile, match=part):
        Spelling({part: step}, byte_level(), "tokenizer.json")


@pytest.mark.parametrize("model", ["smollm2", "llama-spm"])
def test_real_vocabularies_are_llama_cpp_s(model: str, smollm2: Path, llama_vocabularies: Path, tmp_path: Path) -> None:
    path = smollm2 if model == "smollm2" else llama_vocabularies / f"ggml-vocab-{model}.gguf"
    with GGUFFile.open(path) as file:
        files = to_files(read_gguf(file))
    write_files(files, tmp_path)
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json", json.loads(files["tokenizer_config.json"]))
    chat = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    with llama_tokenizer(path) as theirs:
        for text in random_texts(150, chat, seed=5):
            for special in (False, True):
                found = tokenizer.encode(text, special=special)
                assert found == theirs.encode(text, special=special), (text, special)
            assert tokenizer.encode(text, bos=True) == theirs.encode(text, bos=True)
        assert (tokenizer.begin, tokenizer.end) == (theirs.begin, theirs.end)
        for token in range(tokenizer.n_vocab):
            for special in (False, True):
                assert tokenizer.piece(token, special=special) == theirs.piece(token, special=special), token


def test_a_signal_handler_may_encode_in_the_midst_of_it(tmp_path: Path) -> None:
    made = byte_level()
    made.add_special_tokens(["<|end|>"])
    tokenizer, lines, found = opened(made, tmp_path), 0, list[list[int]]()
    text = "<|end|> or so"
    plain, special = tokenizer.encode(text), tokenizer.encode(text, special=True)
    assert plain != special

    def trace(frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:
        nonlocal lines
        if event == "line":
            sys.settrace(None)
            lines += 1
            assert tokenizer.encode(text, special=True) == special
            sys.settrace(trace)
        return trace if frame.f_code.co_filename.endswith("text.py") else None

    def program() -> None:
        sys.settrace(trace)
        try:
            found.append(tokenizer.encode(text))
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    thread.join(20)
    assert found == [plain]
    assert lines > 5


@pytest.mark.parametrize(
    ("made", "processor", "tokens", "first"),
    [
        (word_piece, None, [1, 5, 2, 6, 7, 2], 3),
        (word_piece, processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1)), [1, 5, 2, 2, 6, 7, 2], 7),
        (
            word_piece,
            processors.TemplateProcessing(
                single="[CLS] $A", pair="[CLS] $A:0 [SEP]:1 $B:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
            ),
            [1, 5, 2, 6, 7],
            2,
        ),
    ],
)
def test_two_texts_are_joined_as_the_file_says(
    tmp_path: Path, made: Callable[[], Tokenizer], processor: Any, tokens: list[int], first: int
) -> None:
    library = made()
    if processor is not None:
        library.post_processor = processor
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json", {})
    assert tokenizer.joined([5], [6, 7]) == (tokens, first)
    library.no_padding()
    library.no_truncation()
    ids = library.encode("hello", "world").ids
    assert tokenizer.joined(tokenizer.encode("hello"), tokenizer.encode("world"))[0] == ids


def test_texts_that_nothing_parts_are_not_joined(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Unsupported, match="nothing between two texts"):
        open_tokenizer(tmp_path / "tokenizer.json", {}).joined([5], [6])
