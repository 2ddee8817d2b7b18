"""Which engine opens which file: the only registry of backends."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgellm import arguments
from edgellm.backends.base import Backend, ModelInfo
from edgellm.errors import NotEnoughMemory, Unsupported
from edgellm.files import regular
from edgellm.formats.onnx_folder import graphs_of
from edgellm.formats.reading import reading
from edgellm.params import KV_TYPES, KvType, LoadParams

if TYPE_CHECKING:
    from edgellm.formats.gguf import GGUFFile

__all__ = ["engines", "inspect", "open_backend"]

GGUF_MAGIC = b"GGUF"
GGUF_ENGINES = ("auto", "native", "llamacpp")
ASKED, ONNX = "asked for", "it runs all ONNX models"  # why an engine runs a model
NO_ROOM = ("failed to map segment", "cannot allocate memory")  # the words of glibc's loader


def open_backend(path: Path, params: LoadParams, progress: Callable[[float], None] | None = None) -> Backend:
    """Look at the file, pick the engine, open it.

    Raises ModelNotFound, Unsupported for a file that no engine here runs, NotEnoughMemory, and what the engine raises.
    """
    try:
        opened, why = _open(path, params, progress)
    except (MemoryError, ImportError, Unsupported) as error:
        # An engine is imported when it is needed: where its code finds no room, that is no MemoryError (dlopen(3)).
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_ROOM):
            raise
        raise NotEnoughMemory(f"{path}: the memory was not enough to load it; close other programs") from error
    opened.info = replace(opened.info, engine=opened.name, engine_reason=why)
    return opened


def _open(path: Path, params: LoadParams, progress: Callable[[float], None] | None) -> tuple[Backend, str]:
    """The opened backend, and why it is that one."""
    if params.backend == "echo":
        from edgellm.backends.echo import open_echo

        return open_echo(str(path), params), ASKED
    kind = _format(path)
    if kind == "onnx" and params.adapters:
        raise Unsupported(
            f"{path}: an ONNX model takes no adapters; merge them when it is made (edgellm convert --to onnx --adapter)"
        )
    if kind == "onnx" and params.backend in ("auto", "onnx"):
        from edgellm.backends.onnx import open_onnx

        return open_onnx(path, params, progress), ONNX
    if kind == "onnx":
        raise Unsupported(f"{path}: {params.backend} runs GGUF files; this is an ONNX model: leave the backend at auto")
    if kind == "gguf" and params.backend not in GGUF_ENGINES:
        made = f"edgellm convert {shlex.quote(str(path))} -o FOLDER --to onnx"
        raise Unsupported(
            f"{path}: a GGUF file, none of {params.backend}'s: leave the backend at auto, or run `{made}`"
        )
    if kind != "gguf":
        if advice := _advice(path):
            raise Unsupported(f"{path}: {advice}")
        raise Unsupported(
            f"{path}: edgellm runs GGUF files with llama.cpp or its own engine, and .onnx files and their folders with "
            f"ONNX Runtime; it has no engine for {kind}"
        )
    return _open_gguf(path, params, progress)


def _open_gguf(path: Path, params: LoadParams, progress: Callable[[float], None] | None) -> tuple[Backend, str]:
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        engine, why = _engine(file, params)
        if engine == "native":
            from edgellm.backends.native import open_native

            return open_native(file, params, progress), why
    from edgellm.backends.llamacpp import library, open_llamacpp  # once the file is closed: it maps the same pages

    if not library.installed():
        raise Unsupported(f"{path}: {library.MISSING if why == ASKED else why}")
    return open_llamacpp(path, params, progress), why


def _engine(file: GGUFFile, params: LoadParams) -> tuple[str, str]:
    """The engine of a GGUF file, and why it is that one."""
    if params.adapters:
        if params.backend == "native":
            raise Unsupported(
                f"{file.path}: adapters are llama.cpp's: leave the backend at auto, or merge them (convert)"
            )
        asked = params.backend == "llamacpp"
        return "llamacpp", ASKED if asked else "adapters are asked for, which llama.cpp applies" + _missing()
    if params.backend != "auto":
        return params.backend, ASKED
    from edgellm.backends.native import why_not

    why = why_not(file, params)
    if not why:
        return "native", "edgellm's own, which has all that it needs"
    return "llamacpp", f"not edgellm's own: {why}" + _missing()


def _missing() -> str:
    """What to add to why a file is llama.cpp's, where that is not installed."""
    from edgellm.backends.llamacpp import library

    return "" if library.installed() else f"; and {library.MISSING}"


def inspect(path: str | os.PathLike[str], kv_type: str | None = None) -> ModelInfo:
    """What the files of a model say, without loading it. kv_type: of the cache to count memory for; the graph of an
    ONNX model decides itself.

    Raises ModelNotFound, InvalidModelFile, Unsupported, InvalidParameter.
    """
    path = arguments.path("path", path)
    if kv_type is not None:
        arguments.one_of("kv_type", kv_type, KV_TYPES)
    kind = _format(path)
    if kind == "onnx":
        from edgellm.backends.onnx import inspect_onnx

        return replace(inspect_onnx(path), engine="onnx", engine_reason=ONNX)
    if kind != "gguf":
        raise Unsupported(f"{path}: {_advice(path) or 'neither a GGUF file nor an ONNX model'}")
    from edgellm.backends.llamacpp import inspect_llamacpp
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        engine, why = _engine(file, LoadParams())
        found = replace(inspect_llamacpp(path, kv_type), engine=engine, engine_reason=why)
        if engine == "native":
            from edgellm.backends.native import kv_bytes_per_token

            found = replace(found, kv_bytes_per_token=kv_bytes_per_token(file, cast("KvType | None", kv_type)))
    return found


def engines() -> list[dict[str, Any]]:
    """What each engine installed here was built with; for `edgellm doctor`."""
    from edgellm.backends import native
    from edgellm.backends.llamacpp import library as llamacpp
    from edgellm.backends.onnx import library as onnx

    return [llamacpp.engine_report(), onnx.engine_report(), native.engine_report()]


def _format(path: Path) -> str:
    """What a file is: "gguf", "onnx", or in words what else."""
    if os.path.isdir(path):
        with reading(path):
            return "onnx" if graphs_of(path) else "a folder without a .onnx file"
    with reading(path), open(path, "rb", opener=regular) as file:
        magic = file.read(4)
    if magic == GGUF_MAGIC or path.suffix.lower() == ".gguf":
        return "gguf"
    return "onnx" if path.suffix.lower() == ".onnx" else "this kind of file"


def _advice(path: Path) -> str:
    """What to do with a checkpoint, or with a folder of GGUF files; "" for everything else."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (files := sorted(folder.glob("*.gguf"))):
        return f"a folder; name one of the GGUF files in it, such as {files[0]}"
    weights = path.suffix.lower() in (".safetensors", ".bin", ".pt", ".pth")
    if (folder / "config.json").is_file() and (path.is_dir() or weights):
        return (
            "a checkpoint, which no engine runs as it is; "
            f"`edgellm convert {shlex.quote(str(folder))} -o model.gguf --quant q4_k_m` makes a file to run"
        )
    return ""
