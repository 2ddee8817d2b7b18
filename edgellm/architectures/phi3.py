"""Phi 3, 3.5 and 4: fused q, k, v and fused gate and up stay fused; longrope stretches the context of the long ones.

llama.cpp chooses between longrope's factors by the size of the context it is opened with, transformers by the number
of tokens so far: a short text in a context beyond the original one is computed with other factors.
"""

from __future__ import annotations

from typing import Any

from .architecture import Architecture, Key, keys, windowed_context
from .config import Config
from .hyper import Hyper
from .llama import FFN_NORM, NORM, SILU
from .rope import share
from .table import weight


def _no_window(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """Files by other converters name a window that llama.cpp does not use."""
    window = config.take("attention.sliding_window", int, 0)
    return {"n_ctx_train": min(window, fields["n_ctx_train"])} if window else {}


def _write_config(hyper: Hyper) -> dict[str, Any]:
    rope = hyper.rope
    if rope is None:
        return {}
    made: dict[str, Any] = {"partial_rotary_factor": share(rope, hyper.head_dim), "sliding_window": None}
    return made | {"original_max_position_embeddings": rope.original or hyper.n_ctx_train}


PHI3 = Architecture(
    gguf="phi3",
    model_type="phi3",
    classname="Phi3ForCausalLM",
    layer=(
        NORM,
        weight("blk.{i}.attn_qkv", "{m}layers.{i}.self_attn.qkv_proj", "qkv embd"),
        weight("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q"),
        FFN_NORM,
        weight("blk.{i}.ffn_up", "{m}layers.{i}.mlp.gate_up_proj", "ff2 embd"),
        weight("blk.{i}.ffn_down", "{m}layers.{i}.mlp.down_proj", "embd ff"),
    ),
    keys=keys(Key("attention.key_length", "head_dim", None, 0)),
    expect={**SILU, "attention_bias": (False,)},
    tolerate={"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,), "mlp_bias": (False,)},
    defaults={"original_max_position_embeddings": 4096},
    scalings=frozenset({"none", "linear", "longrope"}),
    partial=True,
    square=True,
    read_config=windowed_context,
    write_config=_write_config,
    read_metadata=_no_window,
)
