"""Recipes and quantizers against llama.cpp's own `llama_model_quantize`: the type and the bytes of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_quantize import llama_quantize
from numpy.typing import NDArray

from edgellm.converters.quant import ggml
from edgellm.converters.quant.recipes import (
    ALIASES,
    QUANTIZATION_VERSION,
    TARGETS,
    Choice,
    Facts,
    choose,
    quantizable,
    role_of,
    target_of,
)
from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf


@dataclass(frozen=True)
class Model:
    """A GGUF file that has the names and metadata of a model, but rows just wide enough to be quantized."""

    facts: Facts
    weights: Mapping[str, tuple[int, ...]]
    blocks: Mapping[str, tuple[int, ...]]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Not in llama.cpp's order on purpose: its rules must not depend on the order in the file."""
        layers = range(self.facts.n_layer - 1, -1, -1)
        blocks = {f"blk.{i}.{name}": shape for i in layers for name, shape in self.blocks.items()}
        return {**blocks, **self.weights}

    def metadata(self) -> dict[str, Any]:
        facts, arch = self.facts, self.facts.architecture
        experts = {f"{arch}.expert_count": facts.n_expert, f"{arch}.expert_used_count": 2}
        return {
            "general.architecture": arch,
            "tokenizer.ggml.model": "no_vocab",
            f"{arch}.vocab_size": 4,
            f"{arch}.block_count": facts.n_layer,
            f"{arch}.context_length": 64,
            f"{arch}.embedding_length": 256,
            f"{arch}.feed_forward_length": 256,
            f"{arch}.expert_feed_forward_length": 256,
            f"{arch}.attention.head_count": facts.n_head,
            f"{arch}.attention.head_count_kv": facts.n_head_kv,
            f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{arch}.attention.layer_norm_epsilon": 1e-5,
            f"{arch}.attention.sliding_window": 16,
            f"{arch}.attention.causal": False,
            **(experts if facts.n_expert else {}),
        }


def rows(*names: str, columns: int = 256) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (2, columns) for name in names}


ATTENTION = rows("attn_q", "attn_k", "attn_v", "attn_output")
DENSE = {**ATTENTION, **rows("ffn_gate", "ffn_up", "ffn_down"), "attn_norm.weight": (256,), "attn_q.bias": (256,)}
EXPERTS = {
    **ATTENTION,
    **{f"ffn_{role}_exps.weight": (3, 2, 256) for role in ("gate", "up", "down")},
    "ffn_gate_inp.weight": (3, 256),
}
HEADS = rows("token_embd", "output")
TIED = rows("token_embd")

MODELS = {
    "llama": Model(Facts("llama", 17, 4, 2), HEADS, DENSE),
    "grouped": Model(Facts("qwen2", 9, 8, 2), TIED, DENSE),
    "70b": Model(Facts("llama", 80, 8, 4), HEADS, rows("attn_v")),
    "80 layers of qwen2": Model(Facts("qwen2", 80, 4, 4), TIED, rows("attn_v")),
    "80 layers, not 70b": Model(Facts("llama", 80, 4, 4), TIED, rows("attn_v")),
    "mixtral": Model(Facts("llama", 9, 4, 2, n_expert=8), HEADS, EXPERTS),
    "qwen3moe": Model(Facts("qwen3moe", 10, 4, 2, n_expert=3), TIED, EXPERTS),
    "fused": Model(Facts("phi3", 12, 4, 4), HEADS, rows("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "falcon": Model(Facts("falcon", 18, 4, 1), HEADS, rows("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "bert": Model(
        Facts("bert", 8, 4, 4),
        {**TIED, **rows("position_embd", "token_types", "token_embd_norm"), "cls.weight": (1, 256)},
        {**ATTENTION, **rows("ffn_up", "ffn_down")},
    ),
    "rows of 288": Model(
        Facts("llama", 9, 4, 2), rows("token_embd", "output", columns=288), dict.fromkeys(DENSE, (2, 288))
    ),
    "rows of 288, tied": Model(Facts("gemma3", 9, 4, 2), rows("token_embd", columns=288), {"attn_q.weight": (2, 288)}),
    "rows of 48": Model(
        Facts("llama", 3, 4, 2), rows("token_embd", columns=48), rows("attn_v", "ffn_down", columns=48)
    ),
}
KINDS = [name for name, target in TARGETS.items() if target.base is not GGMLType.F32]


class Oracle:
    """What llama.cpp made of every model, target and choice of importance, in one child process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.importance: dict[str, dict[str, NDArray[np.float32]]] = {}
        jobs = []
        for number, (name, model) in enumerate(MODELS.items()):
            rng = np.random.default_rng(number)
            self.values[name], self.importance[name] = {}, {}
            for tensor, shape in model.tensors().items():
                self.values[name][tensor] = rng.standard_normal(shape).astype(np.float32)
                experts = shape[0] if len(shape) == 3 else 1
                square = rng.standard_normal((experts, shape[-1])).astype(np.float32) ** 2
                if quantizable(tensor, shape) and tensor not in ("token_embd.weight", "output.weight"):
                    self.importance[name][tensor] = square
            tensors = [(t, v.shape, GGMLType.F32, v) for t, v in self.values[name].items()]
            write_gguf(folder / f"{number}.gguf", model.metadata(), tensors)
            np.savez(folder / f"{number}.npz", **self.importance[name])  # type: ignore[arg-type]
            for target in KINDS:
                for importance in (False, True):
                    if target == "q2_k_s" and not importance:
                        continue
                    matrix = folder / f"{number}.npz" if importance else None
                    jobs.append((folder / f"{number}.gguf", self.path(name, target, importance), target, matrix))
        llama_quantize(jobs)

    def path(self, name: str, target: str, importance: bool) -> Path:
        return self.folder / f"{list(MODELS).index(name)}-{target}-{importance}.gguf"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"))


def chosen(name: str, target: str, importance: bool) -> list[Choice]:
    model = MODELS[name]
    return choose(target, list(model.tensors().items()), replace(model.facts, has_imatrix=importance))


def stored(choice: Choice, values: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """All rows of a tensor; experts one after the other, each with its importance."""
    parts = values if values.ndim == 3 else values.reshape(1, -1, values.shape[-1])
    weights = [None] * len(parts) if importance is None else list(importance)
    kinds = [ggml.quantize(choice.type, part, weight) for part, weight in zip(parts, weights, strict=True)]
    return np.concatenate(kinds).reshape(-1)


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_types_and_bytes_are_those_of_llama_cpp(oracle: Oracle, name: str, importance: bool) -> None:
    for target in KINDS:
        if target == "q2_k_s" and not importance:
            continue
        file = GGUFFile.open(oracle.path(name, target, importance))
        choices = chosen(name, target, importance)
        ours = {choice.name: choice.type.name for choice in choices}
        assert ours == {tensor: info.type.name for tensor, info in file.tensors.items()}, target
        assert file.metadata["general.file_type"] == TARGETS[target].file_type
        assert file.metadata["general.quantization_version"] == QUANTIZATION_VERSION
        for choice in choices:
            weights = oracle.importance[name].get(choice.name) if importance else None
            expected = file.data(choice.name)
            assert choice.nbytes == len(expected)
            np.testing.assert_array_equal(
                stored(choice, oracle.values[name][choice.name], weights), expected, f"{target} {choice.name}"
            )


def test_the_models_exercise_the_rules() -> None:
    """Types that only one of llama.cpp's special rules gives are there."""
    of = {name: {c.name: c for c in chosen(name, "q4_k_m", False)} for name in MODELS}
    assert {c.type for c in of["llama"].values()} == {GGMLType.F32, GGMLType.Q4_K, GGMLType.Q6_K}
    assert of["grouped"]["token_embd.weight"].type is GGMLType.Q6_K
    assert of["mixtral"]["blk.0.attn_k.weight"].type is GGMLType.Q8_0
    assert of["70b"]["blk.11.attn_v.weight"].type is GGMLType.Q5_K
    assert of["80 layers, not 70b"]["blk.11.attn_v.weight"].type is GGMLType.Q4_K


def test_fallbacks_are_named() -> None:
    of = {c.name: c for c in chosen("rows of 288", "q4_k_m", False)}
    assert (of["blk.1.attn_q.weight"].type, of["blk.1.attn_q.weight"].fallback_from) == (GGMLType.Q5_0, GGMLType.Q4_K)
    assert (of["output.weight"].type, of["output.weight"].fallback_from) == (GGMLType.Q8_0, GGMLType.Q6_K)
    assert of["blk.1.attn_norm.weight"].fallback_from is None
    narrow = {c.name: c for c in chosen("rows of 48", "q8_0", False)}
    assert (narrow["token_embd.weight"].type, narrow["token_embd.weight"].fallback_from) == (
        GGMLType.F16,
        GGMLType.Q8_0,
    )
    assert all(c.fallback_from is None for name in ("llama", "mixtral") for c in chosen(name, "q3_k_l", False))


def test_aliases_case_and_unknown_targets() -> None:
    assert target_of("Q4_K_M") is TARGETS["q4_k_m"]
    assert all(target_of(alias) is TARGETS[name] for alias, name in ALIASES.items())
    with pytest.raises(InvalidParameter, match=r"'iq2_xxs' is not offered.*q4_k_m"):
        target_of("iq2_xxs")


def test_f32_keeps_everything() -> None:
    assert {choice.type for choice in chosen("llama", "f32", False)} == {GGMLType.F32}


def test_a_target_that_needs_importance_says_so() -> None:
    with pytest.raises(InvalidParameter, match=r"q2_k_s needs an importance matrix .*calibrate"):
        chosen("llama", "q2_k_s", False)
    needing = {role_of(choice.name) for choice in chosen("llama", "q2_k_s", True) if choice.needs_importance}
    assert needing == {"v", "k", "q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    assert not any(choice.needs_importance for choice in chosen("llama", "q2_k", True))
