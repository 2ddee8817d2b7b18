"""Architectures: how each family's configuration and tensors are written by Hugging Face and in GGUF."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..errors import InvalidModelFile, UnsupportedArchitecture
from ..formats.gguf import GGUFFile
from .architecture import Architecture
from .bert import BERT, BERT_RERANKER, DISTILBERT, pooling_of
from .cohere2 import COHERE2
from .ernie4_5 import ERNIE4_5
from .exaone4 import EXAONE4
from .gemma import GEMMA
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3
from .glm4 import GLM4
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .granite import GRANITE
from .hyper import Hyper
from .llama import LLAMA, MISTRAL, MIXTRAL
from .ministral3 import MINISTRAL3, MISTRAL_SMALL
from .modern_bert import MODERN_BERT, MODERN_BERT_RERANKER
from .nearest import unknown
from .nomic_bert import NOMIC_BERT
from .olmo2 import OLMO2, OLMO3
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3, QWEN3MOE
from .relation import Part, Relation, to_gguf, to_hf
from .rope import Rope
from .seeing import text_part
from .smollm3 import SMOLLM3
from .starcoder2 import STARCODER2

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    MINISTRAL3,
    MISTRAL_SMALL,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    SMOLLM3,
    GRANITE,
    OLMO2,
    OLMO3,
    ERNIE4_5,
    GLM4,
    COHERE2,
    EXAONE4,
    GPT2,
    GPT_NEOX,
    STARCODER2,
    BERT,
    BERT_RERANKER,
    DISTILBERT,
    MODERN_BERT,
    MODERN_BERT_RERANKER,
    NOMIC_BERT,
)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Hyper",
    "Part",
    "Relation",
    "Rope",
    "from_config",
    "from_metadata",
    "to_gguf",
    "to_hf",
]


def from_config(
    config: Mapping[str, Any], pooling: dict[str, Any] | None = None, names: Collection[str] = ()
) -> tuple[Architecture, Hyper]:
    """The family and the numbers of a config.json; of a model that also sees, those of its text part.

    pooling: 1_Pooling/config.json of a folder that has one; it says how an embedding is made of the tokens' ones.
    names: the tensors of the checkpoint, by which a family that is not known is compared with those that are.
    Raises UnsupportedArchitecture, Unsupported (a key that would change the mathematics), InvalidModelFile.
    """
    values = text_part(config)
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidModelFile("config.json: 'model_type' is missing; it names the architecture")
    for architecture in ARCHITECTURES:
        if model_type in (architecture.model_type, *architecture.other_types) and architecture.fits(config):
            hyper = architecture.hyper_from_config(values)
            return architecture, hyper if hyper.pooling == "rank" else replace(hyper, **pooling_of(pooling))
    raise UnsupportedArchitecture(unknown(values, names, ARCHITECTURES))


def from_metadata(file: GGUFFile) -> tuple[Architecture, Hyper]:
    """The family and the numbers of a GGUF file. Raises UnsupportedArchitecture, Unsupported, InvalidModelFile."""
    name = file.get("general.architecture", str, "")
    for architecture in ARCHITECTURES:
        if name == architecture.gguf and architecture.recognises(file):
            return architecture, architecture.hyper_from_metadata(file)
    known = ", ".join(sorted({one.gguf for one in ARCHITECTURES}))
    raise UnsupportedArchitecture(f"{file.path}: architecture {name!r} cannot be converted; these can: {known}")
