"""Gemma: a Llama with GELU in its gate, norms stored less one, embeddings that are scaled, and a tied output."""

from __future__ import annotations

from typing import Any

from .architecture import Architecture
from .config import Config
from .gemma2 import CORE, HEAD, OLD
from .table import weight


def _scaled(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return {"embedding_scale": fields["n_embd"] ** 0.5}


GEMMA = Architecture(
    gguf="gemma",
    model_type="gemma",
    classname="GemmaForCausalLM",
    layer=(
        *CORE[:5],
        weight("blk.{i}.ffn_norm", "{m}layers.{i}.post_attention_layernorm", "embd", shift=1.0),
        *CORE[7:10],
    ),
    after=HEAD,
    expect={"hidden_act": OLD["hidden_act"], "attention_bias": (False,), "tie_word_embeddings": (True,)},
    tolerate={"hidden_activation": ("gelu_pytorch_tanh", None), "use_bidirectional_attention": (False, None)},
    defaults={"head_dim": 256},
    constants={"activation": "gelu_tanh"},
    scalings=frozenset({"none", "linear"}),
    tied=True,
    read_config=_scaled,
    read_metadata=_scaled,
)
