"""Gemma 2: four norms a layer, stored less one; soft caps; every other layer sees a window."""

from __future__ import annotations

from typing import Any

from ..errors import Unsupported
from . import windows
from .architecture import Architecture, Hook, Key, keys
from .config import Config
from .hyper import Hyper
from .llama import PROJECTIONS
from .table import OUTPUT, Line, weight

GELU: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attention_bias": (False,),
}
OLD: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # hidden_activation took its place
    "use_bidirectional_attention": (False, None),
}
CORE: tuple[Line, ...] = (
    weight("blk.{i}.attn_norm", "{m}layers.{i}.input_layernorm", "embd", shift=1.0),
    *PROJECTIONS,
    weight("blk.{i}.post_attention_norm", "{m}layers.{i}.post_attention_layernorm", "embd", shift=1.0),
    weight("blk.{i}.ffn_norm", "{m}layers.{i}.pre_feedforward_layernorm", "embd", shift=1.0),
    weight("blk.{i}.ffn_gate", "{m}layers.{i}.mlp.gate_proj", "ff embd"),
    weight("blk.{i}.ffn_up", "{m}layers.{i}.mlp.up_proj", "ff embd"),
    weight("blk.{i}.ffn_down", "{m}layers.{i}.mlp.down_proj", "embd ff"),
    weight("blk.{i}.post_ffw_norm", "{m}layers.{i}.post_feedforward_layernorm", "embd", shift=1.0),
)
HEAD: tuple[Line, ...] = (weight("output_norm", "{m}norm", "embd", shift=1.0), OUTPUT)


def scaled(fields: dict[str, Any], wide_layers: int) -> dict[str, Any]:
    """Fields that llama.cpp derives: the scale of q·k, which models of `wide_layers` layers take from n_embd."""
    head = max(1, fields["n_embd"] // fields["n_head"]) if fields["n_layer"] == wide_layers else fields["head_dim"]
    return {"attention_scale": head**-0.5, "embedding_scale": fields["n_embd"] ** 0.5}


def config_hook(every: int, wide_layers: int) -> Hook:
    """A read_config hook: windows, and the scale of q·k, which must be the one that llama.cpp derives."""

    def read(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
        made = scaled(fields, wide_layers) | {"windowed": windows.from_config(config, fields, every)}
        scalar = config.take("query_pre_attn_scalar", float, made["attention_scale"] ** -2)
        if abs(scalar * made["attention_scale"] ** 2 - 1) > 1e-6:
            usual = made["attention_scale"] ** -2
            raise Unsupported(f"{config.where}: query_pre_attn_scalar = {scalar}; llama.cpp computes {usual:g} here")
        return made

    return read


def metadata_hook(every: int, wide_layers: int, window: int | None) -> Hook:
    """A read_metadata hook; window: of files that do not say."""

    def read(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
        size = fields["window"] or window
        windowed = windows.from_metadata(config, fields["n_layer"], every)
        return scaled(fields, wide_layers) | {"window": size, "windowed": windowed if size else ()}

    return read


def write_config(hyper: Hyper) -> dict[str, Any]:
    """A write_config hook."""
    scale = hyper.attention_scale or hyper.head_dim**-0.5
    return {"query_pre_attn_scalar": round(scale**-2), **windows.to_config(hyper)}


def _config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp always has the caps and the window, with values of its own where a file is silent."""
    for field, key in (("window", "sliding_window"), *CAPS):
        if not fields[field]:
            raise Unsupported(f"{config.where}: {key} is missing; llama.cpp computes Gemma 2 with one only")
    return config_hook(2, 46)(config, fields)


def _metadata(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    caps = {"attention_softcap": 50.0, "final_softcap": 30.0}
    silent = {field: cap for field, cap in caps.items() if fields[field] is None}
    return metadata_hook(2, 46, 4096)(config, fields) | silent


CAPS = (("attention_softcap", "attn_logit_softcapping"), ("final_softcap", "final_logit_softcapping"))
GEMMA2 = Architecture(
    gguf="gemma2",
    model_type="gemma2",
    classname="Gemma2ForCausalLM",
    layer=CORE,
    after=HEAD,
    keys=keys(
        Key("attention.sliding_window", "window", "sliding_window"),
        *(Key(name, field, name) for field, name in CAPS),
    ),
    expect={**GELU, "tie_word_embeddings": (True,)},
    tolerate=OLD,
    defaults={"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    constants={"activation": "gelu_tanh"},
    scalings=frozenset({"none", "linear"}),
    tied=True,
    read_config=_config,
    write_config=write_config,
    read_metadata=_metadata,
    write_metadata=lambda hyper: windows.to_metadata(hyper, 2),
)
