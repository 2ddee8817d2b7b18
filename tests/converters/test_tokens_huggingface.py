"""What is read of a Hugging Face tokenizer's files, and which of them has the last word; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny
from tiny_tokenizers import byte_level, save, sequence, size, special_token, steps
from tokens_oracle import write_files, write_vocabulary

from edgellm.converters import ConvertParams, convert
from edgellm.converters.tokens import TokenType, read_gguf, read_huggingface, to_files
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


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


@pytest.mark.parametrize("name", ["lowercase", "strip_accents"])
def test_a_flag_of_the_normalizer_is_one(tmp_path: Path, name: str) -> None:
    tiny("bert").write(tmp_path / "bert.gguf")
    convert(tmp_path / "bert.gguf", folder := tmp_path / "bert", ConvertParams(to="safetensors"))
    document = json.loads((folder / "tokenizer.json").read_bytes())
    document["normalizer"][name] = "\ud800"
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InvalidModelFile, match=f"{name} is .*, not true or false"):
        convert(folder, tmp_path / "again.gguf")


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
