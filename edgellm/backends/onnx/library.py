"""The one place that loads ONNX Runtime: quietly, once, and with its telemetry off before its code runs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from importlib import metadata
from typing import Any, Literal

from edgellm import _native
from edgellm.backends.stderr import sifted
from edgellm.errors import EdgeLLMError, Unsupported

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
CPU, CUDA, DIRECTML, COREML = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Dml", "CoreML"))
FASTER = (
    "avx512_vnni",
    "avx_vnni",
    "avx2",
)  # kernel sets of our own whose products are faster than ONNX Runtime's: docs/onnx.md
FATAL = 4  # OrtLoggingLevel: failures reach us as exceptions; nothing else is to be said on the user's terminal

_logger = logging.getLogger("edgellm.onnx")
_lock = threading.Lock()
_module: Any = None


def load_library() -> Any:
    """The module `onnxruntime`, loaded once per process. From any thread.

    Raises Unsupported when the library is missing or cannot be loaded.
    """
    global _module
    with _lock:
        if _module is not None:
            return _module
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            # It warns about GPUs that it cannot look at, before its log level can be set.
            with sifted(b"onnxruntime", _logger):
                import onnxruntime as module
        except ImportError as error:
            raise Unsupported(
                f"ONNX Runtime does not load here: {error}; install it anew: pip install --force-reinstall onnxruntime"
            ) from error
        module.disable_telemetry_events()
        module.set_default_logger_severity(FATAL)
        _module = module
        return module


def version() -> tuple[int, ...]:
    """The library's, as (1, 31); loads it."""
    return tuple(int(part) for part in load_library().__version__.split(".")[:2])


def providers(gpu_layers: int | Literal["auto"], kv_type: str | None) -> tuple[list[str], str]:
    """The execution providers to try, best first and the CPU last, and why.

    kv_type: the dtype of the graph's KV cache, None without one. A graph either runs on the GPU or it does not: any
    number of layers but 0 asks for it. CUDA and DirectML are chosen by themselves; the CUDA kernel of
    GroupQueryAttention takes 16-bit caches only, and CoreML recompiles a graph whose shapes change with each token, so
    those run on the CPU unless they are asked for. Raises Unsupported when a GPU is asked for and none is there.
    """
    if gpu_layers == 0:
        return [CPU], "gpu_layers is 0"
    here = load_library().get_available_providers()
    usable = [provider for provider in (CUDA, DIRECTML, COREML) if provider in here]
    if gpu_layers != "auto":
        if not usable:
            raise Unsupported(
                f"gpu_layers={gpu_layers}, but this ONNX Runtime was built for the CPU alone; install onnxruntime-gpu "
                "(CUDA) or onnxruntime-directml in its place, or leave gpu_layers at auto"
            )
        return [usable[0], CPU], f"gpu_layers is {gpu_layers}"
    if not usable:
        return [CPU], "this ONNX Runtime was built for the CPU alone"
    if usable[0] == COREML:
        return [CPU], "CoreML is slow where shapes change with every token; gpu_layers=1 asks for it"
    if kv_type in ("f32", "int8"):
        return [CPU], f"a KV cache of {kv_type} keeps attention on the CPU; {usable[0]} suits graphs in f16"
    return [usable[0], CPU], f"{usable[0]} is there"


def kernel_set() -> str | None:
    """The kernels of our own for quantized products that this processor has and that are faster than ONNX Runtime's."""
    first = _native.kernel_sets()[0]
    return first if first in FASTER else None


def kernel_names() -> str:
    """Those and the ones for prompts, "avx512_vnni amx_bf16" for one; "" without any. Once ONNX Runtime is loaded: it
    asks the system for AMX."""
    return " ".join(filter(None, (kernel_set(), _native.bfloat16_kernels()))) if kernel_set() else ""


def engine_report() -> dict[str, Any]:
    """What ONNX Runtime was built with, as plain values. A library that cannot load is an "error"."""
    package, version = distribution()
    report: dict[str, Any] = {"name": "ONNX Runtime", "package": package, "version": version}
    try:
        module = load_library()
    except EdgeLLMError as error:
        return {**report, "error": str(error)}
    providers = list(module.get_available_providers())
    return {**report, "providers": providers, "build": module.get_build_info(), "kernels": kernel_names()}


def distribution() -> tuple[str, str | None]:
    """The package that brings the library, and its version; None when none is installed."""
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return name, metadata.version(name)
    return DISTRIBUTIONS[0], None
