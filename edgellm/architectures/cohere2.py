"""Cohere's Command R7B, Command A and Aya: one norm a layer, without a bias, which attention and feed-forward both
read; three windowed layers that rotate, neighbours with Hugging Face as well, to a full one that does not; scaled
logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InvalidModelFile, Unsupported
from . import windows
from .architecture import Architecture, Key, keys
from .config import Config
from .llama import FEED_FORWARD, NORM, PROJECTIONS, SILU

EVERY = 4  # the layers without a window


def _read(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """Both sides multiply the logits."""
    if not fields["logit_scale"] > 0:
        raise InvalidModelFile(f"{config.where}: logit_scale = {fields['logit_scale']:g}, expected more than 0")
    if not fields["window"]:
        raise Unsupported(
            f"{config.where}: the sliding window is missing; llama.cpp computes this family with one only"
        )
    return {"logit_scale": 1.0 / fields["logit_scale"], "rope": replace(fields["rope"], only_windowed=True)}


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return {"windowed": windows.from_config(config, fields, EVERY), **_read(config, fields)}


def _read_metadata(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return {"windowed": windows.from_metadata(config, fields["n_layer"], EVERY), **_read(config, fields)}


COHERE2 = Architecture(
    gguf="cohere2",
    model_type="cohere2",
    classname="Cohere2ForCausalLM",
    onnx_type="decoder",
    layer=(NORM, *PROJECTIONS, *FEED_FORWARD[::2]),
    keys=keys(
        Key("attention.layer_norm_epsilon", "norm_eps", "layer_norm_eps"),
        Key("attention.sliding_window", "window", "sliding_window"),
        Key("logit_scale", "logit_scale", "logit_scale"),
    ),
    expect={**SILU, "attention_bias": (False,), "tie_word_embeddings": (True,)},
    tolerate={
        "use_parallel_block": (True,),
        "use_gated_activation": (True,),
        "use_embedding_sharing": (True,),
        "use_parallel_embedding": (False,),
        "use_qk_norm": (False,),
        "rotary_pct": (1.0,),
        "position_embedding_type": ("rope_gptj",),
        "order_of_interleaved_layers": ("local_attn_first",),
        "layer_switch": (EVERY,),
    },
    defaults={"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "sliding_window": 4096},
    constants={"centred": True, "parallel_residual": True},
    scalings=frozenset({"none"}),
    tied=True,
    neighbours=True,
    square=True,
    read_config=_read_config,
    write_config=lambda hyper: {"logit_scale": 1.0 / hyper.logit_scale, **windows.to_config(hyper)},
    read_metadata=_read_metadata,
    write_metadata=lambda hyper: {"logit_scale": 1.0 / hyper.logit_scale, **windows.to_metadata(hyper, EVERY)},
)
