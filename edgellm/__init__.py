"""edgellm: run quantized language models on the machine in front of you.

    with edgellm.load("smollm2:135m") as model:
        print(model.chat().send("Why is the sky blue?"))

The names below load what they need on first use; `import edgellm` alone is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "backends": ("engines", "inspect"),
    "backends.base": ("ModelInfo",),
    "budget": ("context_that_fits", "memory_needed"),
    "chat": ("Chat",),
    "engine.cancel": ("CancelToken",),
    "errors": ("EdgeLLMError",),
    "events": (
        "Activity",
        "CacheReport",
        "Chunk",
        "Completion",
        "Timings",
        "TokenLogprob",
        "ToolCall",
        "ToolCallDelta",
        "Usage",
    ),
    "jobs.mapper": ("BatchModel",),
    "jobs.rows": ("batch",),
    "loading": ("load",),
    "model": ("Model",),
    "params": ("CacheParams", "GenerateParams", "LoadParams"),
}
_PLACES = {name: room for room, names in _ROOMS.items() for name in names}

if TYPE_CHECKING:
    from edgellm import errors as errors
    from edgellm.backends import engines as engines
    from edgellm.backends import inspect as inspect
    from edgellm.backends.base import ModelInfo as ModelInfo
    from edgellm.budget import context_that_fits as context_that_fits
    from edgellm.budget import memory_needed as memory_needed
    from edgellm.chat import Chat as Chat
    from edgellm.engine.cancel import CancelToken as CancelToken
    from edgellm.errors import EdgeLLMError as EdgeLLMError
    from edgellm.events import Activity as Activity
    from edgellm.events import CacheReport as CacheReport
    from edgellm.events import Chunk as Chunk
    from edgellm.events import Completion as Completion
    from edgellm.events import Timings as Timings
    from edgellm.events import TokenLogprob as TokenLogprob
    from edgellm.events import ToolCall as ToolCall
    from edgellm.events import ToolCallDelta as ToolCallDelta
    from edgellm.events import Usage as Usage
    from edgellm.jobs.mapper import BatchModel as BatchModel
    from edgellm.jobs.rows import batch as batch
    from edgellm.loading import load as load
    from edgellm.model import Model as Model
    from edgellm.params import CacheParams as CacheParams
    from edgellm.params import GenerateParams as GenerateParams
    from edgellm.params import LoadParams as LoadParams


if not TYPE_CHECKING:  # for a type checker there are no names but those above

    def __getattr__(name: str) -> Any:
        if name == "__all__":  # not said outright: type checkers take the imports above for it
            return __dir__()
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
    return sorted([*_PLACES, "__version__", "errors"])
