"""Texts and tokens there and back, for whatever a tokenizer.json combines, beside the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_characters
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgellm.backends.base import text_of
from edgellm.tokenizers.text import TextTokenizer, open_tokenizer

LETTERS = "abcé漢▁Ġ\n .,'"
TEXTS = st.text(LETTERS.replace("▁", ""), max_size=12)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ADDED = [AddedToken("<s>", special=True), AddedToken("<tool>", special=False, normalized=False)]


def bpe(pieces: list[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    prefix = options.get("continuing_subword_prefix", "")
    tokens = dict.fromkeys(["<unk>", *pieces, *(a + b.removeprefix(prefix) for a, b in merges)])
    return models.BPE({token: at for at, token in enumerate(tokens)}, merges, unk_token="<unk>", **options)


def opened(tokenizer: Tokenizer, folder: Path, config: dict[str, Any] | None = None) -> TextTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return open_tokenizer(folder / "tokenizer.json", config or {})


# Ways to encode that lose nothing: normalizer, pre-tokenizer, model, and whether a space in front of a text is lost

BYTE_LEVEL = bpe(byte_characters(), [("a", "b"), ("Ġ", "a")])
MARKED = bpe([*"▁abcé漢Ġ\n.,'", *BYTES], [("▁", "a"), ("a", "b")])
FALLBACK = bpe(["▁", *"abc", *BYTES], [("▁", "a"), ("a", "b")], byte_fallback=True)
UNIGRAM = models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in "▁abcé漢Ġ\n.,'"), ("▁a", -0.5)], 0, False)
UNIGRAM_BYTES = models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in ["▁", *"abc", *BYTES])], 0, True)
PLAIN = bpe([*LETTERS], [("a", "b"), (" ", "a")])
LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
SPLIT = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]+|\s+"), "isolated")
LOSSLESS: dict[str, tuple[Any, Any, Any, bool]] = {
    "gpt2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False), BYTE_LEVEL, False),
    "roberta": (None, pre_tokenizers.ByteLevel(add_prefix_space=True), BYTE_LEVEL, True),
    "llama3": (
        None,
        pre_tokenizers.Sequence([SPLIT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        BYTE_LEVEL,
        False,
    ),
    "nested": (
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(),
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False, use_regex=False)]
                ),
            ]
        ),
        BYTE_LEVEL,
        False,
    ),
    "byte normalizer": (normalizers.ByteLevel(), None, BYTE_LEVEL, False),
    "byte normalizer in a row": (normalizers.Sequence([normalizers.ByteLevel()]), SPLIT, BYTE_LEVEL, False),
    "llama2": (LLAMA, None, FALLBACK, False),
    "gemma": (normalizers.Replace(" ", "▁"), None, FALLBACK, False),
    "gemma split": (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), FALLBACK, False),
    "another mark": (normalizers.Replace(" ", "Ġ"), None, bpe([*"Ġabcé漢\n.,'"], [("Ġ", "a")]), False),
    "metaspace first": (None, pre_tokenizers.Metaspace(prepend_scheme="first"), MARKED, True),
    "metaspace always": (None, pre_tokenizers.Metaspace(prepend_scheme="always"), FALLBACK, True),
    "metaspace never": (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), UNIGRAM, False),
    "unigram": (None, pre_tokenizers.Metaspace(), UNIGRAM, True),
    "unigram bytes": (None, pre_tokenizers.Metaspace(), UNIGRAM_BYTES, True),
    "plain": (None, None, PLAIN, False),
    "plain split": (None, SPLIT, PLAIN, False),
    "prepended": (normalizers.Prepend("."), None, PLAIN, False),
    "plain with marks": (
        None,
        pre_tokenizers.Split(" ", "isolated"),
        bpe([*LETTERS, *(f"##{c}" for c in LETTERS)], [("a", "##b")], continuing_subword_prefix="##"),
        False,
    ),
    "plain with ends": (
        None,
        pre_tokenizers.Split(" ", "isolated"),
        bpe([*LETTERS, *(f"{c}</w>" for c in LETTERS)], [("a", "b</w>")], end_of_word_suffix="</w>"),
        False,
    ),
}
LLAMA_STEPS = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
DECODERS = {
    "none": None,
    "byte level": decoders.ByteLevel(),
    "metaspace": decoders.Metaspace(),
    "llama": decoders.Sequence(LLAMA_STEPS),
    "nested": decoders.Sequence([decoders.Sequence(LLAMA_STEPS[:2]), decoders.Sequence([decoders.Fuse()])]),
    "word piece": decoders.WordPiece(),
    "ends": decoders.BPEDecoder(),
    "regex": decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]),
    "strip": decoders.Strip(" ", 1, 1),
    "fuse": decoders.Fuse(),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("way", LOSSLESS)
def test_a_text_comes_back_whatever_the_decoder_says(way: str, decoder: str, tmp_path: Path) -> None:
    normalizer, pre_tokenizer, model, space_lost = LOSSLESS[way]
    library = Tokenizer(model)
    if normalizer is not None:
        library.normalizer = normalizer
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    if DECODERS[decoder] is not None:
        library.decoder = DECODERS[decoder]
    library.post_processor = processors.ByteLevel(trim_offsets=True)
    library.add_tokens(ADDED)
    tokenizer = opened(library, tmp_path)

    @settings(max_examples=12, derandomize=True)
    @given(st.lists(TEXTS | st.sampled_from(["<s>", "<tool>"]), max_size=4))
    def check(parts: list[str]) -> None:
        if way == "another mark":
            parts = [part.replace("Ġ", "") for part in parts]
        if space_lost:  # a part that begins with a space begins like one without
            parts = [part.lstrip(" ") for part in parts]
        text = "".join(parts)
        shown = text if not space_lost else text.lstrip(" ").replace("<s> ", "<s>").replace("<tool> ", "<tool>")
        tokens = tokenizer.encode(shown, special=True)
        assert text_of(tokenizer, tokens, special=True) == shown
        if tokenizer._first_lead == tokenizer._later_lead:
            assert text_of(tokenizer, tokens) == shown.replace("<s>", "")
        for at in range(len(tokens)):  # in two parts, as an answer behind its prompt
            head, tail = text_of(tokenizer, tokens[:at], special=True), tokens[at:]
            whole = head + text_of(tokenizer, tail, special=True, before=tokens[at - 1] if at else None)
            assert whole == shown or "\ufffd" in whole

    check()


# Ways that lose something: then a text is what the library makes of its tokens

WORDS = bpe([*"abcé漢Ġ▁.,'"], [("a", "b")])
PIECES = {piece: at for at, piece in enumerate(["[UNK]", *"abcé漢.,'", *(f"##{c}" for c in "abcé漢.,'"), "ab"])}
ENDS = bpe([*"abcé漢.,'", *(f"{c}</w>" for c in "abcé漢.,'")], [("a", "b</w>")], end_of_word_suffix="</w>")
LOSSY: dict[str, tuple[Any, Any, Any, Any]] = {
    "bert": (
        normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), models.WordPiece(PIECES, unk_token="[UNK]"),
        decoders.WordPiece(),
    ),
    "bert without cleanup": (
        normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer(),
        models.WordPiece(PIECES, unk_token="[UNK]"), decoders.WordPiece(cleanup=False),
    ),
    "t5": (
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]), UNIGRAM,
        decoders.Metaspace(),
    ),
    "gpt": (
        normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), ENDS, decoders.BPEDecoder("</w>"),
    ),
    "lowercase": (
        normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False), BYTE_LEVEL, decoders.ByteLevel(),
    ),
    "quotes": (
        normalizers.Sequence([normalizers.Replace("''", '"'), normalizers.Replace(" ", "▁")]), None, FALLBACK,
        decoders.Sequence(LLAMA_STEPS[:3]),
    ),
    "word level": (None, pre_tokenizers.Whitespace(), WORDS, None),
    "removed": (None, pre_tokenizers.Split(" ", "removed"), WORDS, None),
    "ctc": (None, pre_tokenizers.WhitespaceSplit(), WORDS, decoders.CTC(pad_token="<pad>", word_delimiter_token=".")),
}  # fmt: skip


@pytest.mark.parametrize("way", LOSSY)
def test_a_text_that_loses_something_is_the_library_s(way: str, tmp_path: Path) -> None:
    normalizer, pre_tokenizer, model, decoder = LOSSY[way]
    library = Tokenizer(model)
    if normalizer is not None:
        library.normalizer = normalizer
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        library.decoder = decoder
    tokenizer = opened(library, tmp_path)

    @settings(max_examples=60, derandomize=True)
    @given(TEXTS)
    def check(text: str) -> None:
        tokens = tokenizer.encode(text)
        if way == "ctc":  # which makes one of two alike
            tokens = [token for at, token in enumerate(tokens) if at == 0 or tokens[at - 1] != token]
        assert text_of(tokenizer, tokens).removeprefix(" ") == library.decode(tokens).removeprefix(" ")

    check()


@pytest.mark.parametrize("decoder", [None, decoders.Metaspace(), decoders.ByteLevel(), decoders.Fuse()])
def test_words_are_told_apart_without_a_decoder_that_fits(decoder: Any, tmp_path: Path) -> None:
    bert = Tokenizer(models.WordPiece(PIECES, unk_token="[UNK]"))
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    gpt = Tokenizer(ENDS)
    gpt.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for library in (bert, gpt):
        if decoder is not None:
            library.decoder = decoder
        tokenizer = opened(library, tmp_path)
        for text in ("abc abab cé", "a", "漢 b", ""):
            tokens = tokenizer.encode(text)
            assert text_of(tokenizer, tokens) == text
            behind = text_of(tokenizer, tokens, before=tokenizer.encode("a")[0])
            assert behind == (f" {text}" if text else "")


def test_clip_s_words(tmp_path: Path) -> None:
    """GPT-2's alphabet and ends of words, with a decoder that knows one of them."""
    characters = byte_characters()
    library = Tokenizer(bpe([*characters, *(f"{c}</w>" for c in characters)], [], end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(r"\w+|[^\s\w]+"), "removed", invert=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    tokenizer = opened(library, tmp_path)
    assert text_of(tokenizer, tokenizer.encode("a  cé 漢")) == "a cé 漢"


def test_a_vocabulary_that_its_steps_do_not_fit(tmp_path: Path) -> None:
    """Answers are read in the alphabet that the vocabulary has, as of files written with another tokenizer's class."""
    library = Tokenizer(BYTE_LEVEL)
    ids = [library.token_to_id(character) for character in ("Ġ", "a", "Ã", "©")]
    for pre_tokenizer, decoder in (
        (pre_tokenizers.Metaspace(), decoders.Metaspace()),
        (pre_tokenizers.Metaspace(), decoders.Sequence(LLAMA_STEPS)),
        (SPLIT, decoders.ByteLevel()),
    ):
        library.pre_tokenizer, library.decoder = pre_tokenizer, decoder
        assert text_of(opened(library, tmp_path), ids, before=ids[1]) == " aé"
    library = Tokenizer(FALLBACK)
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    ids = [library.token_to_id(token) for token in ("▁a", "<0xC3>", "<0xA9>")]
    library.model.byte_fallback = False
    content = json.loads(library.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json", {})
    assert text_of(tokenizer, ids, before=ids[0]).endswith("é")


def test_an_added_token_that_is_looked_for_in_normalized_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(FALLBACK)
    tokenizer.normalizer = LLAMA
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("bac", normalized=True)])
    ours = opened(tokenizer, tmp_path)
    for text in ("a bac", "bac a", "bac", "a bac bac", "abac"):
        tokens = ours.encode(text)
        assert tokens == tokenizer.encode(text).ids
        assert text_of(ours, tokens) == text
    assert ours.added == {"bac": tokenizer.token_to_id("bac")}
