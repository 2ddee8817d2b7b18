"""Which engine opens which file: the only registry of backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.backends.base import Backend, ModelInfo, context_that_fits, memory_needed
from edgellm.errors import ModelNotFound, Unsupported
from edgellm.params import LoadParams

__all__ = ["context_that_fits", "engines", "inspect", "memory_needed", "open_backend"]

GGUF_MAGIC = b"GGUF"


def open_backend(path: Path, params: LoadParams, progress: Callable[[float], None] | None = None) -> Backend:
    """Look at the file, pick the engine, open it.

    Raises ModelNotFound, Unsupported for a file that no engine here runs, and what the engine raises.
    """
    if params.backend == "echo":
        from edgellm.backends.echo import open_echo

        return open_echo(str(path), params)
    kind = _format(path)
    if params.backend in ("onnx", "native") or kind != "gguf":
        asked = params.backend if params.backend in ("onnx", "native") else kind
        raise Unsupported(
            f"{path}: this version of edgellm runs GGUF files with llama.cpp; it has no engine for {asked}"
        )
    from edgellm.backends.llamacpp import open_llamacpp

    return open_llamacpp(path, params, progress)


def inspect(path: str | Path, kv_type: str = "f16") -> ModelInfo:
    """What the header of a model file says, without loading the model.

    Raises ModelNotFound, InvalidModelFile, Unsupported.
    """
    path = Path(path)
    if _format(path) != "gguf":
        raise Unsupported(f"{path}: not a GGUF file")
    from edgellm.backends.llamacpp.info import model_info
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        return model_info(file, kv_type)


def engines() -> list[dict[str, Any]]:
    """What each engine installed here was built with; for `edgellm doctor`."""
    from edgellm.backends.llamacpp.library import engine_report

    return [engine_report()]


def _format(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file") from None
    except OSError as error:
        raise ModelNotFound(f"{path}: cannot be read: {error.strerror}") from error
    return "gguf" if magic == GGUF_MAGIC or path.suffix.lower() == ".gguf" else "this kind of file"
