"""Adapters that are damaged, of another model, or say what is not merged: a clear error, and nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import folder_of
from peft_folders import Arrays, adapter_of, lora

from edgellm.converters import ConvertParams, convert, plan
from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported

MODULE = "model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("hostile") / "base", dtype="F32")


def _zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
    ({"peft_type": None}, "peft_type is None"),
    ({"peft_type": ["LORA"]}, "peft_type is"),
    ({"r": None}, "r is None"),
    ({"r": True}, "r is True"),
    ({"r": 0}, "r is 0"),
    ({"r": "8"}, "r is '8'"),
    ({"r": 8}, "have the rank 4, adapter_config.json says 8"),
    ({"rank_pattern": {"q_proj": 16}}, "have the rank 4, adapter_config.json says 16"),
    ({"rank_pattern": [1]}, "rank_pattern is"),
    ({"alpha_pattern": {"q_proj": "a"}}, "alpha_pattern has 'a'"),
    ({"alpha_pattern": {"(": 1}}, "no regular expression"),
    ({"alpha_pattern": {"(a+)+b": 1}}, "may take for ever"),
    ({"alpha_pattern": {".*.*.*.*x": 1}}, "may take for ever"),
    ({"alpha_pattern": {str(i): 1 for i in range(10_001)}}, "at most 10000 patterns"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": 10**400}, "lora_alpha is"),
    ({"lora_alpha": 1e38}, "would be multiplied with 2.5e+37"),
    ({"bias": "some"}, "bias is 'some'"),
    ({"use_dora": "yes"}, "use_dora is 'yes'"),
    ({"use_dora": True}, "has no lora_magnitude_vector"),
    ({"lora_bias": True}, "has other tensors than"),
    ({"init_lora_weights": "pissa_niter_4"}, "base's weights were changed before training"),
    ({"init_lora_weights": "olora"}, "base's weights were changed before training"),
    ({"init_lora_weights": "loftq"}, "base's weights were changed before training"),
    ({"layer_replication": [[0, 1]]}, "'layer_replication' is"),
    ({"trainable_token_indices": [1]}, "'trainable_token_indices' is"),
    ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens' is"),
    ({"megatron_config": {"a": 1}}, "'megatron_config' is"),
    ({"use_qalora": True}, "'use_qalora' is True"),
    ({"something_new": 1}, "'something_new' is 1"),
]


@pytest.mark.parametrize(("config", "told"), CONFIGURATIONS)
def test_configurations(config: dict[str, Any], told: str, base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "adapter", lora(MODULE, 64, 64), **config)
    with pytest.raises((InvalidModelFile, Unsupported)) as caught:
        plan(base, ConvertParams(adapters=[adapter]))
    assert told in str(caught.value)
    assert str(adapter) in str(caught.value)


GOOD = lora(MODULE, 64, 64)
TENSORS: list[tuple[Arrays, dict[str, Any], str]] = [
    ({}, {}, "has no tensors"),
    ({A: GOOD[A]}, {}, "has no lora_B.weight"),
    ({B: GOOD[B]}, {}, "has no lora_A.weight"),
    ({A: GOOD[A], B: _zeros(64, 3)}, {}, "cannot be multiplied"),
    ({A: _zeros(4), B: GOOD[B]}, {}, "cannot be multiplied"),
    ({A: _zeros(4, 65), B: GOOD[B]}, {}, "no weight of that name for 65 numbers in and 64 out"),
    ({A: GOOD[A], B: _zeros(32, 4)}, {}, "no weight of that name for 64 numbers in and 32 out"),
    ({A: np.zeros((4, 64), np.int64), B: GOOD[B]}, {}, "is I64, no weights"),
    (lora("model.layers.9.self_attn.q_proj", 64, 64), {}, "'model.layers.9.self_attn.q_proj', and this llama model"),
    (lora("transformer.h.0.attn.c_attn", 192, 64), {}, "is it another model's adapter?"),
    (lora("model.layers.0.mlp.experts", 64, 64), {}, "is it another model's adapter?"),
    (lora("model.layers.0.input_layernorm", 64, 64), {}, "is it another model's adapter?"),
    (GOOD | {f"{MODULE}.lora_E": _zeros(4, 1)}, {}, "nothing that LoRA or DoRA have"),
    (GOOD | {f"{MODULE}.lora_magnitude_vector": _zeros(64)}, {}, "other tensors than adapter_config.json says"),
    (GOOD | {f"{MODULE}.lora_magnitude_vector": _zeros(32)}, {"use_dora": True}, "(32,) lengths (DoRA) for 64 outputs"),
    (GOOD | {f"{MODULE}.lora_B.bias": _zeros(64)}, {"lora_bias": True}, "has no bias of shape (64,)"),
    (GOOD | {"model.embed_tokens.token_adapter.trainable_tokens_delta": _zeros(1, 64)}, {}, "nothing that LoRA"),
    (GOOD | {"score.weight": _zeros(2, 64)}, {}, "'score.weight' as a whole, which the model has not"),
    (GOOD | {"lm_head.weight": _zeros(300, 64)}, {}, "its vocabulary was changed: resize the model's"),
    (GOOD | {"lm_head.weight": _zeros(271, 32)}, {}, "they are not of the same model"),
    (GOOD | {"model.norm.weight": _zeros(64), "model.norm.base_layer.weight": _zeros(64)}, {}, "is there twice"),
]


@pytest.mark.parametrize(("tensors", "config", "told"), TENSORS)
def test_tensors(tensors: Arrays, config: dict[str, Any], told: str, base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "adapter", tensors, **config)
    with pytest.raises((InvalidModelFile, Unsupported)) as caught:
        plan(base, ConvertParams(adapters=[adapter]))
    assert told in str(caught.value)
    assert str(adapter) in str(caught.value)


@pytest.mark.parametrize("to", ["gguf", "onnx", "safetensors"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_numbers_that_would_spoil_the_model(bad: float, to: Any, base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(
        tmp_path / "adapter", {A: np.full((4, 64), bad, np.float32), B: np.full((64, 4), 9, np.float32)}
    )
    with pytest.raises(InvalidModelFile, match="weights read are NaN, infinite or beyond float32"):
        convert(base, tmp_path / "model", ConvertParams(to=to, adapters=[adapter]))
    assert not (tmp_path / "model").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_output_of_no_length_cannot_be_scaled(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "base", dtype="F32")
    parts = lora("lm_head", 271, 64, dora=True)
    parts["lm_head.lora_B.weight"][:] = 0
    parts["lm_head.weight"] = _zeros(271, 64)
    adapter = adapter_of(tmp_path / "adapter", parts, use_dora=True)
    with pytest.raises(InvalidModelFile, match="all 0 cannot be scaled"):
        convert(folder, tmp_path / "model.gguf", ConvertParams(adapters=[adapter]))


def test_files(base: Path, tmp_path: Path) -> None:
    """What is missing, a pickle, not JSON, not a folder, or a link to nothing."""

    def refused(folder: Path, told: str) -> None:
        with pytest.raises((InvalidModelFile, ModelNotFound, Unsupported)) as caught:
            plan(base, ConvertParams(adapters=[folder]))
        assert told in str(caught.value)
        assert str(folder) in str(caught.value)

    refused(tmp_path / "nothing", "no adapter_config.json; an adapter is a folder that PEFT saved")
    adapter = adapter_of(tmp_path / "adapter", GOOD)
    refused(adapter / "adapter_model.safetensors", "an adapter is a folder that PEFT saved")
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    whole = weights.read_bytes()
    for text in (b"", b"{", b"[]", b"\xff\xfe", b'{"r": 1, "r": 2}', b'{"a":' * 20_000):
        config.write_bytes(text)
        refused(adapter, "adapter_config.json")
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    weights.unlink()
    refused(adapter, "no adapter_model.safetensors; fetch the adapter again")
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x02.")
    refused(adapter, "a pickle, which can run any code")
    weights.symlink_to(tmp_path / "gone")
    refused(adapter, "a link to")
    weights.unlink()
    weights.write_bytes(whole[:-1])
    refused(adapter, "the file")


def test_every_cut_and_many_changed_bytes(base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "adapter", GOOD)
    weights, rng = adapter / "adapter_model.safetensors", np.random.default_rng(5)
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (*range(0, header, 5), header, len(whole) - 4):
        weights.write_bytes(whole[:length])
        with pytest.raises(InvalidModelFile):
            plan(base, ConvertParams(adapters=[adapter]))
    planned = 0
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.integers(0, header)] = rng.integers(0, 256)
        weights.write_bytes(changed)
        with contextlib.suppress(InvalidModelFile, Unsupported):  # and nothing else
            plan(base, ConvertParams(adapters=[adapter]))
            planned += 1
    assert planned < 100
