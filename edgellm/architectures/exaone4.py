"""EXAONE 4: norms after attention and feed-forward, and of each head of q and k. Where it has windowed layers (32B),
only those rotate; llama.cpp knows by the number of layers whether it has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from . import windows
from .architecture import Architecture, Key, keys
from .config import Config
from .llama import FEED_FORWARD, PROJECTIONS, SILU
from .table import weight

EVERY, WINDOWED = 4, 64  # the layers without a window; the layers of the one size that has windows


def _checked(config: Config, fields: dict[str, Any], windowed: tuple[bool, ...]) -> dict[str, Any]:
    usual = windows.pattern(WINDOWED, EVERY) if fields["n_layer"] == WINDOWED else ()
    if windowed != usual:
        raise Unsupported(
            f"{config.where}: windows in {sum(windowed)} of {fields['n_layer']} layers; llama.cpp computes this family "
            f"with windows in three of four layers where it has {WINDOWED}, and with none otherwise"
        )
    return {"windowed": windowed, "rope": replace(fields["rope"], only_windowed=True)}


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    if fields["window"]:
        windowed = windows.from_config(config, fields, EVERY)
        return _checked(config, fields, windowed)
    config.maybe("sliding_window_pattern", object)  # of no windows
    config.expect("layer_types", [windows.FULL] * fields["n_layer"], None)
    return _checked(config, fields, ())


def _read_metadata(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    window = config.maybe("attention.sliding_window", int) or (4096 if fields["n_layer"] == WINDOWED else None)
    windowed = windows.from_metadata(config, fields["n_layer"], EVERY) if window else ()
    return {"window": window, **_checked(config, fields, windowed)}


EXAONE4 = Architecture(
    gguf="exaone4",
    model_type="exaone4",
    classname="Exaone4ForCausalLM",
    onnx_type="decoder",
    layer=(
        *PROJECTIONS,
        weight("blk.{i}.attn_q_norm", "{m}layers.{i}.self_attn.q_norm", "head"),
        weight("blk.{i}.attn_k_norm", "{m}layers.{i}.self_attn.k_norm", "head"),
        weight("blk.{i}.post_attention_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
        *FEED_FORWARD[::2],
        weight("blk.{i}.post_ffw_norm", "{m}layers.{i}.post_feedforward_layernorm", "embd"),
    ),
    keys=keys(Key(None, "window", "sliding_window")),
    expect=SILU,
    defaults={"sliding_window": 4096},
    scalings=frozenset({"none", "linear", "llama3"}),
    square=True,
    read_config=_read_config,
    write_config=windows.to_config,
    read_metadata=_read_metadata,
    write_metadata=lambda hyper: {"attention.sliding_window": hyper.window} if hyper.windowed else {},
)
