"""Small Hugging Face folders of every architecture, written with numpy: weights, config.json, tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from arch_models import CONFIGS, LLAMA, checkpoint, vocabulary
from numpy.typing import NDArray

from edgellm.architectures import from_config
from edgellm.converters.quant.ggml import quantize
from edgellm.converters.tokens import read_gguf, to_files
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.safetensors import write_safetensors

ALIGNED = {**LLAMA, "hidden_size": 256, "intermediate_size": 512}  # whole blocks of 256
UNALIGNED = {**LLAMA, "hidden_size": 288, "intermediate_size": 768, "num_attention_heads": 6, "num_hidden_layers": 3}


def write_weights(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "BF16") -> None:
    """One safetensors file."""
    kind = GGMLType[dtype]
    write_safetensors(
        path,
        [(name, dtype, v.shape, quantize(kind, v.reshape(-1, v.shape[-1]))) for name, v in tensors.items()],
        {"format": "pt"},
    )


def write_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """The files of the tokenizer that `arch_models` gives a model of 271 tokens."""
    architecture, _ = from_config(config)
    path = folder / "vocabulary.gguf"
    write_gguf(path, {"general.architecture": architecture.gguf, **vocabulary(architecture)}, [])
    with GGUFFile.open(path) as file:
        texts = to_files(read_gguf(file))
    path.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def folder_of(
    folder: Path,
    config: str | Mapping[str, Any] = "llama",
    *,
    dtype: str = "BF16",
    shards: int = 1,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """Write a checkpoint of a config.json, or of the one of this name in `arch_models.CONFIGS`."""
    config = dict(CONFIGS[config] if isinstance(config, str) else config)
    made = dict(checkpoint(config) if tensors is None else tensors)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder, config)
    if shards == 1:
        write_weights(folder / "model.safetensors", made, dtype)
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map: dict[str, str] = {}
    for i, name in enumerate(names):
        mine = dict(list(made.items())[i::shards])
        write_weights(folder / name, mine, dtype)
        weight_map |= dict.fromkeys(mine, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
