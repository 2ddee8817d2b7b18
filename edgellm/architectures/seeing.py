"""text_part: of a model that also sees, what config.json says of its text; the rest of it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# model types whose text part is a decoder of its own, which computes what it does alone where there are no pictures
SEEING = frozenset({
    "gemma3", "mistral3", "llava", "llava_next", "internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision",
})  # fmt: skip
# names of tensors that see, or lead from there to the text
TOWERS = r"^(model\.)?((vision_tower|vision_model|multi_modal_projector|connector)\.|image_newline$)"
# what transformers 4 left out of a text_config: numbers that its class has by itself
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
    },
}


def has_parts(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of a model whose text is a part of it."""
    return isinstance(config.get("text_config"), dict) and str(config.get("model_type")) in SEEING


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that are about text. Where the whole says whether its output is tied, that holds."""
    if not has_parts(config):
        return dict(config)
    text = config["text_config"]
    said = ("quantization_config", "tie_word_embeddings")
    whole = {key: config[key] for key in said if config.get(key) is not None}
    return {"model_type": config["model_type"], **_DEFAULTS.get(str(text.get("model_type")), {}), **text, **whole}
