"""Adapters that requests may name: read by edgellm, checked against the model, and written anew for llama.cpp.

    PEFT folder ─┐
                 ├──▶ (r, in) and (out, r) of each tensor, the strength worked in ──▶ a GGUF file ──▶ llama.cpp
    GGUF file  ──┘

llama.cpp sees no file of anybody's but those that are written here: names, types and shapes are right in them.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.ggml import Ggml
from edgellm.backends.llamacpp.reason import reason
from edgellm.errors import InvalidModelFile, ModelLoadError, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
_NAME = re.compile(r"(?P<tensor>.+\.weight)\.lora_(?P<which>[ab])")
_APPLIED = re.compile(  # where llama.cpp's graphs look for adapters; elsewhere they would do nothing
    r"(?:blk\.\d+\.(?:attn_(?:q|k|v|qkv|output|gate|q_a|q_b|kv_a_mqa|kv_b)|ffn_(?:gate|up|down|gate_inp))|output)\.weight"
)
_KNOWN = {"adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix"}
_FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@dataclass(frozen=True)
class Prepared:
    """An adapter for one model. key: identifies its weights and strength. pairs: (r, in), (out, r) by tensor."""

    name: str
    path: Path
    key: str
    architecture: str
    pairs: Mapping[str, Pair]


@dataclass(frozen=True, slots=True)
class Loaded:
    """llama.cpp's pointer; it is freed with the model. key: as of Prepared."""

    pointer: int
    key: str


def prepare(base: GGUFFile, name: str, path: str, scale: float) -> Prepared:
    """Read an adapter for the model in `base`. Raises ModelNotFound, InvalidModelFile, Unsupported."""
    where = Path(path)
    if os.path.isdir(where):
        from edgellm.converters.adapter.gguf import for_gguf

        key, pairs = for_gguf(where, scale, base)
    else:
        with GGUFFile.open(where) as file:
            key, pairs = f"{file.fingerprint} {scale!r}", _pairs(file, scale, base)
    architecture = base.get("general.architecture", str, "")
    for tensor, (a, b) in pairs.items():
        there = base.tensors.get(tensor)
        if there is None or len(there.shape) != 2 or not _APPLIED.fullmatch(tensor):
            raise Unsupported(
                f"{where}: changes {tensor!r}, which llama.cpp does not do here; merge it into the model "
                "(edgellm convert CHECKPOINT --adapter)"
            )
        if there.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
            raise InvalidModelFile(
                f"{where}: {tensor!r} is {there.shape}, the adapter's {b.shape} times {a.shape}; it is another model's"
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise InvalidModelFile(f"{where}: weights for {tensor!r} are infinite or NaN; train or fetch it again")
    return Prepared(name, where, key, architecture, pairs)


def _pairs(file: GGUFFile, scale: float, base: GGUFFile) -> dict[str, Pair]:
    """Of a GGUF file that holds a LoRA adapter."""
    kind, what = file.get("general.type", str, ""), file.get("adapter.type", str, "")
    if (kind, what) != ("adapter", "lora"):
        raise Unsupported(f"{file.path}: no LoRA adapter: general.type is {kind!r}, adapter.type {what!r}")
    ours, theirs = (each.get("general.architecture", str, "") for each in (file, base))
    if ours != theirs:
        raise Unsupported(f"{file.path}: an adapter for models of the architecture {ours!r}; this one is {theirs!r}")
    unknown = sorted(key for key in file.metadata if key.startswith("adapter.") and key not in _KNOWN)
    if unknown:
        raise Unsupported(f"{file.path}: {unknown[0]!r} says something that is not done here; leave the adapter out")
    alpha = file.get("adapter.lora.alpha", float, 0.0)
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    ggml = Ggml(library.load_library())
    for name, info in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or info.type not in _FLOATS or len(info.shape) != 2:
            raise Unsupported(
                f"{file.path}: tensor {name[:200]!r} ({info.type.name} {info.shape}) is none of a LoRA adapter"
            )
        values = ggml.dequantized(info.type.name, file.data(name).reshape(info.shape[0], -1), info.shape[1])
        found.setdefault(match["tensor"], {})[match["which"]] = values
    if not found or not np.isfinite(alpha):
        raise InvalidModelFile(f"{file.path}: no tensors, or adapter.lora.alpha is no number; fetch the adapter again")
    made = {}
    for tensor, parts in found.items():
        if set(parts) != {"a", "b"}:
            raise InvalidModelFile(f"{file.path}: {tensor!r} has one matrix of two; fetch the adapter again")
        a, b = parts["a"], parts["b"]
        made[tensor] = a, b * np.float32(scale * (alpha / b.shape[1] if alpha else 1.0))
    return made


def loaded(model: int, adapter: Prepared) -> Loaded:
    """Give it to llama.cpp. Raises ModelLoadError, CannotWrite (no room for a temporary file)."""
    lib = library.load_library()
    metadata = {
        "general.architecture": adapter.architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(0),  # which is: as the numbers are
    }
    tensors = []
    for tensor, (a, b) in adapter.pairs.items():
        tensors += [(f"{tensor}.lora_a", a.shape, GGMLType.F32, a), (f"{tensor}.lora_b", b.shape, GGMLType.F32, b)]
    with tempfile.TemporaryDirectory(prefix="edgellm-adapter-") as folder:
        path = Path(folder) / "adapter.gguf"
        write_gguf(path, metadata, tensors)
        with library.capture_log() as lines:
            pointer = lib.llama_adapter_lora_init(model, os.fsencode(path))
    if not pointer:
        raise ModelLoadError(
            f"{adapter.path}: llama.cpp does not take this adapter: {reason(lines) or 'no reason given'}"
        )
    address = pointer if isinstance(pointer, int) else lib.ctypes.cast(pointer, lib.ctypes.c_void_p).value
    return Loaded(address, adapter.key)
