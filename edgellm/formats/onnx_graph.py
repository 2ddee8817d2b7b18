"""Graph: what an ONNX model says, as plain values that the reader gives and the writer takes.

Names and meanings are those of the ONNX specification (https://github.com/onnx/onnx/blob/main/docs/IR.md) and of its
onnx.proto. Weights are not here: an Initializer says what one is, and where its bytes come from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Union

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown

# number in TensorProto.DataType, bytes of an element, numpy type of one. numpy has no bfloat16, nothing of 8 bits or
# less but integers: these are seen as the bytes that hold them
_TYPES: dict[str, tuple[int, float, str]] = {
    "FLOAT": (1, 4, "<f4"), "DOUBLE": (11, 8, "<f8"), "FLOAT16": (10, 2, "<f2"), "BFLOAT16": (16, 2, "<u2"),
    "INT64": (7, 8, "<i8"), "INT32": (6, 4, "<i4"), "INT16": (5, 2, "<i2"), "INT8": (3, 1, "i1"),
    "UINT64": (13, 8, "<u8"), "UINT32": (12, 4, "<u4"), "UINT16": (4, 2, "<u2"), "UINT8": (2, 1, "u1"),
    "BOOL": (9, 1, "?"), "UINT4": (21, 0.5, "u1"), "INT4": (22, 0.5, "u1"), "FLOAT8E4M3FN": (17, 1, "u1"),
    "FLOAT8E4M3FNUZ": (18, 1, "u1"), "FLOAT8E5M2": (19, 1, "u1"), "FLOAT8E5M2FNUZ": (20, 1, "u1"),
    "FLOAT8E8M0": (24, 1, "u1"), "FLOAT4E2M1": (23, 0.5, "u1"), "UINT2": (25, 0.25, "u1"), "INT2": (26, 0.25, "u1"),
}  # fmt: skip
WIDTH = {name: width for name, (_, width, _) in _TYPES.items()}
"""Bytes of an element, by the name that TensorProto.DataType gives the type."""

NUMPY = {name: code for name, (_, _, code) in _TYPES.items()}
"""The numpy type of an element; of the packed bytes for types of less than 8 bits."""

FOREIGN = {name for name, width in WIDTH.items() if width < 1 or name.startswith(("BFLOAT", "FLOAT8"))}
"""The types that numpy does not have."""

_UNREAD = {"STRING": 8, "COMPLEX64": 14, "COMPLEX128": 15}
DATA_TYPES = {name: number for name, (number, _, _) in _TYPES.items()} | _UNREAD
"""TensorProto.DataType, but UNDEFINED (0)."""

ATTRIBUTE_TYPES: dict[str, int] = {
    "FLOAT": 1, "INT": 2, "STRING": 3, "TENSOR": 4, "GRAPH": 5, "FLOATS": 6, "INTS": 7, "STRINGS": 8,
}  # fmt: skip
"""AttributeProto.AttributeType, those that an Attribute can be."""

UNKNOWN: tuple[str, ...] = ("...",)
"""The shape of a value that does not even say how many dimensions it has."""

Attribute = Union[
    int, float, str, "tuple[int, ...]", "tuple[float, ...]", "tuple[str, ...]", "Graph", NDArray[np.generic]
]
"""An attribute of a node: an array stands for a tensor, a Graph for a branch of If."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or an output. dtype: as in DATA_TYPES; "UNDEFINED" for a value of a branch that does not say it.

    shape: sizes, and names of those that are only known when it runs ("" for one without a name); or UNKNOWN.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """An operation; "" among the inputs or outputs stands for one that is left out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""
    name: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight or a constant. shape: in elements. data: makes its bytes anew on each call, in pieces of any shape whose
    bytes follow one another (little-endian; types of less than 8 bits packed, the low bits first)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Iterator[NDArray[np.generic]]]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.ceil(math.prod(self.shape) * WIDTH[self.dtype])


@dataclass(frozen=True)
class Graph:
    """A model's graph, or a branch of If (which has no inputs and sees the values around it).

    An initializer of the name of an input is that input's default: it then need not be fed.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    initializers: tuple[Initializer, ...] = ()


def broken(graph: Graph) -> str:
    """What is wrong with how the nodes hang together, "" if nothing is: every name has one origin, which comes before
    its uses (so no value depends on itself). A branch also sees what was there before the node that it belongs to."""
    return _broken(graph, ())


def _broken(graph: Graph, around: tuple[set[str], ...]) -> str:
    inputs = [value.name for value in graph.inputs]
    initial = [initializer.name for initializer in graph.initializers]
    known = {*inputs, *initial}
    scopes = (known, *around)
    for kind, names in (("inputs", inputs), ("initializers", initial)):
        if len(set(names)) != len(names):
            twice = Counter(names).most_common(1)[0][0]
            return f"two {kind} are named {shown(twice)}"
        if "" in names:
            return f"one of the {kind} has no name"
    for node in graph.nodes:
        label = f"node {shown(node.name)} ({node.op[:100]})"
        for name in node.inputs:
            if name and not any(name in scope for scope in scopes):
                return f"{label} reads {shown(name)}, which nothing before it makes"
        for name, value in node.attributes.items():
            if isinstance(value, Graph) and (why := _broken(value, scopes)):
                return f"{why}, in {shown(name)} of {label}"
        for name in filter(None, node.outputs):
            if name in known:
                return f"{label} makes {shown(name)}, which is there already"
            known.add(name)
    for output in graph.outputs:
        if not any(output.name in scope for scope in scopes):
            return f"nothing makes the output {shown(output.name)}"
    return ""
