"""OLMo 2: norms after attention and feed-forward instead of before, and over the whole of q and of k."""

from __future__ import annotations

from .architecture import Architecture
from .llama import FEED_FORWARD, PROJECTIONS, SILU
from .table import weight

OLMO2 = Architecture(
    gguf="olmo2",
    model_type="olmo2",
    classname="Olmo2ForCausalLM",
    onnx_type="decoder",
    layer=(
        *PROJECTIONS,
        weight("blk.{i}.attn_q_norm", "{m}layers.{i}.self_attn.q_norm", "q"),
        weight("blk.{i}.attn_k_norm", "{m}layers.{i}.self_attn.k_norm", "kv"),
        weight("blk.{i}.post_attention_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
        *FEED_FORWARD[::2],
        weight("blk.{i}.post_ffw_norm", "{m}layers.{i}.post_feedforward_layernorm", "embd"),
    ),
    square=True,
    expect={**SILU, "attention_bias": (False,), "tie_word_embeddings": (False,)},
    tolerate={"clip_qkv": (None,)},
)
