"""What to load and how: context, memory, threads, GPU layers and flash attention, decided before llama.cpp is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgellm import machine
from edgellm.backends.base import ModelInfo
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.info import model_info, pooling
from edgellm.budget import contexts
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.params import LoadParams

HEADROOM = 0.9  # share of the free device memory that weights and cache may take


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions for one load. n_ctx limits one sequence, max_cells all of them together (tokens).

    pooling: how it makes a vector of a text, "mean", "cls" or "last"; None: it does not.
    """

    path: Path  # of the first shard
    info: ModelInfo
    params: LoadParams
    n_ctx: int
    max_cells: int
    threads: int
    gpu_layers: int
    flash_attention: int
    pooling: str | None


def plan(file: GGUFFile, params: LoadParams) -> Plan:
    """Decide. Raises NotEnoughMemory with the numbers, InvalidParameter, Unsupported, InvalidModelFile."""
    info = model_info(file, params.kv_type)
    if params.kv_type == "q8_0" and params.flash_attention is False:
        raise InvalidParameter("kv_type='q8_0' needs flash attention in llama.cpp; drop flash_attention=False")
    if info.n_ctx_train <= 0:
        raise InvalidModelFile(f"{info.path}: the header names no context length ({info.architecture}.context_length)")
    n_ctx, max_cells = contexts(info, params.ctx, machine.memory().available)
    layers = gpu_layers(info, params.gpu_layers, n_ctx)
    lib = library.load_library()
    if params.kv_type == "q8_0" or params.flash_attention:
        flash = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    elif params.flash_attention is None and layers:
        flash = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
    else:
        flash = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return Plan(
        path=file.path,
        info=info,
        params=params,
        n_ctx=n_ctx,
        max_cells=max_cells,
        threads=params.threads or machine.usable_cores(),
        gpu_layers=layers,
        flash_attention=flash,
        pooling=pooling(file),
    )


def gpu_layers(info: ModelInfo, asked: int | Literal["auto"], n_ctx: int) -> int:
    """Layers to offload, the output layer included. Raises Unsupported when a GPU is asked for and none is there."""
    lib = library.load_library()
    supported = bool(lib.llama_supports_gpu_offload())
    if asked != "auto":
        if asked and not supported:
            raise Unsupported(
                f"gpu_layers={asked}, but this llama.cpp was built for the CPU alone, or finds no GPU (see `edgellm "
                "doctor`); docs/installation.md says how to build it for a GPU; or leave gpu_layers at auto"
            )
        return asked
    if not supported:
        return 0
    return layers_that_fit(info, n_ctx, sum(device.free for device in library.devices() if device.is_gpu))


def layers_that_fit(info: ModelInfo, n_ctx: int, free: int) -> int:
    """Layers whose weights and KV cache fit in `free` bytes; all of them plus the output layer when everything does."""
    if not info.n_layer:
        return 0
    per_layer = info.file_bytes / (info.n_layer + 1) + info.kv_bytes_per_token * n_ctx / info.n_layer
    fits = int(free * HEADROOM / per_layer)
    return min(fits, info.n_layer + 1)
