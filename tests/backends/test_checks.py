"""The header check: what it calls safe must load in this very process, what it does not know needs a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import Tiny, spm_vocabulary, tiny

import edgellm
from edgellm.architectures import ARCHITECTURES
from edgellm.backends.llamacpp.checks import _PRE_TOKENIZERS, check_header
from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile

BUILDERS = sorted({"mixtral", *(one.gguf for one in ARCHITECTURES)})


def reasons(model: Tiny, folder: Path) -> list[str]:
    with GGUFFile.open(model.write(folder / "model.gguf")) as file:
        return check_header(file)


@pytest.mark.parametrize("arch", BUILDERS)
def test_a_sane_model_of_every_known_architecture_is_safe(tmp_path: Path, arch: str) -> None:
    assert reasons(tiny(arch), tmp_path) == []


def test_real_models_are_safe(smollm2: Path, gemma3: Path) -> None:
    for path in (smollm2, gemma3):
        with GGUFFile.open(path) as file:
            assert check_header(file) == []


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q4_0, GGMLType.Q8_0])
def test_quantized_weights_are_safe(tmp_path: Path, kind: GGMLType) -> None:
    assert reasons(tiny("llama", weights=kind), tmp_path) == []


@pytest.mark.parametrize("pre", sorted(_PRE_TOKENIZERS))
def test_pre_tokenizers_that_are_known_load(tmp_path: Path, pre: str) -> None:
    model = tiny("llama")
    model.metadata["tokenizer.ggml.pre"] = pre
    assert reasons(model, tmp_path) == []
    with edgellm.load(tmp_path / "model.gguf", ctx=64, backend="llamacpp") as loaded:
        assert loaded.decode(loaded.encode("a word, 12 1234")) == "a word, 12 1234"


U32S = [0, 0xFFFFFFFF]
NUMBERS: list[tuple[str, list[Any], str]] = [
    ("block_count", [*U32S, 1, 3, 513, 32768, np.uint64(2), 2.0, "2", None], "block_count|tensor"),
    ("context_length", [*U32S, None], "context_length"),
    ("embedding_length", [*U32S, 63, 128, None], "embedding_length|head|shape"),
    ("feed_forward_length", [*U32S, 64, np.array([128, 128], np.uint32)], "feed_forward|shape"),
    ("attention.head_count", [*U32S, 3, 8, 64], "head"),
    ("attention.head_count_kv", [*U32S, 3, 4], "head|shape"),
    ("attention.layer_norm_rms_epsilon", [-1e-5, 0.0, 1.0, float("nan"), float("inf"), None], "epsilon"),
    ("attention.key_length", [0, 8, 32], "key_length|head"),
    ("attention.value_length", [8, 32], "value_length"),
    ("rope.dimension_count", [0, 1, 7, 32], "rope.dimension_count|rotated"),
    ("rope.freq_base", [0.0, float("nan"), -1.0], "freq_base"),
    ("rope.scaling.type", ["longrope", "su", 4], "scaling.type"),
    ("rope.scaling.factor", [0.0, float("nan")], "scaling.factor"),
    ("expert_count", [0, 1, 4, 0xFFFFFFFF], "expert"),
    ("expert_used_count", [1], "expert_used_count"),
    ("vocab_size", [7, 0xFFFFFFFF], "vocab_size|tokens"),
    ("pooling_type", [1], "pooling_type"),
    ("attention.causal", [False], "causal"),
    ("nextn_predict_layers", [1], "nextn"),
]


@pytest.mark.parametrize(("key", "value", "says"), [(k, v, says) for k, values, says in NUMBERS for v in values])
def test_odd_numbers_need_a_trial(tmp_path: Path, key: str, value: Any, says: str) -> None:
    model = tiny("llama")
    model.metadata[f"llama.{key}"] = value
    if value is None:
        del model.metadata[f"llama.{key}"]
    found = reasons(model, tmp_path)
    assert found
    assert any(word in found[0] for word in says.split("|")), found


@pytest.mark.parametrize("kind", [GGMLType.I8, GGMLType.I32, GGMLType.F64, GGMLType.Q8_1, GGMLType.F32])
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight", "blk.0.attn_norm.weight"])
def test_types_the_engine_does_not_compute_with_need_a_trial(tmp_path: Path, name: str, kind: GGMLType) -> None:
    model = tiny("llama")
    shape, _, _ = model.tensors[name]
    model.tensors[name] = (shape, kind, bytes(kind.nbytes(shape)))
    found = reasons(model, tmp_path)
    assert found == [] if kind is GGMLType.F32 else found == [f"tensor {name} is stored as {kind.name}"]


def drop(name: str) -> Callable[[Tiny], None]:
    return lambda model: model.tensors.pop(name) and None


def put(name: str, *shape: int, kind: GGMLType = GGMLType.F32) -> Callable[[Tiny], None]:
    return lambda model: model.tensors.update({name: (shape, kind, bytes(kind.nbytes(shape)))})


@pytest.mark.parametrize(
    "change",
    [
        drop("output_norm.weight"),
        drop("token_embd.weight"),
        drop("blk.1.attn_k.weight"),
        put("blk.2.attn_norm.weight", 64),
        put("blk.0.attn_sinks.weight", 4),
        put("blk.1.attn_q.bias", 64),
        put("rope_freqs.weight", 9),
        put("rope_freqs.weight", 8, kind=GGMLType.F16),
        put("output_norm.weight", 64, kind=GGMLType.F16),
        put("blk.0.attn_q.weight", 64, 32),
        put("token_embd.weight", 64, 64),
    ],
)
def test_tensors_that_do_not_follow_need_a_trial(tmp_path: Path, change: Callable[[Tiny], None]) -> None:
    model = tiny("llama")
    change(model)
    assert reasons(model, tmp_path)


@pytest.mark.parametrize(
    ("arch", "key", "value"),
    [
        ("gpt2", "gpt2.rope.freq_base", 10000.0),
        ("gpt2", "gpt2.context_length", 513),
        ("gpt2", "gpt2.attention.head_count_kv", 2),
        ("gpt2", "gpt2.attention.key_length", 32),
        ("gptneox", "gptneox.use_parallel_residual", None),
        ("gptneox", "gptneox.rope.dimension_count", 18),
        ("gptneox", "gptneox.rope.dimension_count", 7),
        ("gptneox", "output.weight", None),
        ("qwen3", "qwen3.rope.dimension_count", 8),  # llama.cpp: GGML_ASSERT(n_embd_head == n_rot)
        ("olmo2", "output.weight", None),
        ("gemma2", "output.weight", (271, 64)),
        ("bert", "bert.attention.causal", True),
        ("bert", "bert.pooling_type", 4),
        ("bert", "tokenizer.ggml.token_type_count", 3),
        ("bert", "tokenizer.ggml.model", "gpt2"),
        ("bert", "tokenizer.ggml.token_type", np.array([6] * 271, np.int32)),
        ("bert", "cls.weight", (64, 64)),
        ("phi3", "phi3.rope.scaling.type", "longrope"),
        ("phi3", "rope_factors_long.weight", (8,)),
        ("gemma2", "gemma2.attention.sliding_window", 0),
        ("gemma3", "gemma3.attention.sliding_window_pattern", [True, False, True]),
        ("granite", "granite.logit_scale", None),
    ],
)
def test_what_a_family_cannot_be_needs_a_trial(tmp_path: Path, arch: str, key: str, value: Any) -> None:
    model = tiny(arch)
    assert reasons(model, tmp_path) == []
    if isinstance(value, tuple):
        put(key, *value)(model)
    elif value is None:
        assert model.metadata.pop(key, None) is not None or model.tensors.pop(key)
    else:
        model.metadata[key] = value
    assert reasons(model, tmp_path)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q8_0])
def test_token_types_that_are_not_f32_need_a_trial(tmp_path: Path, kind: GGMLType) -> None:
    model = tiny("bert")
    put("token_types.weight", 2, 64, kind=kind)(model)
    assert reasons(model, tmp_path) == [f"tensor token_types.weight is stored as {kind.name}"]


def test_optional_tensors_are_allowed_where_they_fit(tmp_path: Path) -> None:
    model = tiny("llama")
    model.tensors["rope_freqs.weight"] = ((8,), GGMLType.F32, np.ones(8, np.float32))
    for layer in range(2):
        put(f"blk.{layer}.attn_q.bias", 64)(model)
    drop("output.weight")(model)
    assert reasons(model, tmp_path) == []


def vocabulary(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda meta: meta.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})


def tokens(change: Callable[[list[Any]], list[Any]]) -> Callable[[dict[str, Any]], None]:
    return lambda meta: meta.update({"tokenizer.ggml.tokens": change(list(meta["tokenizer.ggml.tokens"]))})


VOCABULARIES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("llama", vocabulary(model="bert")),
    ("llama", vocabulary(model="no_vocab")),
    ("llama", vocabulary(model="llama")),
    ("gemma3", vocabulary(model="gpt2")),
    ("llama", vocabulary(pre="gemma4")),
    ("llama", vocabulary(tokens=[])),
    ("llama", tokens(lambda t: ["same"] * len(t))),
    ("llama", tokens(lambda t: [*t[:-1], t[0]])),
    ("llama", tokens(lambda t: [*t[:-1], ""])),
    ("llama", tokens(lambda t: [*t[:-1], b"\xff"])),
    ("llama", tokens(lambda t: [*t[:-2], b"\xe4\xb8", b"\xad"])),
    ("llama", tokens(lambda t: [*t[:-1], b"a\0b"])),
    ("llama", tokens(lambda t: t[:-1])),
    ("llama", tokens(lambda t: [*t, "more"])),
    ("llama", tokens(lambda t: [*t[:-1], "x" * (9 << 20)])),
    ("llama", vocabulary(token_type=np.ones(3, np.int32))),
    ("llama", vocabulary(token_type=np.full(271, 6, np.int32))),
    ("llama", vocabulary(scores=np.zeros(3, np.float32))),
    ("llama", vocabulary(merges=["a  b"])),
    ("llama", vocabulary(merges=[" a"])),
    ("llama", vocabulary(merges=np.arange(3, dtype=np.int32))),
    ("llama", lambda meta: meta.pop("tokenizer.ggml.merges")),
    ("llama", lambda meta: meta.pop("tokenizer.ggml.token_type")),
    ("llama", vocabulary(bos_token_id=271)),
    ("llama", vocabulary(bos_token_id=np.int32(1))),
    ("llama", vocabulary(add_bos_token=1)),
    ("llama", vocabulary(suppress_tokens=np.array([1], np.int32))),
    ("gemma3", vocabulary(scores=np.full(len(spm_vocabulary()["tokenizer.ggml.tokens"]), np.nan, np.float32))),
    ("gemma3", lambda meta: meta.pop("tokenizer.ggml.scores")),
    ("gemma3", tokens(lambda t: ["other" if token == "<0x41>" else token for token in t])),
]


@pytest.mark.parametrize(("arch", "change"), VOCABULARIES)
def test_vocabularies_the_tokenizer_cannot_hold_need_a_trial(
    tmp_path: Path, arch: str, change: Callable[[dict[str, Any]], None]
) -> None:
    model = tiny(arch)
    change(model.metadata)
    assert reasons(model, tmp_path)


def test_unknown_architectures_and_keys_need_a_trial(tmp_path: Path) -> None:
    model = tiny("llama")
    model.metadata["general.architecture"] = "falcon"
    assert "falcon" in reasons(model, tmp_path)[0]
    model = tiny("llama")
    model.metadata["general.tensor_extra.name"] = ["a"]
    assert reasons(model, tmp_path)
    model = tiny("llama")
    model.metadata["general.alignment"] = 8
    assert "alignment" in reasons(model, tmp_path)[0]
    model = tiny("llama")
    model.metadata["somebody.else"] = "harmless"
    assert reasons(model, tmp_path) == []


@pytest.mark.parametrize("value", [None, "", 7])
def test_a_file_that_is_no_language_model_is_refused(tmp_path: Path, value: Any) -> None:
    model = tiny("llama")
    model.metadata["general.architecture"] = value
    if value is None:
        del model.metadata["general.architecture"]
    with pytest.raises(InvalidModelFile, match=r"general\.architecture"):
        reasons(model, tmp_path)
    with pytest.raises(InvalidModelFile, match="no tensors"):
        reasons(Tiny({"general.architecture": "llama"}, {}), tmp_path)
