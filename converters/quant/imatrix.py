"""ImportanceMatrix: how strongly each input column of each weight was used, on some text.

llama.cpp's two files. GGUF (`general.type` "imatrix"), with `n` rows of inputs seen and their squares summed:

    <weight>.in_sum2  (experts, columns) float32    Σ x², per expert
    <weight>.counts   (experts, 1) float32          n, per expert; one expert where a weight has none

and the older one, little-endian, whose values are already Σ x² / n · calls:

    entries i32, then for each:  name (i32 length, bytes) | calls i32 | values (i32 count, float32 …)
    chunks i32 | dataset (i32 length, bytes)        both may be missing

Sources: tools/imatrix/README.md and tools/imatrix/imatrix.cpp of llama.cpp, whose quantizer divides as `of` does.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, InvalidParameter, ModelNotFound
from edgellm.files import regular
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_strings import StringArray
from edgellm.formats.gguf_writer import write_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_OLD_BYTES = 1 << 30  # the older file is read whole; the largest known ones have a few hundred MB


@dataclass(frozen=True)
class InputSums:
    """Of one weight. sums: (experts, columns) float32, Σ x²; counts: (experts,) float32, rows of inputs."""

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]


@dataclass(frozen=True)
class ImportanceMatrix:
    """entries: weight name to statistics. chunk_count chunks of chunk_size tokens of the datasets (file names)."""

    entries: Mapping[str, InputSums]
    chunk_count: int
    chunk_size: int
    datasets: tuple[str, ...] = ()

    def of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Mean squares of the inputs of a weight of this shape: (columns,) float32, or (experts, columns) for three
        dimensions.

        None without an entry. An expert that no token reached counts every column as 1. Raises InvalidParameter when
        the entry belongs to a weight of another shape.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        wanted = (shape[0], shape[-1]) if len(shape) > 2 else (shape[-1],)
        if entry.sums.size != math.prod(wanted):
            raise InvalidParameter(
                f"the importance matrix has {entry.sums.size} values for {name!r} of shape {shape}, not "
                f"{math.prod(wanted)}; it was collected with another model"
            )
        seen = entry.counts[:, None] > 0
        mean = np.where(seen, entry.sums / np.where(seen, entry.counts[:, None], 1), 1).astype(np.float32)
        return mean.reshape(wanted)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ImportanceMatrix:
        """Read either file. Raises ModelNotFound, InvalidModelFile."""
        path = Path(path)
        try:
            with open(path, "rb", opener=regular) as file:
                magic = file.read(4)
        except FileNotFoundError:
            raise ModelNotFound(f"{path}: no such file; check the path of the importance matrix") from None
        except OSError as error:
            raise InvalidModelFile(f"{path}: cannot be read: {error.strerror or error}") from None
        matrix = _read_gguf(path) if magic == b"GGUF" else _Old(path).read()
        for name, entry in matrix.entries.items():
            for values in (entry.sums, entry.counts):
                if not np.isfinite(values).all() or values.min() < 0:
                    raise _error(path, f"the entry of {name!r} has values that no sum of squares can have")
        if not matrix.entries:
            raise _error(path, "it has no entries")
        return matrix

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the GGUF form, which llama.cpp's tools read. The file appears under its name only when complete."""
        metadata = {
            "general.type": "imatrix",
            "imatrix.datasets": list(self.datasets),
            "imatrix.chunk_count": np.uint32(self.chunk_count),
            "imatrix.chunk_size": np.uint32(self.chunk_size),
        }
        tensors: list[tuple[str, tuple[int, ...], GGMLType, NDArray[Any]]] = []
        for name, entry in self.entries.items():
            tensors.append((name + SUMS, entry.sums.shape, GGMLType.F32, entry.sums.astype("<f4")))
            tensors.append((name + COUNTS, (len(entry.counts), 1), GGMLType.F32, entry.counts.astype("<f4")))
        write_gguf(path, metadata, tensors)


def _error(path: Path, what: str) -> InvalidModelFile:
    return InvalidModelFile(f"{path}: {what[:400]}; collect the importance matrix again")


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = GGUFFile.open(path)
    if file.get("general.type", str, "") != "imatrix":
        raise InvalidModelFile(f"{path}: a GGUF file, but not an importance matrix (its general.type says so)")
    datasets = file.get("imatrix.datasets", StringArray, None)
    count, size = (file.get(f"imatrix.{key}", int, None) for key in ("chunk_count", "chunk_size"))
    if datasets is None or count is None or size is None:
        raise _error(path, "imatrix.datasets, imatrix.chunk_count or imatrix.chunk_size is missing")
    entries: dict[str, InputSums] = {}
    for stored in file.tensors:
        name = stored.removesuffix(SUMS).removesuffix(COUNTS)
        if name == stored:
            raise _error(path, f"the tensor {stored!r} is neither {SUMS} nor {COUNTS}")
        if name in entries:
            continue
        sums, counts = (_values(file, path, name + suffix) for suffix in (SUMS, COUNTS))
        if sums.size % counts.size:
            raise _error(path, f"{counts.size} counts do not divide the {sums.size} sums of {name!r}")
        entries[name] = InputSums(sums.reshape(counts.size, -1), counts)
    names = tuple(text.decode("utf-8", "replace") for text in datasets)
    return ImportanceMatrix(entries, count, size, names)


def _values(file: GGUFFile, path: Path, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None or info.type is not GGMLType.F32:
        raise _error(path, f"the tensor {name!r} is missing or not F32")
    return file.data(name).view("<f4").astype(np.float32)


class _Old:
    """The older file, read whole and checked as it is taken apart."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        if size > MAX_OLD_BYTES:
            raise _error(path, f"{size} bytes are too many for an importance matrix")
        self.path, self.raw, self.position = path, path.read_bytes(), 0

    def read(self) -> ImportanceMatrix:
        entries: dict[str, InputSums] = {}
        for _ in range(self._number("the number of entries", 1)):
            name = self._text("a name")
            if not name or name in entries:
                raise _error(self.path, f"an entry is called {name!r}, which is empty or taken")
            calls = self._number("a number of calls", 0)
            raw = self._bytes(4 * self._number("a number of values", 1))
            values = np.frombuffer(raw, "<f4").astype(np.float32)
            # without calls the values stand as they are
            entries[name] = InputSums(values[None], np.array([max(calls, 1)], np.float32))
        chunks, datasets = 0, list[str]()
        if self.position < len(self.raw):
            chunks = self._number("the number of chunks", 0)
        if self.position < len(self.raw):
            datasets.append(self._text("a dataset"))
        return ImportanceMatrix(entries, chunks, 0, tuple(datasets))

    def _bytes(self, count: int) -> bytes:
        if count > len(self.raw) - self.position:
            raise _error(self.path, f"it ends at byte {len(self.raw)}, inside an entry; is it an importance matrix?")
        self.position += count
        return self.raw[self.position - count : self.position]

    def _number(self, what: str, least: int) -> int:
        value: int = struct.unpack("<i", self._bytes(4))[0]
        if value < least:
            raise _error(self.path, f"{what} is {value} at byte {self.position - 4}; is it an importance matrix?")
        return value

    def _text(self, what: str) -> str:
        return self._bytes(self._number(f"the length of {what}", 0)).decode("utf-8", "replace")
