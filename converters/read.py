"""read: where weights come from: a Hugging Face folder, a GGUF file or an ONNX folder, all as one Model."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm import arguments
from edgellm.errors import InvalidParameter, ModelNotFound, Unsupported
from edgellm.formats.onnx_folder import graphs_of
from edgellm.formats.reading import reading

from .folder.source import INDEX, PICKLES, SINGLE, HuggingFace, pickle
from .gguf.source import GGUF
from .model import Model
from .onnx.source import ONNXFolder


def read(path: str | os.PathLike[str], pre: str | None = None) -> Model:
    """Open a Hugging Face folder (or any of its configuration and weight files), a GGUF file, or an ONNX folder (or the
    graph in it). pre: llama.cpp's name of the pre-tokenizer, where a folder's is not recognised.

    Raises ModelNotFound, InvalidModelFile, InvalidParameter for `pre` of a GGUF file, and Unsupported for pickles and
    for formats that are not read.
    """
    path = arguments.path("path", path)
    with reading(path):
        return _open(path, pre)


def _open(path: Path, pre: str | None) -> Model:
    if path.is_dir():
        weights = (path / SINGLE).exists() or (path / INDEX).exists()
        return ONNXFolder(path, pre) if graphs_of(path) and not weights else HuggingFace(path, pre)
    if not path.exists():
        raise ModelNotFound(f"{path}: no such file or folder; check the path")
    if path.suffix.lower() == ".onnx":
        return ONNXFolder(path, pre)
    if path.suffix == ".gguf" or _starts_with(path, b"GGUF"):
        if pre is not None:
            raise InvalidParameter("pre has no meaning for a GGUF file, which names its pre-tokenizer; leave it out")
        return GGUF(path)
    if path.suffix in PICKLES:
        raise pickle(path)
    if path.suffix in (".json", ".safetensors"):
        found = HuggingFace(path.parent, pre)
        if path.suffix == ".json" or path.name in found.shards:
            return found
        found.close()
        raise Unsupported(f"{path}: not one of the weight files of {path.parent} ({', '.join(found.shards)})")
    raise Unsupported(f"{path}: neither a Hugging Face folder nor a .gguf or .onnx file; those are read")


def _starts_with(path: Path, magic: bytes) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic
