"""What a refusal of llama.cpp says: the reason, and it leads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import Tiny, tiny

import edgellm
from edgellm.backends.llamacpp.reason import reason, refusal
from edgellm.converters import ConvertParams, convert
from edgellm.errors import EdgeLLMError, ModelLoadError, UnsafeModel, UnsupportedArchitecture
from edgellm.formats.ggml_types import GGMLType

DUMP = [
    "llama_model_loader: loaded meta data with 20 key-value pairs and 21 tensors from m.gguf (version GGUF V3)",
    "llama_model_loader: - kv   1:    general.description str              = not an error: it failed to be invalid",
    "llama_model_loader: - type  f32:   14 tensors",
    "print_info: general.name     = error loading model: nothing is unknown",
    "load: control token:      2 '</s>' is not marked as EOG",
    "create_tensor: loading tensor blk.0.fail.weight",
    "load_tensors: layer   0 assigned to device CPU, is_swa = 0",
]
END = "llama_model_load_from_file_impl: failed to load model"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([*DUMP, "llama_model_load: error loading model: no such key", END], "no such key"),
        (["x: failed to allocate", *DUMP, "f: error loading model: no room", END], "no room; failed to allocate"),
        ([*DUMP, "gguf_init: tensor 'a' has invalid n_dims: 9", END], "tensor 'a' has invalid n_dims: 9"),
        ([*DUMP, "/tmp/b/src/model.cpp:13: GGML_ASSERT(n > 0) failed"], "model.cpp:13: GGML_ASSERT(n > 0) failed"),
        ([*DUMP, "C:\\b\\src\\ops.cpp:7: unsupported types: bf16"], "ops.cpp:7: unsupported types: bf16"),
        ([*DUMP, "what happened"], "what happened"),
        ([*DUMP, "a: error 1", "error 1", "error 2", "error 3"], "error 1; error 2; error 3"),
        (["", "  ", END], ""),
    ],
)  # fmt: skip
def test_the_lines_that_explain(lines: list[str], expected: str) -> None:
    assert reason(lines) == expected


def test_a_line_of_the_file_is_cut() -> None:
    assert len(reason([f"error: {'x' * 10_000}"])) <= 400


def test_no_reason_is_said_too() -> None:
    assert "gave no reason" in str(refusal("m.gguf", "refused the file", ""))
    assert isinstance(refusal("m.gguf", "refused the file", "unknown model architecture: 'x'"), UnsupportedArchitecture)


def lacking(name: str) -> Tiny:
    model = tiny("llama")
    del model.tensors[name]
    return model


def with_keys(**values: object) -> Tiny:
    model = tiny("llama")
    model.metadata |= {name.replace("__", "."): value for name, value in values.items()}
    model.metadata["general.description"] = "An error that failed: not valid, unknown.\n" * 30
    return model


def wide() -> Tiny:
    model = tiny("llama")
    model.tensors["blk.0.ffn_norm.weight"] = ((32,), GGMLType.F32, np.ones(32, np.float32))
    return model


DAMAGED = {
    "a tensor missing": (lambda: lacking("blk.1.ffn_norm.weight"), "tensor 'blk.1.ffn_norm.weight' not found"),
    "a tensor of another shape": (wide, "tensor 'blk.0.ffn_norm.weight' has wrong shape"),
    "a number as a text": (
        lambda: with_keys(llama__rope__freq_base="x"),
        "error loading model hyperparameters: key llama.rope.freq_base has wrong type str",
    ),
    "another family": (
        lambda: with_keys(general__architecture="new", new__context_length=64),
        "unknown model architecture: 'new'",
    ),
    "few types of tokens": (
        lambda: with_keys(tokenizer__ggml__token_type=np.ones(5, np.int32)),
        "error loading model vocabulary",
    ),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("what", DAMAGED)
def test_the_reason_leads(what: str, trust: bool, tmp_path: Path) -> None:
    """In this process and from the child alike."""
    made, words = DAMAGED[what]
    path = made().write(tmp_path / "m.gguf")
    with pytest.raises(EdgeLLMError) as caught:
        edgellm.load(path, trust=trust, ctx=64)
    assert isinstance(caught.value, (ModelLoadError, UnsupportedArchitecture))
    said = re.sub(r"^llama\.cpp refused the (file|vocabulary): ", "", str(caught.value).removeprefix(f"{path}: "))
    assert said.startswith(words)
    assert "\n" not in said
    assert "description" not in said


def test_a_crash_says_its_last_words(tmp_path: Path) -> None:
    path = with_keys(llama__nextn_predict_layers=9).write(tmp_path / "m.gguf")
    with pytest.raises(
        UnsafeModel, match=r"crashed a child process \(\w+; its last words: llama-model.cpp:\d+: GGML_ASSERT"
    ):
        edgellm.load(path, ctx=64)


def test_words_in_another_encoding_keep_nothing_from_running(tmp_path: Path) -> None:
    model = tiny("llama")
    for key in ("general.name", "general.description", "general.author", "general.license", "general.url"):
        model.metadata[key] = "Modell GRUEN"
    model.metadata["general.tags"] = ["GRUEN", "b"]
    path = model.write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"GRUEN", b"gr\xfc\xdfe"))
    info = edgellm.inspect(path)
    assert (info.name, info.license) == ("Modell gr\ufffd\ufffde",) * 2
    with edgellm.load(path, ctx=64) as loaded:
        assert loaded.generate("hello", max_tokens=2).usage.completion_tokens == 2
    made = convert(path, tmp_path / "again.gguf", ConvertParams(quant="q8_0"))
    assert edgellm.inspect(made.path).name == info.name
