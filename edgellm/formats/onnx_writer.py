"""write_onnx: an ONNX model from a Graph, its weights streamed into a file beside it.

    model.onnx        ModelProto: ir version | opsets | metadata | graph, with the initializers below 1 KiB
    model.onnx_data   the other initializers, each at a multiple of 4 KiB (64 KiB from 1 MiB on)

Engines map the second file into memory; 64 KiB is the step that Windows maps at. Field numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, the entries of external data those of
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidParameter
from edgellm.formats.onnx_graph import (
    ATTRIBUTE_TYPES,
    DATA_TYPES,
    FOREIGN,
    NUMPY,
    UNKNOWN,
    WIDTH,
    Attribute,
    Graph,
    Initializer,
    Node,
    Value,
    broken,
)
from edgellm.formats.protobuf import integer, message, prefix, single, text
from edgellm.formats.writing import whole_file, write_data

MAX_MODEL = (1 << 31) - 1  # bytes of one protobuf message
INLINE = 1024  # bytes; initializers from here on go to the data file
LARGE, LARGE_STEP, STEP = 1 << 20, 1 << 16, 1 << 12
OPSETS: Mapping[str, int] = {"": 21, "com.microsoft": 1}
IR_VERSION = 10
_EXTERNAL = 1

Piece = bytes | Initializer
"""What a file is written from: bytes as they are, and initializers whose bytes come when it is their turn."""


def write_onnx(
    path: str | os.PathLike[str],
    graph: Graph,
    *,
    metadata: Mapping[str, str] | None = None,
    opsets: Mapping[str, int] = OPSETS,
    ir_version: int = IR_VERSION,
    keep_data: bool = False,
) -> None:
    """Write a model and, where initializers are large, its data file: the model's name and `_data` behind it.

    keep_data: that is there already, of a graph with the same large initializers, and stays.

    Both appear under their names only when they are complete and on disk, the data first; after an error nothing is
    left. The same graph gives the same bytes. An empty tuple among the attributes is one of integers.

    Raises InvalidParameter for what ONNX cannot hold and for a graph that is not in order, CannotWrite.
    """
    path = Path(path)
    pieces, offsets = _model(graph, f"{path.name}_data", metadata, opsets, ir_version)
    with contextlib.ExitStack() as files:
        model = files.enter_context(whole_file(path))
        if offsets and not keep_data:
            data = files.enter_context(whole_file(path.with_name(f"{path.name}_data")))
            for initializer in graph.initializers:
                if initializer.name in offsets:
                    data.write(bytes(offsets[initializer.name] - data.tell()))
                    _write(data, initializer)
        for piece in pieces:
            _write(model, piece)


def onnx_bytes(graph: Graph, metadata: Mapping[str, str] | None = None, *, name: str = "model.onnx") -> tuple[int, int]:
    """The sizes of the two files that `write_onnx` would make, 0 for one that is not needed. Reads no data.

    name: the model file's; the model names its data file.
    """
    pieces, offsets = _model(graph, f"{name}_data", metadata, OPSETS, IR_VERSION)
    ends = [offsets[each.name] + each.nbytes for each in graph.initializers if each.name in offsets]
    return _size(pieces), max(ends, default=0)


def _model(
    graph: Graph, data: str, metadata: Mapping[str, str] | None, opsets: Mapping[str, int], ir_version: int
) -> tuple[list[Piece], dict[str, int]]:
    """The model file, and where initializers lie in the data file of this name."""
    why = broken(graph)
    if why:
        raise InvalidParameter(f"graph {graph.name!r}: {why}")
    offsets: dict[str, int] = {}
    end = 0
    for initializer in graph.initializers:
        _check(initializer)
        if initializer.nbytes >= INLINE:
            step = LARGE_STEP if initializer.nbytes >= LARGE else STEP
            offsets[initializer.name] = start = -(-end // step) * step
            end = start + initializer.nbytes
    inner = _graph(graph, data, offsets)
    pieces: list[Piece] = [
        integer(1, ir_version),
        text(2, "edgellm"),
        prefix(7, _size(inner)),
        *inner,
        *(message(8, text(1, domain), integer(2, version)) for domain, version in sorted(opsets.items())),
        *(message(14, text(1, key), text(2, value)) for key, value in sorted((metadata or {}).items())),
    ]
    if _size(pieces) > MAX_MODEL:
        raise InvalidParameter(
            f"graph {graph.name!r}: {_size(pieces)} bytes without the data file, ONNX allows {MAX_MODEL}; keep large "
            "constants out of branches and attributes"
        )
    return pieces, offsets


def _graph(graph: Graph, data: str, offsets: Mapping[str, int]) -> list[Piece]:
    pieces: list[Piece] = []
    for node in graph.nodes:
        pieces += _nested(1, _node(node))
    pieces.append(text(2, graph.name))
    for initializer in graph.initializers:
        _check(initializer)
        offset = offsets.get(initializer.name)
        if offset is None:
            head = _tensor(initializer.dtype, initializer.shape, initializer.name)
            pieces += _nested(5, [head, prefix(9, initializer.nbytes), initializer])
        else:
            pieces.append(outside_message(initializer, data, offset))
    pieces += (message(11, _value(value)) for value in graph.inputs)
    pieces += (message(12, _value(value)) for value in graph.outputs)
    return pieces


def node_message(node: Node) -> bytes:
    """A node as it lies in a graph. Raises InvalidParameter for what ONNX cannot hold, and for initializers of a graph
    among its attributes."""
    pieces = _nested(1, _node(node))
    if not all(isinstance(piece, bytes) for piece in pieces):
        raise InvalidParameter(f"node {node.name!r}: initializers of a branch are not written here")
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def outside_message(initializer: Initializer, location: str | bytes, offset: int) -> bytes:
    """An initializer as it lies in a graph, its bytes in the file `location` from `offset` on."""
    entries = {"location": location, "offset": str(offset), "length": str(initializer.nbytes)}
    outside = (message(13, text(1, key), text(2, value)) for key, value in entries.items())
    head = _tensor(initializer.dtype, initializer.shape, initializer.name)
    return message(5, head, *outside, integer(14, _EXTERNAL))


def _node(node: Node) -> list[Piece]:
    pieces: list[Piece] = [*(text(1, name) for name in node.inputs), *(text(2, name) for name in node.outputs)]
    pieces.append(text(3, node.name) + text(4, node.op))
    for name, value in node.attributes.items():
        try:
            kind, parts = _attribute(value)
        except (TypeError, OverflowError):
            shown = f"{type(value).__name__} {str(value)[:40]}"
            raise InvalidParameter(f"node {node.name!r}: ONNX has no attribute for {name}={shown}") from None
        pieces += _nested(5, [text(1, name), *parts, integer(20, ATTRIBUTE_TYPES[kind])])
    if node.domain:
        pieces.append(text(7, node.domain))
    return pieces


def _attribute(value: Attribute) -> tuple[str, list[Piece]]:
    """The type, and the fields that hold the value. TypeError, OverflowError for what there is no type for."""
    if isinstance(value, Graph):
        return "GRAPH", _nested(6, _graph(value, "", {}))
    if isinstance(value, np.ndarray):
        raw = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        return "TENSOR", [message(5, _tensor(_dtype(value), value.shape, ""), text(9, raw))]
    if isinstance(value, str):
        return "STRING", [text(4, value)]
    if isinstance(value, float):
        return "FLOAT", [single(2, value)]
    if isinstance(value, int):
        return "INT", [_signed(3, value)]
    if not isinstance(value, tuple):
        raise TypeError(value)
    ints = [item for item in value if isinstance(item, int)]
    if len(ints) == len(value):
        return "INTS", [_signed(8, item) for item in ints]
    numbers = [item for item in value if isinstance(item, (int, float))]
    if len(numbers) == len(value):
        return "FLOATS", [single(7, item) for item in numbers]
    strings = [item for item in value if isinstance(item, str)]
    if len(strings) == len(value):
        return "STRINGS", [text(9, item) for item in strings]
    raise TypeError(value)


def _signed(field: int, number: int) -> bytes:
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(number)
    return integer(field, number)


def _value(value: Value) -> bytes:
    if value.dtype == "UNDEFINED":
        return text(1, value.name)
    if value.dtype not in DATA_TYPES:
        raise InvalidParameter(f"value {value.name!r}: ONNX has no type {value.dtype!r}; it has {', '.join(WIDTH)}")
    tensor = integer(1, DATA_TYPES[value.dtype])
    if value.shape != UNKNOWN:
        tensor += message(2, *(message(1, _dim(size)) for size in value.shape))
    return text(1, value.name) + message(2, message(1, tensor))


def _dim(size: int | str) -> bytes:
    if isinstance(size, str):
        return text(2, size) if size else b""
    return integer(1, size)


def _tensor(dtype: str, shape: tuple[int, ...], name: str) -> bytes:
    """A tensor's fields but its bytes."""
    return b"".join(integer(1, size) for size in shape) + integer(2, DATA_TYPES[dtype]) + text(8, name)


def _check(initializer: Initializer) -> None:
    if initializer.dtype not in WIDTH:
        raise InvalidParameter(f"initializer {initializer.name!r}: type {initializer.dtype!r} is not one of {[*WIDTH]}")
    if min(initializer.shape, default=0) < 0:
        raise InvalidParameter(f"initializer {initializer.name!r}: the shape {initializer.shape} is impossible")


def _dtype(array: NDArray[np.generic]) -> str:
    """The type of an array's elements. TypeError if there is none."""
    for name, code in NUMPY.items():
        if np.dtype(code) == array.dtype.newbyteorder("<") and name not in FOREIGN:
            return name
    raise TypeError(array.dtype)


def _nested(field: int, pieces: list[Piece]) -> list[Piece]:
    return [prefix(field, _size(pieces)), *pieces]


def _size(pieces: list[Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)


def _write(file: BinaryIO, piece: Piece) -> None:
    if isinstance(piece, bytes):
        file.write(piece)
    else:
        write_data(file, piece.name, piece.data, piece.nbytes)
