"""Gemma 3, text: Gemma 2 without soft caps, with normalised q and k, five windowed layers to a full one, each kind with
its own θ. The text part of the models that also see is converted; their towers are left out.
"""

from __future__ import annotations

from dataclasses import replace

from . import windows
from .architecture import Key, keys
from .gemma2 import CORE, GELU, GEMMA2, config_hook, metadata_hook
from .table import weight

GEMMA3 = replace(
    GEMMA2,
    gguf="gemma3",
    model_type="gemma3_text",
    classname="Gemma3ForCausalLM",
    other_types=("gemma3",),
    layer=(
        *CORE[:5],
        weight("blk.{i}.attn_q_norm", "{m}layers.{i}.self_attn.q_norm", "head", shift=1.0),
        weight("blk.{i}.attn_k_norm", "{m}layers.{i}.self_attn.k_norm", "head", shift=1.0),
        *CORE[5:],
    ),
    keys=keys(
        Key("attention.sliding_window", "window", "sliding_window"),
        Key("final_logit_softcapping", "final_softcap", "final_logit_softcapping"),
    ),
    expect={**GELU, "attn_logit_softcapping": (None,)},
    defaults={  # which the models that also see leave out
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4096,
    },
    rope_base=1e6,
    local_base=10000.0,
    read_config=config_hook(6, 62),
    read_metadata=metadata_hook(6, 62, None),
    write_metadata=lambda hyper: windows.to_metadata(hyper, 6),
)
