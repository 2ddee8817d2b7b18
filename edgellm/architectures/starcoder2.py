"""StarCoder 2: norms with biases, biases everywhere, a feed-forward without a gate; the output may be the embedding."""

from __future__ import annotations

from typing import Any

from .architecture import Architecture, Key, keys, windowed_context
from .table import OUTPUT, biased

# what the first checkpoints say and transformers does not read
UNREAD: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu",),
    "layer_norm_epsilon": (1e-5,),
    "mlp_type": ("default",),
    "norm_type": ("layer_norm",),
    "attention_softmax_in_fp32": (True,),
    "scale_attention_softmax_in_fp32": (True,),
    "scale_attn_weights": (True,),
}

STARCODER2 = Architecture(
    gguf="starcoder2",
    model_type="starcoder2",
    classname="Starcoder2ForCausalLM",
    onnx_type="decoder",
    layer=(
        *biased("blk.{i}.attn_norm", "{m}layers.{i}.input_layernorm", "embd"),
        *biased("blk.{i}.attn_q", "{m}layers.{i}.self_attn.q_proj", "q embd"),
        *biased("blk.{i}.attn_k", "{m}layers.{i}.self_attn.k_proj", "kv embd"),
        *biased("blk.{i}.attn_v", "{m}layers.{i}.self_attn.v_proj", "kv embd"),
        *biased("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q"),
        *biased("blk.{i}.ffn_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
        *biased("blk.{i}.ffn_up", "{m}layers.{i}.mlp.c_fc", "ff embd"),
        *biased("blk.{i}.ffn_down", "{m}layers.{i}.mlp.c_proj", "embd ff"),
    ),
    after=(*biased("output_norm", "{m}norm", "embd"), OUTPUT),
    keys=keys(
        Key("attention.key_length", "head_dim", None, 0),
        Key("attention.layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    ),
    expect={"hidden_act": ("gelu_pytorch_tanh",), "use_bias": (True,)},
    tolerate=UNREAD,
    defaults={"norm_epsilon": 1e-5},
    constants={"activation": "gelu_tanh", "attention_bias": True, "mlp_bias": True},
    tied=True,
    square=True,
    read_config=windowed_context,
    write_config=lambda hyper: {"sliding_window": None},
)
