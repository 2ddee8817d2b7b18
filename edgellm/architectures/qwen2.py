"""Qwen 2 and 2.5: a Llama with halves rotated as transformers does, and biases on q, k and v."""

from __future__ import annotations

from typing import Any

from ..errors import Unsupported
from .architecture import Architecture
from .config import Config
from .llama import FEED_FORWARD, FFN_NORM, NORM, SILU
from .table import biased, weight


def no_window(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """Every layer must see the whole context: llama.cpp has no sliding window here. A read_config hook."""
    used = config.take("use_sliding_window", bool, False)
    window, first = config.maybe("sliding_window", int), config.take("max_window_layers", int, 0)
    kinds = config.take("layer_types", list, [])
    windowed = "sliding_attention" in kinds if kinds else used and first < fields["n_layer"]
    if windowed and window is not None and window < fields["n_ctx_train"]:
        raise Unsupported(
            f"{config.where}: layers with a sliding window of {window}; llama.cpp computes this family without. "
            f"Set max_position_embeddings to {window} and use_sliding_window to false to keep what it computes right"
        )
    return {}


QWEN2 = Architecture(
    gguf="qwen2",
    model_type="qwen2",
    classname="Qwen2ForCausalLM",
    layer=(
        NORM,
        *biased("blk.{i}.attn_q", "{m}layers.{i}.self_attn.q_proj", "q embd"),
        *biased("blk.{i}.attn_k", "{m}layers.{i}.self_attn.k_proj", "kv embd"),
        *biased("blk.{i}.attn_v", "{m}layers.{i}.self_attn.v_proj", "kv embd"),
        weight("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q"),
        FFN_NORM,
        *FEED_FORWARD[::2],
    ),
    square=True,
    expect=SILU,
    tolerate={"use_mrope": (False,)},
    read_config=no_window,
    write_config=lambda hyper: {"use_sliding_window": False},
)
