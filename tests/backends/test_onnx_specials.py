"""Tokens that mean something to an ONNX model, whichever file says so, beside transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

import edgellm
from edgellm.backends import inspect
from edgellm.errors import InvalidModelFile
from edgellm.formats import onnx_folder as folders
from edgellm.tokenizers.text import TextTokenizer, open_tokenizer

QUIET = edgellm.CacheParams(memory=0, disk=0)
LETTER = tiny_onnx.VOCABULARY["tokenizer.ggml.tokens"].index("h")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx.write_decoder(tmp_path_factory.mktemp("onnx") / "model")


def changed(model: Path, to: Path, *, added: bool = False, processor: Any = None, **files: Any) -> Path:
    """A model with other files beside its graph: NAME=object is written as NAME.json. added: tokenizer.json still says
    which tokens are added ones."""
    shutil.copytree(model / "onnx", to / "onnx")
    library = Tokenizer.from_file(str(model / "tokenizer.json"))
    if processor is not None:
        library.post_processor = processor
    document = json.loads(library.to_str())
    document["added_tokens"] = document["added_tokens"] if added else []
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    files = {"tokenizer": document, "tokenizer_config": {}, **files, "config": {**config, **files.get("config", {})}}
    for name, content in files.items():
        (to / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return to


def tokenizer_of(folder: Path) -> TextTokenizer:
    return open_tokenizer(folder / "tokenizer.json", folders._tokenizer_config(folder))


def entry(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | {
        "special": True,
        **flags,
    }


LISTED = {"0": entry("<|end|>"), "1": entry("<|bos|>"), "2": entry("<|pad|>", special=False)}
DESCRIBED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "texts": {"tokenizer_config": {"bos_token": "<|bos|>", "eos_token": "<|end|>"}},
    "objects": {
        "tokenizer_config": {
            "bos_token": {"__type": "AddedToken", **entry("<|bos|>")},
            "eos_token": {"__type": "AddedToken", **entry("<|end|>", lstrip=True)},
        }
    },
    "a map": {"special_tokens_map": {"bos_token": "<|bos|>", "eos_token": entry("<|end|>")}},
    "a map and others": {
        "tokenizer_config": {"bos_token": "<|pad|>", "eos_token": "<|pad|>"},
        "special_tokens_map": {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"},
    },
    "a list": {"tokenizer_config": {"added_tokens_decoder": LISTED, "bos_token": "<|bos|>", "eos_token": "<|end|>"}},
    "a list before a map": {
        "tokenizer_config": {"added_tokens_decoder": LISTED, "bos_token": "<|bos|>", "eos_token": "<|end|>"},
        "special_tokens_map": {"bos_token": "<|pad|>", "eos_token": "<|pad|>"},
    },
    "a list against tokenizer.json": {
        "added": True,
        "tokenizer_config": {"added_tokens_decoder": {"2": entry("<|pad|>", special=False, rstrip=True)}},
    },
    "a new token": {"tokenizer_config": {"added_tokens_decoder": {str(tiny_onnx.N_VOCAB): entry("<new>")}}},
    "others": {"tokenizer_config": {"additional_special_tokens": ["<|pad|>"], "eos_token": "<|end|>"}},
    "no such text": {"tokenizer_config": {"bos_token": None}},
    "flags": {"tokenizer_config": {"bos_token": "<|bos|>", "eos_token": "<|end|>"}, "added": True},
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_files_say_what_they_say_to_transformers(name: str, model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "m", **DESCRIBED[name])
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folder), tokenizer_of(folder)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for text in ("hello <|end|> world", "<|bos|>hello", "a<|pad|> b<|end|>", "<new>x"):
        tokens = ours.encode(text, special=True)
        assert tokens == theirs(text, add_special_tokens=False).input_ids
        shown = b"".join(ours.piece(token) for token in tokens).decode()
        assert shown == theirs.decode(tokens, skip_special_tokens=True)
        assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids


AROUND: dict[str, tuple[Any, list[int], list[int]]] = {
    "none": (None, [], []),
    "begin": (processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 1)]), [1], []),
    "end": (processors.TemplateProcessing("$A <|end|>", special_tokens=[("<|end|>", 0)]), [], [0]),
    "both": (
        processors.TemplateProcessing(
            "<|bos|> <|pad|> $A <|end|>", special_tokens=[("<|bos|>", 1), ("<|pad|>", 2), ("<|end|>", 0)]
        ),
        [1, 2],
        [0],
    ),
    "roberta": (processors.RobertaProcessing(("<|end|>", 0), ("<|bos|>", 1)), [1], [0]),
    "a row": (
        processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 1)])]
        ),
        [1],
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AROUND)
def test_a_prompt_begins_once_and_does_not_end(name: str, model: Path, tmp_path: Path) -> None:
    """Whatever the tokenizer's post-processor puts around a text, and whatever the template writes."""
    processor, begin, end = AROUND[name]
    template = "{% for m in messages %}<|bos|>{{ m['content'] }}{% endfor %}"
    config = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "chat_template": template}
    folder = changed(model, tmp_path / "m", added=True, processor=processor, tokenizer_config=config)
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folder), tokenizer_of(folder)
    assert [*ours.begin, *ours.encode("hello"), *ours.end] == theirs("hello").input_ids
    assert (list(ours.begin), list(ours.end)) == (begin, end)
    with edgellm.load(folder, ctx=64, cache=QUIET) as opened:
        chat = opened.chat()
        chat.send("hello", max_tokens=1)
        if begin != [1, 2]:
            answer = chat._answers()[0]
            prompt = answer.tokens[: answer.n_prompt]
            assert prompt == theirs.apply_chat_template([{"role": "user", "content": "hello"}]).input_ids
        for text in ("hello", "<|bos|>hello", "\n <|bos|>hello"):
            tokens = opened.encode(text)
            assert tokens.count(1) == (1 if begin or "bos" in text else 0) or begin == [1, 2]
            assert 0 not in tokens


def test_flags_of_the_configuration(model: Path, tmp_path: Path) -> None:
    config = {"add_bos_token": True, "add_eos_token": True}
    ours = tokenizer_of(changed(model, tmp_path / "none", added=True, tokenizer_config=config))
    assert (ours.begin, ours.end) == ((), ())  # there is no such token
    named = {**config, "bos_token": "<|bos|>", "eos_token": "<|end|>"}
    ours = tokenizer_of(changed(model, tmp_path / "both", added=True, tokenizer_config=named))
    assert (ours.begin, ours.end) == ((1,), (0,))
    ours = tokenizer_of(changed(model, tmp_path / "twice", processor=AROUND["both"][0], tokenizer_config=named))
    assert (ours.begin, ours.end) == ((1, 2), (0,))


IDS: dict[str, tuple[dict[str, Any], int | None, int | None, set[int]]] = {
    "nowhere": ({}, None, None, set()),
    "a list of generation": ({"generation_config": {"bos_token_id": 1, "eos_token_id": [5, 6]}}, 1, 5, {5, 6}),
    "the configuration": ({"config": {"bos_token_id": 1, "eos_token_id": 7}}, 1, 7, {7}),
    "a model of parts": ({"config": {"text_config": {"bos_token_id": 1, "eos_token_id": [7, 8]}}}, 1, 7, {7, 8}),
    "genai": ({"genai_config": {"model": {"bos_token_id": 3, "eos_token_id": [4]}}}, 3, 4, {4}),
    "all": (
        {
            "generation_config": {"eos_token_id": 5},
            "config": {"eos_token_id": 6},
            "tokenizer_config": {"eos_token": "h"},
        },
        None,
        LETTER,
        {5, 6, LETTER},
    ),
    "outside": ({"generation_config": {"bos_token_id": 10**6, "eos_token_id": [-1, 10**6, 5]}}, None, 5, {5}),
    "no numbers": ({"generation_config": {"bos_token_id": "1", "eos_token_id": [True, None, 2.0]}}, None, None, set()),
    "outside, and another": (
        {"generation_config": {"eos_token_id": tiny_onnx.N_VOCAB}, "config": {"eos_token_id": 9}}, None, 9, {9},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_ids_that_only_some_file_names(name: str, model: Path, tmp_path: Path) -> None:
    files, bos, eos, stops = IDS[name]
    folder = changed(model, tmp_path / "m", **{"generation_config": {}, **files})
    info = inspect(folder)
    assert (info.bos_id, info.eos_id, info.stop_ids) == (bos, eos, stops)
    with edgellm.load(folder, ctx=64, cache=QUIET) as opened:
        assert opened.info.stop_ids == stops
        for token in stops:
            done = opened.generate("hello", max_tokens=2, temperature=0, logit_bias={token: 1e6})
            assert (done.text, done.finish_reason) == ("", "stop")


def test_a_template_in_a_file_of_its_own(model: Path, tmp_path: Path) -> None:
    folder = changed(
        model, tmp_path / "m", chat_template={"chat_template": "A"}, tokenizer_config={"chat_template": "B"}
    )
    assert inspect(folder).chat_template == "A"
    (folder / "chat_template.jinja").write_text("C", encoding="utf-8")
    assert inspect(folder).chat_template == "C"


@pytest.mark.parametrize("listed", [[{"name": ["default"], "template": "x"}], [{"name": {}}, 5], [], {}, 7, None])
def test_lists_of_templates_that_are_none(listed: Any, model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "m", tokenizer_config={"chat_template": listed})
    assert inspect(folder).chat_template is None


@pytest.mark.parametrize("listed", [[], {"x": entry("a")}, {"1": 3}, {"1": {}}, 5])
def test_lists_of_tokens_that_are_none(listed: Any, model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "m", tokenizer_config={"added_tokens_decoder": listed})
    if not listed:
        assert tokenizer_of(folder).added == {}
        return
    with pytest.raises(InvalidModelFile, match="added_tokens_decoder"):
        inspect(folder)
