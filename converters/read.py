"""read: where weights come from: a Hugging Face folder, a GGUF file or an ONNX folder, all as one Model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from edgellm import arguments
from edgellm.errors import InvalidParameter, ModelNotFound, Unsupported
from edgellm.formats.onnx_folder import graphs_of
from edgellm.formats.reading import reading

from .adapter.peft import Adapter
from .folder.source import INDEX, PICKLES, SINGLE, HuggingFace, pickle
from .gguf.source import GGUF
from .model import Model
from .onnx.source import ONNXFolder
from .params import AdapterFolder, adapter_folders


def read(
    path: str | os.PathLike[str], pre: str | None = None, adapters: Sequence[AdapterFolder] | None = None
) -> Model:
    """Open a Hugging Face folder (or any of its configuration and weight files), a GGUF file, or an ONNX folder (or the
    graph in it). pre: llama.cpp's name of the pre-tokenizer, where a folder's is not recognised.
    adapters: PEFT folders to merge into the weights of a Hugging Face folder, each a path or (path, scale).

    Raises ModelNotFound, InvalidModelFile, InvalidParameter for `pre` of a GGUF file and for adapters that are none,
    and Unsupported for pickles, for formats that are not read, and for adapters that do not fit.
    """
    path = arguments.path("path", path)
    with ExitStack() as opened:
        peft = []
        for folder, scale in adapter_folders(adapters):
            with reading(folder):
                peft.append(opened.enter_context(closing(Adapter(folder, scale))))
        with reading(path):
            model = _open(path, pre, peft)
        opened.pop_all()  # the model's now
        return model


def _open(path: Path, pre: str | None, adapters: Sequence[Adapter] = ()) -> Model:
    weights = (path / SINGLE).exists() or (path / INDEX).exists()
    if path.is_dir() and (weights or not graphs_of(path)):
        return HuggingFace(path, pre, adapters)
    if adapters and path.suffix not in (".json", ".safetensors") and path.exists():
        raise Unsupported(
            f"{path}: adapters are merged into the weights of a Hugging Face folder; take the original checkpoint, or "
            "convert this to one first (--to safetensors)"
        )
    if path.is_dir():
        return ONNXFolder(path, pre)
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
        found = HuggingFace(path.parent, pre, adapters)
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
