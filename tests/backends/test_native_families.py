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

from edgellm.backends.native.checks import cannot
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.params import LoadParams

FAMILIES = (
    "llama", "mistral", "mixtral", "smollm3", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3",
    "granite", "olmo2", "olmo3", "gpt2", "gpt_neox", "starcoder2", "ministral3", "ernie4_5", "glm4", "cohere2",
    "exaone4",
)  # fmt: skip
TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
HEADS_OF_32 = {**LONGROPE, "hidden_size": 128, "partial_rotary_factor": 0.5, "max_position_embeddings": 2048}
WITHIN = {**CONFIGS["ministral3"]["rope_parameters"], "original_max_position_embeddings": 128}
LEFT = "phi3-longrope", "phi3-longrope-long", "ministral3-tied", "ernie4_5-24", "cohere2-24"  # to llama.cpp
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: config for name, config in CONFIGS.items() if name.split("-")[0] in FAMILIES and name not in LEFT},
    "ministral3": {**CONFIGS["ministral3"], "rope_parameters": WITHIN},
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


def test_q_that_grows_is_left_to_llama_cpp(tmp_path: Path) -> None:
    """It grows beyond the context before YaRN, of 16 tokens here; up to there the engine is right."""
    path = convert(CONFIGS["ministral3"], checkpoint(CONFIGS["ministral3"]), tmp_path / "tiny.gguf")
    with GGUFFile.open(path) as file:
        assert cannot(file, LoadParams(ctx=16)) is None
        assert "queries grow beyond 16 tokens" in str(cannot(file, LoadParams(ctx=17)))
        assert cannot(file, LoadParams()) is not None
    tokens = TOKENS[:16]
    expected, found = logits(path, tokens), logits(path, tokens, ctx=16, backend="native")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_weights_lose_no_more_than_in_llama_cpp(name: str, kind: GGMLType, tmp_path: Path) -> None:
    heads = {key: value for key, value in HEADS.items() if key in VARIANTS[name]}
    wide = {key: value for key, value in WIDE.items() if key in VARIANTS[name]}
    config = {**VARIANTS[name], **wide, **heads}
    path = convert(config, checkpoint(config), tmp_path / "tiny.gguf", kind=kind)
    exact = logits(dequantized(path, tmp_path / "exact.gguf"), TOKENS)
    ours, theirs = (logits(path, TOKENS, backend=backend) - exact for backend in ("native", "llamacpp"))
    noise = 1e-3 * np.abs(exact).max()  # the order of sums, and llama.cpp's table of GELU
    assert np.sqrt(np.mean(np.square(ours))) <= 1.1 * np.sqrt(np.mean(np.square(theirs))) + noise
