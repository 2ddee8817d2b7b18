"""GGUF models through llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.backends.base import ModelInfo
from edgellm.backends.llamacpp.reason import reason, refusal
from edgellm.params import LoadParams

if TYPE_CHECKING:
    from edgellm.backends.llamacpp.backend import LlamaBackend


def open_llamacpp(path: Path, params: LoadParams, progress: Callable[[float], None] | None = None) -> LlamaBackend:
    """Open a GGUF file. `progress` is called with the loaded share, 0 to 1; an exception it raises stops the load.

    Raises InvalidModelFile, UnsafeModel, ModelLoadError, UnsupportedArchitecture, NotEnoughMemory, Unsupported.
    """
    from edgellm.backends.llamacpp import adapters, library, loading, proof, signals
    from edgellm.backends.llamacpp.backend import LlamaBackend
    from edgellm.formats.gguf import GGUFFile

    lib = library.load_library()
    with GGUFFile.open(path) as file:  # closed before llama.cpp maps the same pages
        plan = loading.plan(file, params)
        proof.make_safe(file, trust=params.trust, extra_bufts=library.extra_buffers().use)
        prepared = [adapters.prepare(file, *each) for each in params.adapters]
    p = library.model_params(plan.gpu_layers)
    stopped: list[BaseException] = []

    def report(share: float, _user_data: Any) -> bool:
        try:
            if progress is not None:
                progress(share)
        except BaseException as error:
            stopped.append(error)
        return not stopped

    callback = lib.llama_progress_callback(report)  # referenced here while llama.cpp may call it
    p.progress_callback = callback
    model, backend = None, None
    try:
        with signals.kept(stopped):
            with library.capture_log() as lines:
                model = lib.llama_model_load_from_file(os.fsencode(plan.path), p)
            if model and not stopped:
                backend = LlamaBackend(model, plan, {one.name: adapters.loaded(model, one) for one in prepared})
        if backend is None or stopped:
            raise refusal(path, "refused the file", reason(lines))
        return backend
    except BaseException:
        if backend is not None:
            backend.close()
        elif model:
            lib.llama_model_free(model)
        if stopped:  # which is why, whatever came of it
            raise stopped[0] from None
        raise


def inspect_llamacpp(path: Path, kv_type: str | None = None) -> ModelInfo:
    """What the header of a GGUF file says, without loading it. Raises InvalidModelFile."""
    from edgellm.backends.llamacpp.info import model_info
    from edgellm.backends.llamacpp.specials import specials_of_header
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        special = specials_of_header(file)
        info = model_info(file, kv_type)
    return replace(info, bos_id=special.bos_id, eos_id=special.eos_id, stop_ids=special.stop_ids)
