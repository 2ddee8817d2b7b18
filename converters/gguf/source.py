"""GGUF: a GGUF file as a model, whose tensors are read when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import from_metadata, to_hf
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import n_rows

from ..folder.configured import pooling_files
from ..model import Contents, Description, LeftOut, Model
from ..numbers import WIDTH, decode
from ..origin import Origin, in_metadata
from ..tokens import Vocabulary, read_gguf, to_files

# what a conversion says anew
_RENEWED = re.compile(
    r"general\.(file_type|quantization_version|alignment)$|split\.|quantize\.imatrix\.|edgellm\.convert\."
)
_SCALARS = {
    "u8": np.uint8, "i8": np.int8, "u16": np.uint16, "i16": np.int16, "u32": np.uint32, "i32": np.int32,
    "u64": np.uint64, "i64": np.int64, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


class GGUFTensor:
    """A tensor of a GGUF file."""

    exact = True

    def __init__(self, file: GGUFFile, name: str) -> None:
        info = file.tensors[name]
        self.shape, self.stored, self.type = info.shape, info.type.name, info.type
        self._file, self._name = file, name

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The stored bytes of rows: (n, bytes of a row) uint8; a view of the file for a slice."""
        return self._file.data(self._name).reshape(n_rows(self), -1)[which]

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor. Raises Unsupported for integers."""
        if self.stored in WIDTH:
            values = decode(self.stored, self.raw(which))
            self.release()
            return values
        if self.stored.startswith("I") and self.type.block_size == 1:
            raise Unsupported(f"{self._file.path}: tensor {self._name!r} holds integers ({self.stored}), no weights")
        from ..quant.ggml import dequantize

        values = dequantize(self.type, self.raw(which), self.shape[-1])
        self.release()
        return values

    def release(self) -> None:
        """The tensor's pages may leave memory."""
        self._file.release(self._name)


class GGUF(Model):
    """A GGUF file, or all parts of a split one. file is its reader."""

    format = "gguf"
    runs = "llamacpp"
    names = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GGUFFile.open(path)
        self.weight_files = self.file.paths
        self.tensors: dict[str, GGUFTensor] = {name: GGUFTensor(self.file, name) for name in self.file.tensors}

    @property
    def fingerprint(self) -> str:
        return self.file.fingerprint

    @cached_property
    def description(self) -> Description:
        architecture, hyper = from_metadata(self.file)
        extra = (name for name, _ in architecture.extra(hyper) if name in self.tensors)
        left_out = tuple(LeftOut(name, "computed from the numbers") for name in extra)
        relations = tuple(architecture.relations(hyper, self.tensors))
        for relation in relations:
            to_hf(relation, self.tensors)  # raises where one is missing or has another shape
        return Description(architecture, hyper, relations, left_out)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return read_gguf(self.file)

    @cached_property
    def origin(self) -> Origin:
        return in_metadata(self.file.metadata)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        special = self.vocabulary.special
        ids = {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad") if name in special}
        numbers = self.description.architecture.config(self.description.hyper)
        return {**self.origin.config, **numbers, **ids, "torch_dtype": "float32"}

    @cached_property
    def files(self) -> dict[str, bytes]:
        made = self.origin.files | {name: text.encode() for name, text in to_files(self.vocabulary).items()}
        hyper = self.description.hyper
        return made if hyper.causal or hyper.pooling == "rank" else made | pooling_files(hyper)

    @cached_property
    def contents(self) -> Contents:
        """The same tensors and key-values. Raises InvalidModelFile, Unsupported for a file that is no model."""
        file = self.file
        kind = file.get("general.type", str, "model")
        if kind != "model":
            raise Unsupported(f"{file.path}: holds no model (general.type is {kind!r}); only models are converted")
        if not file.get("general.architecture", str, ""):
            raise InvalidModelFile(f"{file.path}: no general.architecture in the header; this GGUF holds no model")
        if not self.tensors:
            raise InvalidModelFile(f"{file.path}: has no tensors; fetch the model, not its vocabulary alone")
        metadata = {key: value for key, value in file.metadata.items() if not _RENEWED.match(key)}
        for key in metadata:  # `write_gguf` keeps the type of a numpy scalar
            if scalar := _SCALARS.get(file.kind(key)):
                metadata[key] = scalar(metadata[key])
        return Contents(metadata, dict(self.tensors), file.get("general.file_type", int, None))

    def close(self) -> None:
        self.file.close()
