"""GPT-NeoX: Pythia, Dolly. Each head's q, k and v lie together; attention and feed-forward may run side by side.

The configurations say `gelu`, the exact one; llama.cpp computes its tanh approximation, which differs by up to 5e-4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .architecture import Architecture, Key, keys
from .hyper import Hyper
from .rope import share
from .table import biased, weight


def apart(hyper: Hyper) -> NDArray[np.int64]:
    """The rows of (head, q k v, element) as (q k v, head, element)."""
    n, head = hyper.n_head, hyper.head_dim
    rows: NDArray[np.int64] = np.arange(3 * n * head).reshape(n, 3, head)
    return np.ravel(rows.swapaxes(0, 1))


GPT_NEOX = Architecture(
    gguf="gptneox",
    model_type="gpt_neox",
    classname="GPTNeoXForCausalLM",
    onnx_type="decoder",
    before=(weight("token_embd", "{m}embed_in", "vocab embd"),),
    layer=(
        *biased("blk.{i}.attn_norm", "{m}layers.{i}.input_layernorm", "embd"),
        *biased("blk.{i}.attn_qkv", "{m}layers.{i}.attention.query_key_value", "qkv embd", order=apart),
        *biased("blk.{i}.attn_output", "{m}layers.{i}.attention.dense", "embd q"),
        *biased("blk.{i}.ffn_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
        *biased("blk.{i}.ffn_up", "{m}layers.{i}.mlp.dense_h_to_4h", "ff embd"),
        *biased("blk.{i}.ffn_down", "{m}layers.{i}.mlp.dense_4h_to_h", "embd ff"),
    ),
    after=(
        *biased("output_norm", "{m}final_layer_norm", "embd"),
        weight("output", "embed_out", "vocab embd"),
    ),
    keys=keys(
        Key("attention.head_count_kv", "n_head_kv", None, 0),
        Key("attention.key_length", "head_dim", None, 0),
        Key("attention.layer_norm_epsilon", "norm_eps", "layer_norm_eps"),
        Key("use_parallel_residual", "parallel_residual", "use_parallel_residual"),
    ),
    expect={
        "hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        "attention_bias": (True,),
        "tie_word_embeddings": (False,),
    },
    defaults={"use_parallel_residual": True},
    constants={"activation": "gelu", "attention_bias": True, "mlp_bias": True},
    rope_share=0.25,
    rope_names={"rope_theta": "rotary_emb_base"},
    partial=True,
    square=True,
    write_config=lambda hyper: {"rotary_pct": share(hyper.rope, hyper.head_dim) if hyper.rope else 0.0},
    prefixes=("gpt_neox.", ""),
    skip=(r"rotary_emb\.inv_freq$", r"\.attention\.(masked_)?bias$"),
)
