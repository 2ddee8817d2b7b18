"""Granite 3: a Llama with four multipliers."""

from __future__ import annotations

from .architecture import BIASES, Architecture, Key, keys
from .llama import ATTENTION, FEED_FORWARD, SILU

GRANITE = Architecture(
    gguf="granite",
    model_type="granite",
    classname="GraniteForCausalLM",
    layer=(*ATTENTION, *FEED_FORWARD),
    keys=keys(
        *BIASES,
        Key("attention.scale", "attention_scale", "attention_multiplier"),
        Key("embedding_scale", "embedding_scale", "embedding_multiplier", 1.0),
        Key("residual_scale", "residual_scale", "residual_multiplier", 1.0),
        Key("logit_scale", "logit_scale", "logits_scaling"),
    ),
    expect=SILU,
    defaults={"attention_multiplier": 1.0, "logits_scaling": 1.0},
    scalings=frozenset({"none", "linear", "yarn", "llama3"}),
    read_metadata=lambda config, fields: {"attention_scale": fields["attention_scale"] or fields["head_dim"] ** -0.5},
)
