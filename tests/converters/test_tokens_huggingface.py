"""Tiny Hugging Face tokenizers, trained here: our Vocabulary against `tokenizers`, `transformers` and llama.cpp."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens_oracle import (
    llama_tokenizer,
    random_texts,
    without_llama_normalizer_bugs,
    write_files,
    write_vocabulary,
)

from edgellm.converters.tokens import TokenType, Vocabulary, read_gguf, read_huggingface, to_files
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile

tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. I've 123 dogs, he'll have 4567!",
    "def function(x):\n    return x + 1\n\n\tif x > 10:  # why?\n",
    "Äpfel und Öl, déjà vu; пример текста на русском языке; 日本語のテキスト，中文文本。 한국어 텍스트",
    "ภาษาไทย हिन्दी العربية עברית 🚀🙂  ½ ² Ⅷ ١٢٣",
] * 3
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]


def byte_level(folder: Path, **changes: Any) -> dict[str, Any]:
    """The JSON of a byte-level tokenizer of 400 tokens and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return save(folder, {**document, **changes})


def with_scores(folder: Path, **changes: Any) -> dict[str, Any]:
    """The JSON of a Llama-like tokenizer: a BPE vocabulary over ▁-text, and every cut of each token as a merge."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        [text for line in CORPUS for text in line.split()],
        trainers.BpeTrainer(vocab_size=520, special_tokens=special, show_progress=False),
    )
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    vocabulary = document["model"]["vocab"]
    document["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in vocabulary
        if token not in special
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return save(folder, {**document, **changes})


def save(folder: Path, document: dict[str, Any], **config: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return document


def size(document: dict[str, Any]) -> int:
    return len({*document["model"]["vocab"], *(token["content"] for token in document["added_tokens"])})


def agree(folder: Path, vocabulary: Vocabulary, special: list[str], *, differences: int = 0) -> None:
    """The folder's tokenizer, our GGUF in llama.cpp, and our files from that GGUF again give the same ids."""
    path = write_vocabulary(vocabulary, folder / "vocabulary.gguf")
    again = read_gguf(GGUFFile.open(path))
    files = write_files(to_files(again), folder / "again")
    hf = [tokenizers.Tokenizer.from_file(str(where / "tokenizer.json")) for where in (folder, files)]
    wrong = []
    with llama_tokenizer(path) as llama:
        for index, text in enumerate(random_texts(400, special)):
            parse = bool(index % 2)
            ids = llama.whole(text, special=parse)
            for tokenizer in hf:
                tokenizer.encode_special_tokens = not parse
                if text and tokenizer.encode(text).ids != ids:
                    wrong.append((text, tokenizer.encode(text).ids, ids))
    assert len(wrong) <= differences, wrong[:3]


ENDINGS, CL100K_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"
DIGIT = {"type": "Digits", "individual_digits": True}
QWEN2 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SPLITS: dict[str, list[Any]] = {
    "gpt-2": [],
    "smollm": [DIGIT],
    "qwen2": [QWEN2],
    "dbrx": [CL100K_ENDINGS + CL100K],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT],
    "deepseek-v3": [
        r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
        r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ],
}  # fmt: skip


def steps(parts: list[Any], *, use_regex: bool) -> dict[str, Any]:
    """The JSON of a pre-tokenizer: regexes (or whole steps), then ByteLevel."""
    listed = [
        {"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False}
        if isinstance(part, str)
        else part
        for part in parts
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "Sequence", "pretokenizers": [*listed, last]}


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_tokenizers_agree(tmp_path: Path, pre: str) -> None:
    pre_tokenizer = steps(SPLITS[pre], use_regex=pre in ("gpt-2", "smollm"))
    document = byte_level(tmp_path, pre_tokenizer=pre_tokenizer)
    vocabulary = read_huggingface(tmp_path, size(document))
    assert (vocabulary.model, vocabulary.pre, vocabulary.notes) == ("gpt2", pre, ())
    agree(tmp_path, vocabulary, SPECIAL)


def test_sentencepiece_without_its_model_file_agrees(tmp_path: Path) -> None:
    document = with_scores(tmp_path)
    vocabulary = read_huggingface(tmp_path, size(document))
    assert (vocabulary.model, vocabulary.add_space_prefix) == ("llama", True)
    assert vocabulary.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert vocabulary.special["unk"] == 0
    agree(tmp_path, vocabulary, ["<s>", "</s>"])


def test_byte_bpe_that_is_no_sentencepiece_keeps_its_merges(tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document = with_scores(tmp_path, normalizer=replace)
    vocab = document["model"]["vocab"]
    vocab |= {text: len(vocab) + index for index, text in enumerate(["qx", "xz", "qxz"])}
    document["model"]["merges"] += [["q", "x"], ["x", "z"], ["q", "xz"]]
    post = {
        "type": "TemplateProcessing",
        "single": [special_token("<s>"), sequence("A")],
        "pair": [sequence("A"), sequence("B")],
    }
    post["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    save(tmp_path, {**document, "post_processor": post}, bos_token="<s>")
    vocabulary = read_huggingface(tmp_path, size(document))
    assert (vocabulary.model, vocabulary.add_bos) == ("gemma4", True)
    agree(tmp_path, vocabulary, ["<s>", "qxz", "xzqxz"])
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    save(tmp_path, {**document, "normalizer": prepend})
    with pytest.raises(Unsupported, match=r"no SentencePiece vocabulary, as .*there is no such merge"):
        read_huggingface(tmp_path, size(document))


def special_token(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def wordpiece(folder: Path) -> dict[str, Any]:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(CORPUS, vocab_size=400, show_progress=False)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    cls, sep = (document["model"]["vocab"][text] for text in ("[CLS]", "[SEP]"))
    document["post_processor"] = {"type": "BertProcessing", "cls": ["[CLS]", cls], "sep": ["[SEP]", sep]}
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    return save(folder, document, **names)


def test_a_wordpiece_tokenizer_agrees(tmp_path: Path) -> None:
    document = wordpiece(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "type_vocab_size": 3}')
    vocabulary = read_huggingface(tmp_path, size(document))
    assert vocabulary.model == "bert"
    assert vocabulary.token_type_count == 3
    assert vocabulary.special["bos"] == vocabulary.special["cls"] == vocabulary.tokens.index("[CLS]")
    path = write_vocabulary(vocabulary, tmp_path / "vocabulary.gguf")
    hf = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    files = write_files(to_files(read_gguf(GGUFFile.open(path))), tmp_path / "again")
    again = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
    with llama_tokenizer(path) as llama:
        for text in [
            "The Quick, brown fox's dogs!",
            "Äpfel déjà vu",
            "日本語 中文",
            "xyzzy [MASK] \t 123",
            "пример 🚀",
        ]:
            assert hf.encode(text).ids == again.encode(text).ids == llama.whole(text, special=True), text


def test_merges_of_both_spellings_and_with_spaces(tmp_path: Path) -> None:
    document = byte_level(tmp_path)
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in document["model"]["merges"]]
    read = []
    for merges in (pairs, [" ".join(pair) for pair in pairs]):
        document["model"]["merges"] = merges
        save(tmp_path, document)
        read.append(read_huggingface(tmp_path, size(document)).merges)
    assert read[0] == read[1] == [" ".join(pair) for pair in pairs]
    vocab = document["model"]["vocab"]
    vocab |= {" ": len(vocab), " a": len(vocab) + 1}
    save(tmp_path, {**document, "model": {**document["model"], "merges": [[" ", "a"]]}})
    assert read_huggingface(tmp_path, size(document)).merges == ["Ġ a"]


def test_padding_and_tokens_beyond_the_embedding(tmp_path: Path) -> None:
    document = byte_level(tmp_path)
    count = size(document)
    padded = read_huggingface(tmp_path, count + 2)
    assert padded.tokens[count:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    assert padded.types[count:] == [TokenType.UNUSED] * 2
    with pytest.raises(InvalidModelFile, match=f"{count} tokens, the model's embedding {count - 1} rows"):
        read_huggingface(tmp_path, count - 1)
    document["added_tokens"].append({"id": count, "content": "<image>", "special": True})
    save(tmp_path, document)
    cut = read_huggingface(tmp_path, count)
    assert "<image>" not in cut.tokens
    assert any("'<image>'" in note for note in cut.notes)


def test_added_tokens_and_their_types(tmp_path: Path) -> None:
    document = byte_level(tmp_path)
    count = size(document)
    document["added_tokens"] += [
        {"id": count, "content": "plain word", "special": False},
        {"id": count + 1, "content": "<|looks|>", "special": False},
        {"id": count + 2, "content": "<s>", "special": True, "rstrip": True},
    ]
    save(tmp_path, document, added_tokens_decoder={str(count + 3): {"content": "<old>", "special": True}})
    vocabulary = read_huggingface(tmp_path, count + 4)
    assert vocabulary.tokens[count:] == ["plain word", "<|looks|>", "<s>", "<old>"]
    kinds = [TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL]
    assert vocabulary.types[count:] == kinds
    assert vocabulary.rstrip == (count + 2,)
    assert any("'<s>'" in note and "spaces" in note for note in vocabulary.notes)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token": "<|turn|>"}, [1, 2], {"eos": 2, "eot": 1}),
        ({"eos_token": {"content": "<|end|>"}}, [1, 2, 3], {"eos": 1, "eot": 2, "eom": 3}),
        ({}, [2, 1], {"eos": 2, "eot": 1}),
        ({"eos_token": "<|end|>"}, 2, {"eos": 1, "eot": 2}),
        ({"eos_token": "<|end|>"}, 1, {"eos": 1}),
    ],
)
def test_several_ends(tmp_path: Path, config: dict[str, Any], generation: Any, expected: dict[str, int]) -> None:
    document = byte_level(tmp_path)
    text = next(text for text, number in document["model"]["vocab"].items() if number == 3)
    del document["model"]["vocab"][text]
    document["model"]["vocab"]["<|eom_id|>"] = 3
    document["model"]["merges"] = []
    save(tmp_path, document, bos_token="<|begin|>", **config)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    vocabulary = read_huggingface(tmp_path, size(document))
    assert vocabulary.special == {"bos": 0, **expected}
    again = write_files(to_files(vocabulary), tmp_path / "again")
    assert read_huggingface(again, size(document)).special == vocabulary.special


@pytest.mark.parametrize("stated", [None, False, True])
@pytest.mark.parametrize("template", [False, True])
def test_bos_is_added_as_the_config_or_else_the_template_says(
    tmp_path: Path, stated: bool | None, template: bool
) -> None:
    document = byte_level(tmp_path)
    single = [special_token("<|begin|>"), sequence("A"), special_token("<|end|>")]
    if template:
        document["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    stated_key = {} if stated is None else {"add_bos_token": stated}
    save(tmp_path, document, bos_token="<|begin|>", eos_token="<|end|>", **stated_key)
    vocabulary = read_huggingface(tmp_path, size(document))
    assert vocabulary.add_bos is (template if stated is None else stated)
    assert vocabulary.add_eos is template


def test_a_template_that_adds_more_than_bos_is_noted(tmp_path: Path) -> None:
    document = byte_level(tmp_path)
    single = [special_token("<|begin|>"), special_token("<|turn|>"), sequence("A")]
    document["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    save(tmp_path, document)
    vocabulary = read_huggingface(tmp_path, size(document))
    assert vocabulary.special["bos"] == 0
    assert any("<|begin|> <|turn|>" in note for note in vocabulary.notes)


def test_chat_templates_and_which_wins(tmp_path: Path) -> None:
    document = byte_level(tmp_path)
    count = size(document)

    def found() -> dict[str, str]:
        return read_huggingface(tmp_path, count).chat_templates

    assert found() == {}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert found() == {"default": "json"}
    save(tmp_path, document, chat_template="text")
    assert found() == {"default": "text"}
    save(tmp_path, document, chat_template=[{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}])
    assert found() == {"default": "a", "rag": "b"}
    (tmp_path / "chat_template.jinja").write_text("jinja ü", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert found() == {"default": "jinja ü", "rag": "b", "tool_use": "tools"}
    vocabulary = read_huggingface(tmp_path, count)
    assert read_gguf(GGUFFile.open(write_vocabulary(vocabulary, tmp_path / "v.gguf"))).chat_templates == found()
    again = write_files(to_files(vocabulary), tmp_path / "again")
    assert read_huggingface(again, count).chat_templates == found()


@pytest.mark.parametrize("build", [byte_level, with_scores])
def test_gguf_and_transformers_hold_the_same_vocabulary(tmp_path: Path, build: Any) -> None:
    document = build(tmp_path)
    save(tmp_path, document, bos_token=document["added_tokens"][1]["content"], add_bos_token=True)
    vocabulary = read_huggingface(tmp_path, size(document) + 1)
    assert read_gguf(GGUFFile.open(write_vocabulary(vocabulary, tmp_path / "v.gguf"))) == with_defaults(vocabulary)
    again = write_files(to_files(vocabulary), tmp_path / "again")
    assert read_huggingface(again, size(document) + 1) == vocabulary


def with_defaults(vocabulary: Vocabulary) -> Vocabulary:
    from dataclasses import replace

    assumed = {"bos": 1, "eos": 2, "unk": 0} if vocabulary.model == "llama" else {}
    return replace(vocabulary, special={**assumed, **vocabulary.special})


def qwen2(folder: Path) -> dict[str, Any]:
    return byte_level(folder, pre_tokenizer=steps([QWEN2], use_regex=False))


@pytest.mark.parametrize(
    ("build", "model_type"),
    [
        (byte_level, "llama"),
        (byte_level, "gpt2"),
        (qwen2, "qwen2"),
        (with_scores, "llama"),
        (with_scores, "gemma3_text"),
    ],
)
def test_transformers_reads_the_files_for_every_kind_of_model(tmp_path: Path, build: Any, model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    document = build(tmp_path)
    bos = document["added_tokens"][1]["content"]
    save(tmp_path, document, bos_token=bos, eos_token=document["added_tokens"][2]["content"], add_bos_token=True)
    vocabulary = read_huggingface(tmp_path, size(document))
    files = write_files(to_files(vocabulary), tmp_path / "again")
    (files / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == (bos, 2)
    path = write_vocabulary(vocabulary, tmp_path / "v.gguf")
    with llama_tokenizer(path) as llama:
        for text in random_texts(100, [bos]):
            text = unicodedata.normalize("NFC", text)  # transformers does so for Qwen, whatever the files say
            assert tokenizer(text).input_ids == llama.whole(text, special=True), text


def test_transformers_reads_the_files_of_a_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    document = wordpiece(tmp_path)
    files = write_files(to_files(read_huggingface(tmp_path, size(document))), tmp_path / "again")
    (files / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    expected = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in CORPUS:
        assert tokenizer(text).input_ids == expected.encode(text).ids


def test_minilm_agrees(minilm_folder: Path, tmp_path: Path) -> None:
    vocabulary = read_huggingface(minilm_folder, 30522)
    assert vocabulary.token_type_count == 2
    hf = tokenizers.Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    hf.no_truncation()
    hf.no_padding()
    with llama_tokenizer(write_vocabulary(vocabulary, tmp_path / "v.gguf")) as llama:
        for text in map(without_llama_normalizer_bugs, [*CORPUS[:4], *random_texts(300)]):
            assert llama.whole(text, special=True) == hf.encode(text).ids, text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer .*Lowercase"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip"}]}}, "normalizer .*Strip"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "space before every text"),
        ({"pre_tokenizer": steps([r"[a-z]+"], use_regex=False)}, r"\[a-z\]\+.*--pre NAME"),
        ({"post_processor": {"type": "Strange"}}, "post-processor 'Strange'"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ],
)
def test_what_llama_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    byte_level(tmp_path, **changes)
    with pytest.raises(Unsupported, match=complaint):
        read_huggingface(tmp_path, 1000)


def test_pre_overrides_the_structure_and_nfc_is_noted(tmp_path: Path) -> None:
    pre_tokenizer = steps([r"[a-z]+"], use_regex=False)
    document = byte_level(tmp_path, pre_tokenizer=pre_tokenizer, normalizer={"type": "NFC"})
    vocabulary = read_huggingface(tmp_path, size(document), pre="bloom")
    assert vocabulary.pre == "bloom"
    assert any("NFC" in note for note in vocabulary.notes)
    with pytest.raises(Unsupported, match="'bloom'"):
        to_files(vocabulary)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"version": "1.0"}', "no 'model'"),
        ('{"model": {"type": "BPE", "vocab": [], "merges": []}}', "does not map tokens to ids"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}', "same id"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}', "not of tokens"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}', "not a merge"),
        ("[" * 100_000, "not JSON"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "byte_fallback": true}, "normalizer": 3}',
            "3 where a step belongs",
        ),
        (json.dumps({"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": BYTE_LEVEL, "added_tokens": [4]}), "form"),
    ],
)
def test_damaged_files_are_typed_errors(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidModelFile, match=complaint):
        read_huggingface(tmp_path, 10)


def test_a_folder_without_tokenizer_and_a_token_twice(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFile, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read_huggingface(tmp_path, 10)
    document = byte_level(tmp_path)
    document["added_tokens"].append({"id": 450, "content": "<|end|>", "special": True})
    save(tmp_path, document)
    with pytest.raises(InvalidModelFile, match="two ids"):
        read_huggingface(tmp_path, 500)


@given(data=st.data())
def test_a_wrong_value_is_read_or_is_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "wrong"
    document = json.loads(SMALL)
    where = [document]
    while True:
        node = where[-1]
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not node[key] or not isinstance(node[key], (dict, list)) or data.draw(st.booleans()):
            break
        where.append(node[key])
    node[key] = data.draw(st.sampled_from([None, True, -1, 3, 1.5, "", "a", "\ud800", [], [1], {}, {"type": "Split"}]))
    save(folder, document, bos_token="<s>")
    try:
        vocabulary = read_huggingface(folder, 6)
    except (InvalidModelFile, Unsupported):
        return
    write_vocabulary(vocabulary, folder / "v.gguf")


SMALL = json.dumps(
    {
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}]},
        "decoder": {"type": "ByteLevel"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        },
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    }
)
