"""edgellm: run quantized language models on the machine in front of you.

    with edgellm.load("smollm2:135m") as model:
        print(model.chat().send("Why is the sky blue?"))

The names below load what they need on first use; `import edgellm` alone is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "load": "loading",
    "Model": "model",
    "Chat": "chat",
    "CancelToken": "engine.cancel",
    "inspect": "backends",
    "context_that_fits": "budget",
    "memory_needed": "budget",
    "engines": "backends",
    "ModelInfo": "backends.base",
    "GenerateParams": "params",
    "LoadParams": "params",
    "CacheParams": "params",
    "CacheReport": "events",
    "Chunk": "events",
    "Completion": "events",
    "Timings": "events",
    "TokenLogprob": "events",
    "Usage": "events",
    "EdgeLLMError": "errors",
}

__all__ = [
    "CacheParams",
    "CacheReport",
    "CancelToken",
    "Chat",
    "Chunk",
    "Completion",
    "EdgeLLMError",
    "GenerateParams",
    "LoadParams",
    "Model",
    "ModelInfo",
    "Timings",
    "TokenLogprob",
    "Usage",
    "__version__",
    "context_that_fits",
    "engines",
    "errors",
    "inspect",
    "load",
    "memory_needed",
]

if TYPE_CHECKING:
    from edgellm import errors
    from edgellm.backends import engines, inspect
    from edgellm.backends.base import ModelInfo
    from edgellm.budget import context_that_fits, memory_needed
    from edgellm.chat import Chat
    from edgellm.engine.cancel import CancelToken
    from edgellm.errors import EdgeLLMError
    from edgellm.events import CacheReport, Chunk, Completion, Timings, TokenLogprob, Usage
    from edgellm.loading import load
    from edgellm.model import Model
    from edgellm.params import CacheParams, GenerateParams, LoadParams


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("edgellm.errors")
    if name == "_native":  # what `from edgellm import _native` asks for first
        return _compiled()
    if name not in _PLACES:
        raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
    value = getattr(import_module(f"edgellm.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def _compiled() -> Any:
    try:
        return import_module("edgellm._native")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__path__[0]} are sources, without the compiled part of edgellm: run `pip install .` beside them, and "
            "start Python in another folder, or pytest by its own name (`python -m pytest` looks here first)"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
