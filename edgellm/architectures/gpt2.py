"""GPT-2: learned positions, norms with biases, and weights stored transposed (Conv1D)."""

from __future__ import annotations

from typing import Any

from .architecture import Architecture, Key
from .config import Config
from .table import OUTPUT, biased, weight


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    config.expect("n_ctx", fields["n_ctx_train"])
    return {"n_ff": fields["n_ff"] or 4 * fields["n_embd"]}


GPT2 = Architecture(
    gguf="gpt2",
    model_type="gpt2",
    classname="GPT2LMHeadModel",
    onnx_type="decoder",
    before=(
        weight("token_embd", "{m}wte", "vocab embd"),
        weight("position_embd", "{m}wpe", "ctx embd"),
    ),
    layer=(
        *biased("blk.{i}.attn_norm", "{m}h.{i}.ln_1", "embd"),
        *biased("blk.{i}.attn_qkv", "{m}h.{i}.attn.c_attn", "qkv embd", transposed=True),
        *biased("blk.{i}.attn_output", "{m}h.{i}.attn.c_proj", "embd q", transposed=True),
        *biased("blk.{i}.ffn_norm", "{m}h.{i}.ln_2", "embd"),
        *biased("blk.{i}.ffn_up", "{m}h.{i}.mlp.c_fc", "ff embd", transposed=True),
        *biased("blk.{i}.ffn_down", "{m}h.{i}.mlp.c_proj", "embd ff", transposed=True),
    ),
    after=(*biased("output_norm", "{m}ln_f", "embd"), OUTPUT),
    keys=(
        Key("block_count", "n_layer", "n_layer"),
        Key("context_length", "n_ctx_train", "n_positions"),
        Key("embedding_length", "n_embd", "n_embd"),
        Key("feed_forward_length", "n_ff", "n_inner", 0),
        Key("attention.head_count", "n_head", "n_head"),
        Key("attention.head_count_kv", "n_head_kv", None, 0),
        Key("vocab_size", "n_vocab", "vocab_size", 0),
        Key("attention.layer_norm_epsilon", "norm_eps", "layer_norm_epsilon"),
    ),
    expect={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),
    },
    constants={"activation": "gelu_tanh", "attention_bias": True, "mlp_bias": True},
    scalings=frozenset(),
    tied=True,
    square=True,
    read_config=_read_config,
    write_config=lambda hyper: {"n_ctx": hyper.n_ctx_train},
    prefixes=("transformer.", ""),
    skip=(r"\.attn\.(masked_)?bias$",),
)
