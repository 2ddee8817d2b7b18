"""OLMo 2: norms after attention and feed-forward instead of before, and over the whole of q and of k."""

from __future__ import annotations

from .architecture import Architecture
from .llama import EMBEDDING, FEED_FORWARD, HEAD, SILU
from .table import Line, weight

LAYER: tuple[Line, ...] = (
    weight("blk.{i}.attn_q", "{m}layers.{i}.self_attn.q_proj", "q embd"),
    weight("blk.{i}.attn_k", "{m}layers.{i}.self_attn.k_proj", "kv embd"),
    weight("blk.{i}.attn_v", "{m}layers.{i}.self_attn.v_proj", "kv embd"),
    weight("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q"),
    weight("blk.{i}.attn_q_norm", "{m}layers.{i}.self_attn.q_norm", "q"),
    weight("blk.{i}.attn_k_norm", "{m}layers.{i}.self_attn.k_norm", "kv"),
    weight("blk.{i}.post_attention_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
    *FEED_FORWARD[::2],
    weight("blk.{i}.post_ffw_norm", "{m}layers.{i}.post_feedforward_layernorm", "embd"),
)

OLMO2 = Architecture(
    gguf="olmo2",
    model_type="olmo2",
    classname="Olmo2ForCausalLM",
    onnx_type="decoder",
    before=EMBEDDING,
    layer=LAYER,
    after=HEAD,
    square=True,
    expect={**SILU, "attention_bias": (False,), "tie_word_embeddings": (False,)},
    tolerate={"clip_qkv": (None,)},
)
