"""How many layers go to a GPU that llama.cpp was built for."""

from __future__ import annotations

import ctypes
import logging
from typing import Any, Literal

from edgellm.backends.base import ModelInfo
from edgellm.backends.llamacpp import library
from edgellm.errors import Unsupported

log = logging.getLogger("edgellm.llamacpp")

GPU_DEVICE, INTEGRATED_GPU = 1, 2  # enum ggml_backend_dev_type, ggml-backend.h
HEADROOM = 0.9  # share of the free device memory that weights and cache may take


def gpu_layers(info: ModelInfo, asked: int | Literal["auto"], n_ctx: int) -> int:
    """Layers to offload, the output layer included. Raises Unsupported when a GPU is asked for and none is there."""
    lib = library.load_library()
    supported = bool(lib.llama_supports_gpu_offload())
    if asked != "auto":
        if asked and not supported:
            raise Unsupported(
                f"gpu_layers={asked}, but this llama.cpp was built for the CPU alone; "
                "reinstall llama-cpp-python with a GPU backend, or leave gpu_layers at auto"
            )
        return asked
    if not supported:
        return 0
    return layers_that_fit(info, n_ctx, free_device_memory(lib))


def layers_that_fit(info: ModelInfo, n_ctx: int, free: int) -> int:
    """Layers whose weights and KV cache fit in `free` bytes; all of them plus the output layer when everything does."""
    if not info.n_layer:
        return 0
    per_layer = info.file_bytes / (info.n_layer + 1) + info.kv_bytes_per_token * n_ctx / info.n_layer
    fits = int(free * HEADROOM / per_layer)
    return min(fits, info.n_layer + 1)


def free_device_memory(lib: Any) -> int:
    """Free bytes over all GPU devices that ggml knows."""
    ggml = ctypes.CDLL(lib._lib._name)  # the same library, with prototypes of its own
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + [ctypes.POINTER(ctypes.c_size_t)] * 2
    ggml.ggml_backend_dev_memory.restype = None
    total_free = 0
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        if ggml.ggml_backend_dev_type(device) in (GPU_DEVICE, INTEGRATED_GPU):
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            total_free += free.value
    return total_free
