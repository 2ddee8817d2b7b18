"""nomic-embed-text (https://arxiv.org/abs/2402.01613): BERT with rotary positions, a gate, and biases in norms alone.

Its configurations have the names of GPT-2 where the model's own code reads them, and BERT's where transformers does.
"""

from __future__ import annotations

from typing import Any

from .architecture import Architecture, Key
from .bert import POOLINGS, has_types, norm, read_pooling
from .config import Config
from .hyper import Hyper
from .table import weight

_FIXED: dict[str, tuple[Any, ...]] = {  # of the first spelling
    "activation_function": ("swiglu",),
    "causal": (False,),
    "prenorm": (False,),
    "parallel_block": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "use_rms_norm": (False, None),
}


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """Beyond the positions that it was trained for its own code stretches the angles, and llama.cpp does not."""
    trained = config.maybe("max_trained_positions", int)
    return {"tied": True} | ({} if not trained else {"n_ctx_train": min(trained, fields["n_ctx_train"])})


def _write_metadata(hyper: Hyper) -> dict[str, Any]:
    pooled = {} if hyper.pooling is None else {"pooling_type": POOLINGS.index(hyper.pooling)}
    return {"attention.causal": False, **pooled}


NOMIC_BERT = Architecture(
    gguf="nomic-bert",
    model_type="nomic_bert",
    classname="NomicBertModel",
    before=(
        weight("token_embd", "{m}embeddings.word_embeddings", "vocab embd"),
        weight("token_types", "{m}embeddings.token_type_embeddings", "types embd"),
        norm("token_embd_norm", "{m}emb_ln"),
    ),
    layer=(
        weight("blk.{i}.attn_qkv", "{m}encoder.layers.{i}.attn.Wqkv", "qkv embd"),
        weight("blk.{i}.attn_output", "{m}encoder.layers.{i}.attn.out_proj", "embd q"),
        norm("blk.{i}.attn_output_norm", "{m}encoder.layers.{i}.norm1"),
        weight("blk.{i}.ffn_up", "{m}encoder.layers.{i}.mlp.fc11", "ff embd"),
        weight("blk.{i}.ffn_gate", "{m}encoder.layers.{i}.mlp.fc12", "ff embd"),
        weight("blk.{i}.ffn_down", "{m}encoder.layers.{i}.mlp.fc2", "embd ff"),
        norm("blk.{i}.layer_output_norm", "{m}encoder.layers.{i}.norm2"),
    ),
    after=(),
    keys=(
        Key("block_count", "n_layer", "num_hidden_layers", also="n_layer"),
        Key("context_length", "n_ctx_train", "max_position_embeddings", also="n_positions"),
        Key("embedding_length", "n_embd", "hidden_size", also="n_embd"),
        Key("feed_forward_length", "n_ff", "intermediate_size", also="n_inner"),
        Key("attention.head_count", "n_head", "num_attention_heads", also="n_head"),
        Key("attention.head_count_kv", "n_head_kv", None, 0),
        Key("attention.layer_norm_epsilon", "norm_eps", "layer_norm_eps", also="layer_norm_epsilon"),
        Key("vocab_size", "n_vocab", "vocab_size", 0),
        Key(None, "n_token_types", "type_vocab_size", 2),
        Key(None, "head_dim", "head_dim", 0),
    ),
    expect={"hidden_act": ("silu",)},
    tolerate=_FIXED,
    constants={"activation": "silu", "causal": False},
    scalings=frozenset({"none"}),
    tied=True,
    rope_base=1000.0,
    square=True,
    read_config=_read_config,
    read_metadata=read_pooling,
    write_metadata=_write_metadata,
    recognises=has_types,
    prefixes=("", "nomic_bert.", "bert."),
    skip=(r"^cls\.", r"^(nomic_)?(bert\.)?pooler\.", r"rotary_emb\.inv_freq$"),
)
