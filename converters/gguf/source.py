"""GGUF: a GGUF file as a checkpoint, as tensors that are read lazily."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import n_rows

from ..numbers import WIDTH, decode


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


class GGUF:
    """A GGUF file, or all parts of a split one. file is its reader."""

    format: Literal["gguf"] = "gguf"
    names: Literal["gguf"] = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GGUFFile.open(path)
        self.tensors = {name: GGUFTensor(self.file, name) for name in self.file.tensors}

    @property
    def fingerprint(self) -> str:
        """See GGUFFile."""
        return self.file.fingerprint

    def close(self) -> None:
        """Unmap the file."""
        self.file.close()
