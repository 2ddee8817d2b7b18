"""SmolLM 3: a Llama of which every fourth layer does not rotate; llama.cpp knows no other pattern."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from .architecture import Architecture
from .config import Config
from .hyper import Hyper
from .llama import SILU, UNBIASED
from .qwen2 import no_window

EVERY = 4


def _rotates(n_layer: int) -> list[int]:
    return [int((i + 1) % EVERY != 0) for i in range(n_layer)]


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    interval = config.take("no_rope_layer_interval", int, EVERY)
    usual = [int(not interval or (i + 1) % interval != 0) for i in range(fields["n_layer"])]
    if config.take("no_rope_layers", list, usual) != _rotates(fields["n_layer"]):
        raise Unsupported(f"{config.where}: no_rope_layers; llama.cpp leaves the rotation out of every {EVERY}th layer")
    return {"rope": replace(fields["rope"], every=EVERY), **no_window(config, fields)}


def _write_config(hyper: Hyper) -> dict[str, Any]:
    return {
        "no_rope_layers": _rotates(hyper.n_layer),
        "no_rope_layer_interval": EVERY,
        "layer_types": ["full_attention"] * hyper.n_layer,
        "use_sliding_window": False,
        "sliding_window": None,
    }


SMOLLM3 = Architecture(
    gguf="smollm3",
    model_type="smollm3",
    classname="SmolLM3ForCausalLM",
    layer=UNBIASED,
    expect={**SILU, "attention_bias": (False,), "mlp_bias": (False,)},
    tolerate={"pretraining_tp": (1, 2, None)},  # of which transformers makes nothing here
    tied=True,
    rope_base=2e6,
    read_config=_read_config,
    read_metadata=lambda config, fields: {"rope": replace(fields["rope"], every=EVERY)},
    write_config=_write_config,
)
