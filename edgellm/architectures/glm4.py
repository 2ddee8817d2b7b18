"""GLM 4 (0414): norms before and after attention and feed-forward, gate and up fused; half of a head rotates, which
are neighbours with Hugging Face as well.
"""

from __future__ import annotations

from .architecture import BIASES, Architecture, keys
from .llama import NORM, SILU
from .rope import share
from .table import biased, weight

GLM4 = Architecture(
    gguf="glm4",
    model_type="glm4",
    classname="Glm4ForCausalLM",
    onnx_type="decoder",
    layer=(
        NORM,
        *biased("blk.{i}.attn_q", "{m}layers.{i}.self_attn.q_proj", "q embd", "optional"),
        *biased("blk.{i}.attn_k", "{m}layers.{i}.self_attn.k_proj", "kv embd", "optional"),
        *biased("blk.{i}.attn_v", "{m}layers.{i}.self_attn.v_proj", "kv embd", "optional"),
        weight("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q"),
        weight("blk.{i}.post_attention_norm", "{m}layers.{i}.post_self_attn_layernorm", "embd"),
        weight("blk.{i}.ffn_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
        weight("blk.{i}.ffn_up", "{m}layers.{i}.mlp.gate_up_proj", "ff2 embd"),
        weight("blk.{i}.ffn_down", "{m}layers.{i}.mlp.down_proj", "embd ff"),
        weight("blk.{i}.post_ffw_norm", "{m}layers.{i}.post_mlp_layernorm", "embd"),
    ),
    keys=keys(BIASES[0]),
    expect=SILU,
    defaults={"head_dim": 128, "attention_bias": True},
    biased="attn_q",
    rope_share=0.5,
    partial=True,
    neighbours=True,
    write_config=lambda hyper: {"partial_rotary_factor": share(hyper.rope, hyper.head_dim) if hyper.rope else 1.0},
)
