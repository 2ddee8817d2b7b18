"""edgellm's own engine beside llama.cpp: whose logits are nearer to those of the same weights as floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import Tiny, tiny

import edgellm
from edgellm.backends.native.checks import FAMILIES
from edgellm.converters.evaluate import score_rows
from edgellm.converters.quant.ggml import dequantize, quantize
from edgellm.formats.ggml_types import GGMLType

TYPES = "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"
N = 240  # tokens


def _pair(family: str, kind: GGMLType, folder: Path) -> tuple[Path, Path]:
    """A model with weights of one type, and the same numbers as F32."""
    floats = tiny(family, hidden=256)
    stored: dict[str, tuple[tuple[int, ...], GGMLType, NDArray[np.uint8]]] = {}
    for name, (shape, _type, values) in floats.tensors.items():
        if len(shape) > 1 and "gate_inp" not in name:  # which chooses among experts
            data = quantize(kind, values.reshape(-1, shape[-1]))
            stored[name] = shape, kind, data
            floats.tensors[name] = shape, GGMLType.F32, dequantize(kind, data, shape[-1]).reshape(shape)
    small = Tiny(floats.metadata, floats.tensors | stored)
    return small.write(folder / "small.gguf"), floats.write(folder / "floats.gguf")


def _logits(path: Path, backend: str, kv_type: str | None = None) -> NDArray[np.float32]:
    """(N, n_vocab), of random tokens."""
    with edgellm.load(path, ctx=256, backend=backend, kv_type=kv_type, trust=True) as model:  # type: ignore[arg-type]
        tokens = np.random.default_rng(3).integers(3, model.info.n_vocab, N).tolist()
        return np.concatenate(list(model.logits(tokens)))


def _divergence(base: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Mean KL divergence from the base."""
    return float(score_rows(logits, np.zeros(N, np.int64), base).kl.mean())


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, "Q4_0") for family in sorted({*FAMILIES, "mixtral"})]
    + [("llama", kind) for kind in TYPES if kind != "Q4_0"],
)
def test_logits_are_no_further_from_floats(family: str, kind: str, tmp_path: Path) -> None:
    small, floats = _pair(family, GGMLType[kind], tmp_path)
    base = _logits(floats, "llamacpp", "f32")
    ours, theirs = (_divergence(base, _logits(small, backend)) for backend in ("native", "llamacpp"))
    # Both round to the same steps; which of two experts is taken whose scores are nearly the same is chance.
    most = 1.2 if family in ("mixtral", "qwen3moe") else 1.05
    assert ours <= most * theirs, f"{ours:.3g} where llama.cpp has {theirs:.3g}"
