"""Ministral 3: a Llama whose q grows with the position beyond the context before YaRN; and Mistral Small 3, a Mistral
that is called by the same name in GGUF. Both come in models that also see.
"""

from __future__ import annotations

from dataclasses import replace

from ..formats.gguf import GGUFFile
from .architecture import Architecture, windowed_context
from .llama import MISTRAL, SILU, UNBIASED

TEMPERATURE = "mistral3.attention.temperature_scale"


def _tempered(file: GGUFFile) -> bool:
    return TEMPERATURE in file.metadata


MINISTRAL3 = Architecture(
    gguf="mistral3",
    model_type="ministral3",
    classname="Ministral3ForCausalLM",
    onnx_type="decoder",
    layer=UNBIASED,
    expect=SILU,
    tolerate={"attention_bias": (False, None), "mlp_bias": (False, None)},
    defaults={"head_dim": 128},
    rope_base=1e6,
    tempered=True,
    read_config=windowed_context,
    write_config=lambda hyper: {"sliding_window": None},
    recognises=_tempered,
)

MISTRAL_SMALL = replace(  # converted here it is a llama in GGUF, as every Mistral
    MISTRAL, gguf="mistral3", layer=UNBIASED, other_types=(), recognises=lambda file: not _tempered(file)
)
