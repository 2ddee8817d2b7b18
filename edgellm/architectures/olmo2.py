"""OLMo 2 and 3: norms after attention and feed-forward instead of before, and over the whole of q and of k. OLMo 3 has
windowed layers, which do not stretch the context; in GGUF the two have one name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..formats.gguf import GGUFFile
from . import windows
from .architecture import Architecture, Key, keys
from .config import Config
from .hyper import Hyper
from .llama import FEED_FORWARD, PROJECTIONS, SILU
from .table import weight

EVERY = 4  # OLMo 3's layers without a window


def _windowed(file: GGUFFile) -> bool:
    return file.get("olmo2.attention.sliding_window", int, 0) > 0


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return {"windowed": windows.from_config(config, fields, EVERY), **_plain(fields)}


def _read_metadata(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return {"windowed": windows.from_metadata(config, fields["n_layer"], EVERY), **_plain(fields)}


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Windowed layers have θ alone, whatever stretches the others."""
    rope = fields["rope"]
    return {"rope": replace(rope, local_base=rope.local_base or rope.base)}


def _write_config(hyper: Hyper) -> dict[str, Any]:
    """transformers 5 reads the rotation of each kind of layers, 4 the keys beside it."""
    rope = OLMO2.config(hyper)
    full = {"rope_theta": rope["rope_theta"], **(rope["rope_scaling"] or {"rope_type": "default"})}
    local = {"rope_theta": hyper.rope.local_base if hyper.rope else 0.0, "rope_type": "default"}
    return {"rope_parameters": {windows.FULL: full, windows.SLIDING: local}, **windows.to_config(hyper)}


OLMO2 = Architecture(
    gguf="olmo2",
    model_type="olmo2",
    classname="Olmo2ForCausalLM",
    onnx_type="decoder",
    layer=(
        *PROJECTIONS,
        weight("blk.{i}.attn_q_norm", "{m}layers.{i}.self_attn.q_norm", "q"),
        weight("blk.{i}.attn_k_norm", "{m}layers.{i}.self_attn.k_norm", "kv"),
        weight("blk.{i}.post_attention_norm", "{m}layers.{i}.post_attention_layernorm", "embd"),
        *FEED_FORWARD[::2],
        weight("blk.{i}.post_ffw_norm", "{m}layers.{i}.post_feedforward_layernorm", "embd"),
    ),
    square=True,
    expect={**SILU, "attention_bias": (False,), "tie_word_embeddings": (False,)},
    tolerate={"clip_qkv": (None,)},
    recognises=lambda file: not _windowed(file),
)

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    classname="Olmo3ForCausalLM",
    keys=keys(Key("attention.sliding_window", "window", "sliding_window")),
    defaults={"sliding_window": 4096, "rms_norm_eps": 1e-5},
    rope_base=5e5,
    rope_names={"rope_local_base_freq": ""},
    read_config=_read_config,
    write_config=_write_config,
    read_metadata=_read_metadata,
    write_metadata=lambda hyper: windows.to_metadata(hyper, EVERY),
    recognises=_windowed,
)
