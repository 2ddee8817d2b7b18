"""config_of: the config.json of a folder by onnxruntime-genai's builder, which writes none.

genai_config.json has the sizes; the rest is in the graph: epsilons, widths, and θ in the table of cosines. That is all
there is to a plain Llama, Mistral or Qwen. A graph that computes anything else needs the config.json of its original.
https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Node

_PLAIN = ("llama", "mistral", "qwen2", "qwen3")
_SIZES = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "num_hidden_layers": "num_hidden_layers",
    "head_size": "head_dim",
}
_FACTORS = ("/mlp/act_fn/Mul", "/mlp/Mul")  # the only products of a plain model


def config_of(model: Mapping[str, Any], file: ONNXFile, folder: Path) -> dict[str, Any]:
    """config.json from the object `model` of genai_config.json and the graph.

    Raises Unsupported for what only the original config.json tells, InvalidModelFile for numbers that are not there.
    """

    def needed(why: str) -> Unsupported:
        return Unsupported(f"{folder}: {why}; put the config.json of the original model into the folder")

    decoder = model.get("decoder")
    if not isinstance(decoder, dict):
        raise InvalidModelFile(f"{folder / 'genai_config.json'}: describes no decoder; fetch or export the model again")
    kind = model.get("type")
    if kind not in _PLAIN:
        raise needed(f"genai_config.json does not tell all that a model of type {kind!r} computes")
    config: dict[str, Any] = {name: decoder.get(key) for key, name in _SIZES.items()}
    config |= {"vocab_size": model.get("vocab_size"), "max_position_embeddings": model.get("context_length")}
    wrong = [name for name, value in config.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise InvalidModelFile(f"{folder / 'genai_config.json'}: no {', '.join(wrong)}; fetch or export it again")
    nodes = file.graph.nodes
    attention = [node for node in nodes if node.op == "GroupQueryAttention"]
    factors = [node for node in nodes if node.op == "Mul" and not node.name.endswith(_FACTORS)]
    activations = {node.name.rpartition("/")[2] for node in nodes if "/mlp/act_fn/" in node.name}
    if (
        not attention
        or factors
        or activations != {"Sigmoid", "Mul"}
        or not all(_plain(node, config["head_dim"]) for node in attention)
    ):
        raise needed(f"the graph computes something else than a plain {kind}")
    norm = next((node for node in nodes if node.name.startswith("/model/layers.0/input_layernorm/")), None)
    if norm is None or not isinstance(norm.attributes.get("epsilon"), float):
        raise needed("the graph does not tell the epsilon of its norms")
    theta = _theta(file, attention[0], config["head_dim"])
    if theta is None:
        raise needed("its rotary embedding is scaled, or not in a table")
    width = _width(file)
    if width is None:
        raise needed("the feed-forward part is not where it is looked for")
    tokens = {
        f"{name}_token_id": model[f"{name}_token_id"] for name in ("bos", "eos", "pad") if f"{name}_token_id" in model
    }
    return {
        "model_type": kind,
        **config,
        **tokens,
        "intermediate_size": width,
        "rms_norm_eps": float(f"{norm.attributes['epsilon']:.6g}"),
        "rope_theta": theta,
        "hidden_act": "silu",
        "tie_word_embeddings": not any(info.name.startswith("model.embed_tokens.") for info in file.graph.initializers),
    } | ({"sliding_window": None} if kind == "mistral" else {})


def _plain(node: Node, head_dim: int) -> bool:
    """Whether attention has no window, no soft cap and the usual scale."""
    found = node.attributes
    scale = found.get("scale", 0.0) or 1 / math.sqrt(head_dim)
    usual = isinstance(scale, float) and math.isclose(scale, 1 / math.sqrt(head_dim), rel_tol=1e-6)
    return (
        usual and found.get("local_window_size", -1) == -1 and not found.get("softcap") and found.get("do_rotary") == 1
    )


def _width(file: ONNXFile) -> int | None:
    """Columns of the matrix that leads out of the first feed-forward part."""
    for node in file.graph.nodes:
        if node.name.startswith("/model/layers.0/mlp/down_proj/MatMul"):
            if node.op == "MatMulNBits":
                width = node.attributes.get("K")
                return width if isinstance(width, int) else None
            if node.op == "MatMul" and node.inputs[1] in file:
                return file.info(node.inputs[1]).shape[0]
    return None


def _theta(file: ONNXFile, attention: Node, head_dim: int) -> float | None:
    """θ, from the angles of position 1, which are θ^(-2i/d): https://arxiv.org/abs/2104.09864. None for others."""
    tables = attention.inputs[7:9]
    if len(tables) < 2 or not all(name in file for name in tables):
        return None
    cos, sin = (file.array(name).astype(np.float64) for name in tables)
    if cos.shape != sin.shape or cos.ndim != 2 or len(cos) < 2 or cos.shape[1] * 2 != head_dim or head_dim < 4:
        return None
    angles = np.arctan2(sin[1], cos[1])
    if angles[-1] <= 0:
        return None
    powers = np.arange(cos.shape[1]) * 2 / head_dim
    theta = float(f"{math.exp(-math.log(angles[-1]) / powers[-1]):.5g}")
    fits = np.allclose(angles, theta**-powers, rtol=1e-5, atol=0) and np.allclose(
        np.hypot(sin[1], cos[1]), 1, atol=1e-5
    )
    return theta if fits else None
