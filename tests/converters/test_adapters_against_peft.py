"""Adapters of every kind that are merged, against peft: its logits with the adapter, and the weights that it merges."""

from __future__ import annotations

import json
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, atol, logits, whole
from hf_models import write_tokenizer, write_weights
from numpy.typing import NDArray

import edgellm
from edgellm.backends.base import Step
from edgellm.converters import ConvertParams, Model, convert, read

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
CLOSE = 1e-3
IDS = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2}
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
PATTERNS = {"rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\.down_proj": 3}, "alpha_pattern": {"v_proj": 40}}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": LLAMA}),
    "rslora": ("qwen2", {"target_modules": LLAMA, "use_rslora": True}),
    "patterns": ("llama-heads", {"target_modules": LLAMA, **PATTERNS}),
    "all linear": ("qwen3", {"target_modules": "all-linear"}),
    "biases of all": ("llama-tied-biases", {"target_modules": ["q_proj", "down_proj"], "bias": "all"}),
    "biases of lora": ("llama-tied-biases", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    "lora bias": ("llama-tied-biases", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "dora": ("llama", {"target_modules": LLAMA, "use_dora": True}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2 dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "phi3": ("phi3", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
    "neox": ("gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    "gemma3": ("gemma3", {"target_modules": LLAMA, "modules_to_save": ["input_layernorm", "norm"]}),
    "whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "untied by lora": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"]}),
    "untied by head": ("smollm3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied": ("qwen2", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "gemma tied": ("gemma2", {"target_modules": ["embed_tokens", "o_proj"], "ensure_weight_tying": True}),
    "untied gemma3": ("gemma3", {"target_modules": ["lm_head", "q_proj"]}),
    "untied gpt2": ("gpt2", {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}),
    "mixtral": ("mixtral", {"target_modules": ["q_proj", "v_proj"], "target_parameters": EXPERTS}),
    "qwen3moe": ("qwen3moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS[:2]}),
}


def _model(name: str, folder: Path) -> Any:
    """A random model, saved with a tokenizer."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**deepcopy(CONFIGS[name]))  # which it changes
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        parameter.data = (parameter.data if parameter.dim() == 1 else 0.0) + scale * torch.randn_like(parameter)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | IDS))
    write_tokenizer(folder, config)
    return model


def _adapt(model: Any, folder: Path, **options: Any) -> Any:
    """The model with a random adapter, which is saved."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 10, **options})).eval()
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn_like(parameter))  # where it lies: some are views of others
        elif parameter.requires_grad:
            parameter.data = parameter.data + 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted


def _filled(name: str, merged: Model, tmp_path: Path) -> Any:
    """What transformers makes of the merged tensors."""
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(merged.config)))
    write_weights(folder / "model.safetensors", {key: whole(t) for key, t in merged.tensors.items()}, "F32")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def _logits(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["lora", "rslora", "patterns", "all linear", "gpt2", "phi3", "neox"])
def test_logits_at_run_time(case: str, tmp_path: Path) -> None:
    """Of the model with its adapter beside it, in llama.cpp."""
    name, options = CASES[case]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    expected = _logits(_adapt(_model(name, base), adapter, **options))
    path = convert(base, tmp_path / "model.gguf", ConvertParams(quant="f32", verify=False)).path
    with edgellm.load(path, ctx=128, kv_type="f32", adapters=[adapter]) as model:

        def run(backend: Any) -> NDArray[np.float32]:
            sequence = backend.new_sequence()
            sequence.adapter = "adapter"
            return np.array(backend.forward([Step(sequence, TOKENS, "all")])[0])

        found = model._engine.call(run)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol(CONFIGS[name]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = _model(name, base)
    plain = _logits(model)
    expected = _logits(_adapt(model, adapter, **options))
    assert np.abs(expected - plain).max() > 0.05  # the adapter matters

    with closing(read(base, adapters=[(adapter, 1.0)])) as merged:
        again = _logits(_filled(name, merged, tmp_path))
    np.testing.assert_allclose(again, expected, rtol=0, atol=CLOSE)
    convert(base, tmp_path / "model.gguf", ConvertParams(quant="f32", adapters=[adapter], verify=False))
    found = logits(tmp_path / "model.gguf", TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol(CONFIGS[name]))
