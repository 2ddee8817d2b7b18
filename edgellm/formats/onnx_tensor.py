"""StoredTensor: a tensor of an ONNX file where it lies, inline or in a file beside it; read_tensor finds and checks it.

A TensorProto keeps its bytes in raw_data, or as numbers in a field for its type (float_data, int32_data, ...), or it
says where they are: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, and for the last
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.mapped import MappedFile
from edgellm.formats.onnx_graph import DATA_TYPES, NUMPY, WIDTH
from edgellm.formats.protobuf import Span, Wire, schema, unpacked

MAX_DIMS = 16
MAX_SIZE = 1 << 48  # elements
CHUNK = 16 << 20  # bytes
_BYTES = ("segment", "float_data", "int32_data", "int64_data", "raw_data", "double_data", "uint64_data")
_TENSOR = schema(
    "ints 1* dims", "int 2 data_type", "span 3 segment", "span 4 float_data", "span 5 int32_data",
    "span 7 int64_data", "text 8 name", "span 9 raw_data", "span 10 double_data", "span 11 uint64_data",
    "span 13* external_data", "int 14 data_location",
)  # fmt: skip
_ENTRY = schema("text 1 key", "lossy 2 value")
_NAMES = {number: name for name, number in DATA_TYPES.items()}
_TYPED = {
    "FLOAT": "float_data", "DOUBLE": "double_data", "INT64": "int64_data", "UINT64": "uint64_data",
    "UINT32": "uint64_data",
}  # fmt: skip
_NUMBER = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class StoredTensor:
    """Bytes start to stop of a file; packed: they are varints, one for each element of NUMPY."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: MappedFile
    start: int
    stop: int
    packed: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.ceil(math.prod(self.shape) * WIDTH[self.dtype])

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"tensor {shown(self.name)} ({self.dtype}, {self.shape})"

    def raw(self) -> NDArray[np.uint8]:
        """Its bytes, (n,) uint8, little-endian; not copied unless they were numbers. Raises InvalidModelFile."""
        if not self.packed:
            return self.file.view(self.start, self.stop)
        return np.concatenate([np.empty(0, np.uint8), *self._numbers()])

    def array(self) -> NDArray[np.generic]:
        """Its elements: see NUMPY; shaped, but flat for types of less than 8 bits. Raises InvalidModelFile."""
        raw = self.raw()
        if self.dtype == "BOOL" and raw.max(initial=0) > 1:
            raise self._error("neither true nor false")
        values: NDArray[np.generic] = raw.view(NUMPY[self.dtype])
        return values if WIDTH[self.dtype] < 1 else values.reshape(self.shape)

    def chunks(self) -> Iterator[NDArray[np.generic]]:
        """Its bytes, some megabytes at a time, each released when the next one is asked for."""
        if self.packed:
            yield from self._numbers()
            return
        for start in range(self.start, self.stop, CHUNK):
            stop = min(start + CHUNK, self.stop)
            yield self.file.view(start, stop)
            self.file.release(start, stop)

    def _numbers(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of numbers that are kept one by one; those of halves and truth values are integers."""
        code = {"FLOAT16": "<u2", "BOOL": "u1"}.get(self.dtype, NUMPY[self.dtype])
        try:
            for numbers in unpacked(self.file.view(self.start, self.stop)):
                values = numbers.astype(code)
                if not np.array_equal(values.astype(np.int64), numbers):
                    raise self._error(f"a number in it is too large for {self.dtype}")
                yield values.view(np.uint8)
        except ValueError as error:
            raise self._error(str(error)) from None

    def _error(self, what: str) -> InvalidModelFile:
        return self.file.error(f"{self.label}: {what}")


def read_tensor(wire: Wire, file: MappedFile, place: Span, beside: Callable[[str], MappedFile]) -> StoredTensor:
    """The TensorProto at a place. beside: opens a file that it names, or gives the one that is open.

    Raises InvalidModelFile, ModelNotFound, Unsupported for types that are not numbers.
    """
    found = wire.read(place, _TENSOR)
    name, number, dims = found["name"], found["data_type"], found["dims"]
    entries = dict(read_entry(wire, entry) for entry in found["external_data"])
    places = {field: found[field] for field in _BYTES if found[field] and found[field][0] < found[field][1]}
    dtype = _NAMES.get(number, "")
    if dtype not in WIDTH:
        what = f"tensor {shown(name)} is of the type {dtype or number}; edgellm reads {', '.join(WIDTH)}"
        raise Unsupported(f"{file.path}: {what}: save the model without it")
    if len(dims) > MAX_DIMS or not all(0 <= size < MAX_SIZE for size in dims) or math.prod(dims) >= MAX_SIZE:
        raise wire.error(f"tensor {shown(name)} has the impossible shape {dims[: MAX_DIMS + 1]}", place[0])
    tensor = StoredTensor(name, dtype, tuple(dims), file, place[0], place[0], False)
    if not found["data_location"]:
        return _inline(wire, tensor, places)
    if places:
        raise wire.error(f"tensor {shown(name)} says that its bytes are in another file, and has some", place[0])
    return _outside(wire, tensor, entries, beside)


def read_entry(wire: Wire, place: Span) -> tuple[str, str]:
    """A StringStringEntryProto: a key and its value, which may be for people."""
    found = wire.read(place, _ENTRY)
    return found["key"], found["value"]


def _inline(wire: Wire, tensor: StoredTensor, places: dict[str, tuple[int, int]]) -> StoredTensor:
    """The tensor with the place of its bytes, of which there must be one, and as many as it needs."""
    field = _TYPED.get(tensor.dtype, "int32_data")
    if len(places) > 1 or not places.keys() <= {field, "raw_data"}:
        raise wire.error(f"{tensor.label} has bytes in {', '.join(places)}, where they do not belong", tensor.start)
    start, stop = places.get(field) or places.get("raw_data") or (tensor.start, tensor.start)
    packed = field in places and field not in ("float_data", "double_data")
    nbytes = stop - start
    if packed:  # a byte without its top bit ends a number
        parts = (tensor.file.view(at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK))
        nbytes = sum(int(np.count_nonzero(part < 0x80)) for part in parts) * np.dtype(NUMPY[tensor.dtype]).itemsize
    if nbytes != tensor.nbytes:
        raise wire.error(f"{tensor.label} has {nbytes} bytes, its type and shape need {tensor.nbytes}", start)
    return replace(tensor, start=start, stop=stop, packed=packed)


def _outside(
    wire: Wire, tensor: StoredTensor, entries: dict[str, str], beside: Callable[[str], MappedFile]
) -> StoredTensor:
    """The tensor with the place of its bytes in another file."""
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0" if key == "offset" else str(tensor.nbytes))
        if not _NUMBER.fullmatch(text):
            raise wire.error(f"{tensor.label} has the {key} {shown(text)}", tensor.start)
        numbers[key] = int(text)
    if "location" not in entries:
        raise wire.error(f"{tensor.label} does not say in which file its bytes are", tensor.start)
    if numbers["length"] != tensor.nbytes:
        what = f"{tensor.label} has {numbers['length']} bytes, its type and shape need {tensor.nbytes}"
        raise wire.error(what, tensor.start)
    file = beside(entries["location"])
    start, stop = numbers["offset"], numbers["offset"] + tensor.nbytes
    if stop > file.size:
        what = f"{tensor.label} is at bytes {start} to {stop} of {file.path.name}, which has {file.size}"
        raise wire.error(what, tensor.start)
    return replace(tensor, file=file, start=start, stop=stop)
