"""ModelInfo from a GGUF header, without loading the model.

Key names: the GGUF specification, docs/gguf.md of the ggml repository.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from edgellm.backends.base import ModelInfo
from edgellm.errors import InvalidModelFile
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.origin import base_models, general_of, licence

POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # enum llama_pooling_type, as far as it makes one vector of a text
RANK = 4  # the one that scores two texts
KV_BYTES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}  # bytes per element
KV_TYPE = "f16"  # where nobody asks


def model_info(file: GGUFFile, kv_type: str | None = None) -> ModelInfo:
    """What the header of `file` says, but for the tokens that mean something (`specials.py`).

    Raises InvalidModelFile when it does not describe a model.
    """
    arch = str(file.get("general.architecture", str, ""))
    if not arch:
        raise InvalidModelFile(f"{file.path}: no general.architecture in the header; this GGUF holds no language model")
    n_layer = int(file.get(f"{arch}.block_count", int, 0))
    n_embd = int(file.get(f"{arch}.embedding_length", int, 0))
    heads = _per_layer(file, f"{arch}.attention.head_count", n_layer, 0)
    n_head = max(heads, default=0)
    kv_heads = _per_layer(file, f"{arch}.attention.head_count_kv", n_layer, n_head)
    head_size = n_embd // n_head if n_head else 0
    key = int(file.get(f"{arch}.attention.key_length", int, head_size))
    value = int(file.get(f"{arch}.attention.value_length", int, head_size))
    kv_bytes = int(sum(kv_heads) * (key + value) * KV_BYTES[kv_type or KV_TYPE]) if is_causal(file) else 0
    types: dict[str, int] = defaultdict(int)
    for tensor in file.tensors.values():
        types[tensor.type.name] += tensor.nbytes
    n_params = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in file.tensors.values())
    weight_bytes = sum(types.values())
    tokens = file.metadata.get("tokenizer.ggml.tokens", ())
    template = file.metadata.get("tokenizer.chat_template")
    return ModelInfo(
        path=str(file.path),
        format="gguf",
        architecture=arch,
        name=str(file.metadata.get("general.name") or file.path.stem),
        n_vocab=len(tokens),
        n_ctx_train=int(file.get(f"{arch}.context_length", int, 0)),
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_ff=max(_per_layer(file, f"{arch}.feed_forward_length", n_layer, 4 * n_embd), default=0),
        n_params=n_params,
        file_bytes=sum(path.stat().st_size for path in file.paths),
        bits_per_weight=8 * weight_bytes / n_params if n_params else 0.0,
        quantization=_quantization(file),
        tensor_types=dict(sorted(types.items(), key=lambda item: -item[1])),
        kv_bytes_per_token=kv_bytes,
        fingerprint=file.fingerprint,
        chat_template=template if isinstance(template, str) and template.strip() else None,
        license=licence(general_of(file.metadata)),
        base_models=base_models(general_of(file.metadata)),
        can_embed=pooling(file) is not None,
        can_rerank=ranks(file),
        can_generate=is_causal(file),
    )


def is_causal(file: GGUFFile) -> bool:
    """False for an encoder, whose tokens attend to those behind them: it gives vectors and continues no text."""
    return bool(file.get(f"{file.metadata['general.architecture']}.attention.causal", bool, True))


def pooling(file: GGUFFile) -> str | None:
    """How the rows of a text's tokens become one vector: "mean", "cls" or "last"; None: the file does not say."""
    return POOLINGS.get(file.get(f"{file.metadata['general.architecture']}.pooling_type", int, 0))


def ranks(file: GGUFFile) -> bool:
    """Whether it is an encoder whose classifier gives two texts one score. Its pooling type may be left out."""
    score = file.tensors.get("cls.output.weight")
    kind = file.get(f"{file.metadata['general.architecture']}.pooling_type", int, RANK)
    return score is not None and score.shape[0] == 1 and len(score.shape) == 2 and kind == RANK and not is_causal(file)


def _quantization(file: GGUFFile) -> str:
    """The type that most bytes of the layers have; embeddings are often kept in another one."""
    types: dict[str, int] = defaultdict(int)
    for tensor in file.tensors.values():
        types[tensor.type.name] += tensor.nbytes if tensor.name.startswith("blk.") else 0
    return max(types, key=lambda name: types[name], default="none")


def _per_layer(file: GGUFFile, key: str, n_layer: int, default: int) -> list[int]:
    """A key that is one number or one number per layer."""
    value = file.metadata.get(key, default)
    if isinstance(value, np.ndarray):
        return [int(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidModelFile(f"{file.path}: {key} is {type(value).__name__}, not a whole number")
    return [value] * min(max(n_layer, 0), 65536)
