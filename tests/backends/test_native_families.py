"""Each family on edgellm's own engine: its logits against llama.cpp's, of the same file.

In f32 both compute the same, but for the order of sums (and GELU, which llama.cpp looks up in a table of float16).
With quantized weights each rounds activations in its own way, so both are compared with what the file's numbers give
in f32: ours may not be farther off than llama.cpp's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, LONGROPE, atol, checkpoint, convert, dequantized, logits

from edgellm.formats.ggml_types import GGMLType

FAMILIES = (
    "llama", "mistral", "mixtral", "smollm3", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3",
    "granite", "olmo2", "gpt2", "gpt_neox", "starcoder2",
)  # fmt: skip
TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
HEADS_OF_32 = {**LONGROPE, "hidden_size": 128, "partial_rotary_factor": 0.5, "max_position_embeddings": 2048}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: config for name, config in CONFIGS.items() if name.split("-")[0] in FAMILIES and "longrope" not in name},
    "phi3-short": {**HEADS_OF_32, "original_max_position_embeddings": 512},
    "phi3-long": {**HEADS_OF_32, "original_max_position_embeddings": 32},
}
WIDE = dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "moe_intermediate_size"), 256)  # whole blocks
HEADS = {"head_dim": 64, "query_pre_attn_scalar": 64}  # where a family says them


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    path = convert(VARIANTS[name], checkpoint(VARIANTS[name]), tmp_path / "tiny.gguf")
    expected, found = logits(path, TOKENS), logits(path, TOKENS, backend="native")
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol(VARIANTS[name]))


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_weights_lose_no_more_than_in_llama_cpp(name: str, kind: GGMLType, tmp_path: Path) -> None:
    heads = {key: value for key, value in HEADS.items() if key in CONFIGS[name]}
    wide = {key: value for key, value in WIDE.items() if key in CONFIGS[name]}
    config = {**CONFIGS[name], **wide, **heads}
    path = convert(config, checkpoint(config), tmp_path / "tiny.gguf", kind=kind)
    exact = logits(dequantized(path, tmp_path / "exact.gguf"), TOKENS)
    ours, theirs = (logits(path, TOKENS, backend=backend) - exact for backend in ("native", "llamacpp"))
    noise = 1e-3 * np.abs(exact).max()  # the order of sums, and llama.cpp's table of GELU
    assert np.sqrt(np.mean(np.square(ours))) <= 1.1 * np.sqrt(np.mean(np.square(theirs))) + noise
