"""PEFT folders written with numpy, and what merging them gives, by other means than edgellm's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.formats.safetensors import write_safetensors

Arrays = dict[str, NDArray[np.float32]]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 10,
    "bias": "none",
    "target_modules": ["q_proj"],
    "inference_mode": True,
    "megatron_core": "megatron.core",
}


def adapter_of(folder: Path, tensors: Mapping[str, NDArray[Any]], **config: Any) -> Path:
    """Write an adapter; names are without PEFT's prefix."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    kinds = {"f": "F32", "e": "F16", "l": "I64"}
    listed = [
        (f"base_model.model.{n}", kinds[v.dtype.char], v.shape, np.ascontiguousarray(v)) for n, v in tensors.items()
    ]
    write_safetensors(folder / "adapter_model.safetensors", listed, {"format": "pt"})
    return folder


def lora(module: str, outputs: int, inputs: int, rank: int = 4, *, dora: bool = False, seed: int = 0) -> Arrays:
    """The random tensors of one module."""
    rng = np.random.default_rng([seed, *module.encode()])
    made = {
        f"{module}.lora_A.weight": rng.standard_normal((rank, inputs), np.float32) * np.float32(0.2),
        f"{module}.lora_B.weight": rng.standard_normal((outputs, rank), np.float32) * np.float32(0.2),
    }
    if dora:
        made[f"{module}.lora_magnitude_vector"] = rng.uniform(0.5, 2, outputs).astype(np.float32)
    return made


def merged(
    weight: NDArray[np.float32], parts: Arrays, scaling: float, *, transposed: bool = False
) -> NDArray[np.float32]:
    """A weight with what `lora` made for it, in float64. transposed: the weight is (in, out)."""
    by_kind = {
        name.rpartition(".lora_")[2].partition(".")[0]: value.astype(np.float64) for name, value in parts.items()
    }
    upright = (weight.T if transposed else weight).astype(np.float64)
    upright = upright + scaling * np.einsum("or,ri->oi", by_kind["B"], by_kind["A"])
    if "magnitude_vector" in by_kind:
        upright *= (by_kind["magnitude_vector"] / np.linalg.norm(upright, axis=1))[:, None]
    return (upright.T if transposed else upright).astype(np.float32)
