"""Llama, and what is shaped like it: Mistral, and Mixtral's experts. SmolLM2 and SmolLM are Llama by name as well.

llama.cpp rotates neighbouring elements of a head, transformers the two halves: rows of q and k change places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.gguf import GGUFFile
from .architecture import BIASES, Architecture, Key, keys, windowed_context
from .config import Config
from .hyper import Hyper
from .table import Either, Line, Weight, biased, interleave, weight

NORM = weight("blk.{i}.attn_norm", "{m}layers.{i}.input_layernorm", "embd")
FFN_NORM = weight("blk.{i}.ffn_norm", "{m}layers.{i}.post_attention_layernorm", "embd")
ATTENTION: tuple[Line, ...] = (
    NORM,
    *biased("blk.{i}.attn_q", "{m}layers.{i}.self_attn.q_proj", "q embd", "optional", order=interleave("n_head")),
    *biased("blk.{i}.attn_k", "{m}layers.{i}.self_attn.k_proj", "kv embd", "optional", order=interleave("n_head_kv")),
    *biased("blk.{i}.attn_v", "{m}layers.{i}.self_attn.v_proj", "kv embd", "optional"),
    *biased("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q", "optional"),
    FFN_NORM,
)
FEED_FORWARD: tuple[Line, ...] = (
    *biased("blk.{i}.ffn_gate", "{m}layers.{i}.mlp.gate_proj", "ff embd", "optional"),
    *biased("blk.{i}.ffn_up", "{m}layers.{i}.mlp.up_proj", "ff embd", "optional"),
    *biased("blk.{i}.ffn_down", "{m}layers.{i}.mlp.down_proj", "embd ff", "optional"),
)
PROJECTIONS: tuple[Line, ...] = (  # of families whose heads need no order
    weight("blk.{i}.attn_q", "{m}layers.{i}.self_attn.q_proj", "q embd"),
    weight("blk.{i}.attn_k", "{m}layers.{i}.self_attn.k_proj", "kv embd"),
    weight("blk.{i}.attn_v", "{m}layers.{i}.self_attn.v_proj", "kv embd"),
    weight("blk.{i}.attn_output", "{m}layers.{i}.self_attn.o_proj", "embd q"),
)
UNBIASED: tuple[Line, ...] = (*ATTENTION[:2], *ATTENTION[3:8:2], *ATTENTION[9:], *FEED_FORWARD[::2])  # the whole layer
SILU: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish")}


def split_gate_up(hyper: Hyper) -> NDArray[np.int64]:
    """gate and up, fused for each expert, become all gates and then all ups."""
    n, ff = hyper.n_expert, hyper.n_ff_expert
    rows: NDArray[np.int64] = np.arange(n * 2 * ff).reshape(n, 2, ff)
    return np.ravel(rows.swapaxes(0, 1))


def experts(module: str, names: tuple[str, str, str]) -> tuple[Line, ...]:
    """A router and experts: one by one, with their (gate, up, down) names, or fused as transformers 5 holds them."""
    base = "{m}layers.{i}." + module
    gate, up, down = (f"{base}.experts.{{e}}.{name}.weight" for name in names)
    exps = ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight", "blk.{i}.ffn_down_exps.weight")
    wide, back = "experts ffe embd", "experts embd ffe"
    fused = "{m}layers.{i}.mlp.experts."
    return (
        Either(
            (weight("blk.{i}.ffn_gate_inp", base + ".gate", "experts embd"),),
            (weight("blk.{i}.ffn_gate_inp", "{m}layers.{i}.mlp.gate", "experts embd"),),
        ),
        Either(
            (
                Weight(((exps[0], wide),), ((gate, "ffe embd"),)),
                Weight(((exps[1], wide),), ((up, "ffe embd"),)),
                Weight(((exps[2], back),), ((down, "embd ffe"),)),
            ),
            (
                Weight(
                    ((exps[0], wide), (exps[1], wide)),
                    ((fused + "gate_up_proj", "experts ffe2 embd"),),
                    order=split_gate_up,
                ),
                Weight(((exps[2], back),), ((fused + "down_proj", back),)),
            ),
        ),
    )


def _has_experts(file: GGUFFile) -> bool:
    return file.get("llama.expert_count", int, 0) > 0


def _mixtral(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return {"n_ff_expert": fields["n_ff"], **windowed_context(config, fields)}


LLAMA = Architecture(
    gguf="llama",
    model_type="llama",
    classname="LlamaForCausalLM",
    layer=(*ATTENTION, *FEED_FORWARD),
    keys=keys(*BIASES),
    expect=SILU,
    tolerate={"pretraining_tp": (1, None), "rope_interleaved": (False,)},
    scalings=frozenset({"none", "linear", "yarn", "llama3"}),
    recognises=lambda file: not _has_experts(file),
)

MISTRAL = Architecture(  # in GGUF it is a llama, and comes back as one
    gguf="llama",
    model_type="mistral",
    classname="MistralForCausalLM",
    other_types=("mistral3",),  # of a model that also sees, where its text part does not say what it is
    layer=(*ATTENTION, *FEED_FORWARD),
    expect=SILU,
    defaults={"sliding_window": 4096},
    read_config=windowed_context,
    recognises=lambda file: False,
    write_config=lambda hyper: {"sliding_window": None},
)

MIXTRAL = Architecture(
    gguf="llama",
    model_type="mixtral",
    classname="MixtralForCausalLM",
    onnx_type="mistral",
    layer=(*ATTENTION, *experts("block_sparse_moe", ("w1", "w3", "w2"))),
    keys=keys(
        Key("expert_count", "n_expert", "num_local_experts"),
        Key("expert_used_count", "n_expert_used", "num_experts_per_tok"),
    ),
    expect=SILU,
    rope_base=1e6,
    read_config=_mixtral,
    read_metadata=lambda config, fields: {"n_ff_expert": fields["n_ff"]},
    write_config=lambda hyper: {"sliding_window": None},
    recognises=_has_experts,
)
