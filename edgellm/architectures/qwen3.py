"""Qwen 3: heads of their own size with normalised q and k, dense or with experts."""

from __future__ import annotations

from dataclasses import replace

from .architecture import Architecture, Key, keys
from .llama import FEED_FORWARD, FFN_NORM, NORM, PROJECTIONS, SILU, experts
from .qwen2 import no_window
from .table import Line, weight

ATTENTION: tuple[Line, ...] = (
    NORM,
    *PROJECTIONS,
    weight("blk.{i}.attn_q_norm", "{m}layers.{i}.self_attn.q_norm", "head"),
    weight("blk.{i}.attn_k_norm", "{m}layers.{i}.self_attn.k_norm", "head"),
    FFN_NORM,
)

QWEN3 = Architecture(
    gguf="qwen3",
    model_type="qwen3",
    classname="Qwen3ForCausalLM",
    layer=(*ATTENTION, *FEED_FORWARD[::2]),
    expect={**SILU, "attention_bias": (False,)},
    defaults={"head_dim": 128},
    read_config=no_window,
    write_config=lambda hyper: {"use_sliding_window": False},
)

QWEN3MOE = replace(
    QWEN3,
    gguf="qwen3moe",
    model_type="qwen3_moe",
    classname="Qwen3MoeForCausalLM",
    onnx_type="decoder",
    layer=(*ATTENTION, *experts("mlp", ("gate_proj", "up_proj", "down_proj"))),
    keys=keys(
        Key("expert_count", "n_expert", "num_experts", also="num_local_experts"),
        Key("expert_used_count", "n_expert_used", "num_experts_per_tok"),
        Key("expert_feed_forward_length", "n_ff_expert", "moe_intermediate_size"),
    ),
    expect={
        **QWEN3.expect,
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
    },
    defaults={"norm_topk_prob": False},
)
