"""How many layers go to a GPU that llama.cpp was built for."""

from __future__ import annotations

from typing import Literal

from edgellm.backends.base import ModelInfo
from edgellm.backends.llamacpp import library
from edgellm.errors import Unsupported

HEADROOM = 0.9  # share of the free device memory that weights and cache may take


def gpu_layers(info: ModelInfo, asked: int | Literal["auto"], n_ctx: int) -> int:
    """Layers to offload, the output layer included. Raises Unsupported when a GPU is asked for and none is there."""
    lib = library.load_library()
    supported = bool(lib.llama_supports_gpu_offload())
    if asked != "auto":
        if asked and not supported:
            raise Unsupported(
                f"gpu_layers={asked}, but this llama.cpp was built for the CPU alone, or finds no GPU (see `edgellm "
                "doctor`); reinstall llama-cpp-python with a GPU backend, or leave gpu_layers at auto"
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
