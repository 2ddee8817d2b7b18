"""Contexts of llama.cpp: the settings that every one of them has, and its words when it refuses."""

from __future__ import annotations

import ctypes
from typing import Any

from edgellm import _native
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.info import KV_TYPE
from edgellm.backends.llamacpp.loading import Plan
from edgellm.backends.llamacpp.reason import reason
from edgellm.errors import ModelLoadError, NotEnoughMemory


def context_params(plan: Plan, abort: _native.AbortFlag, *, cells: int, tokens: int, sequences: int) -> Any:
    """llama_context_params for `cells` tokens of state, passes of at most `tokens` and so many sequence ids."""
    lib = library.load_library()
    p = lib.llama_context_default_params()
    p.n_ctx = cells
    p.n_batch = p.n_ubatch = tokens
    p.n_seq_max = sequences
    p.n_threads = p.n_threads_batch = plan.threads
    p.flash_attn_type = plan.flash_attention
    types = {"f16": lib.GGML_TYPE_F16, "f32": lib.GGML_TYPE_F32, "q8_0": lib.GGML_TYPE_Q8_0}
    p.type_k = p.type_v = types[plan.params.kv_type or KV_TYPE]
    p.offload_kqv = p.op_offload = plan.gpu_layers > 0  # else not even large products of a prompt go to a GPU
    p.kv_unified = True
    p.swa_full = True
    p.no_perf = True
    p.abort_callback = ctypes.cast(abort.callback, lib.ggml_abort_callback)
    p.abort_callback_data = abort.data
    return p


def new_context(model: int, params: Any, path: str) -> int:
    """The llama_context pointer. Raises NotEnoughMemory, ModelLoadError."""
    lib = library.load_library()
    with library.capture_log() as lines:
        context = lib.llama_init_from_model(model, params)
    if not context:
        why = reason(lines) or "llama.cpp gave no reason"
        message = f"{path}: no context of {params.n_ctx} tokens: {why}"
        if "alloc" in why:
            raise NotEnoughMemory(f"{message}; ask for a smaller ctx")
        raise ModelLoadError(message)
    return int(context)
