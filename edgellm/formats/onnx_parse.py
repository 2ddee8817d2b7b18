"""GraphReader: the graph of an ONNX file as plain values; weights stay where they lie.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.onnx_graph import (
    ATTRIBUTE_TYPES,
    DATA_TYPES,
    FOREIGN,
    UNKNOWN,
    Attribute,
    Graph,
    Initializer,
    Node,
    Value,
)
from edgellm.formats.onnx_tensor import StoredTensor
from edgellm.formats.protobuf import Span, Wire, schema

MAX_DEPTH = 8  # graphs in graphs
MAIN = ("", "ai.onnx")  # two names of the domain of ONNX's own operators
_GRAPH = schema(
    "span 1* node", "text 2 name", "span 5* initializer", "span 11* input", "span 12* output",
    "span 15* sparse_initializer",
)  # fmt: skip
_NODE = schema("text 1* input", "text 2* output", "text 3 name", "text 4 op_type", "span 5* attribute", "text 7 domain")
_ATTRIBUTE = schema(
    "text 1 name", "float 2 f", "int 3 i", "span 4 s", "span 5 t", "span 6 g", "floats 7* floats", "ints 8* ints",
    "span 9* strings", "int 20 type", "span 21 ref_attr_name",
)  # fmt: skip
_VALUE = schema("text 1 name", "span 2 type")
_TYPE = schema("span 1 tensor", "span 4 other", "span 5 other", "span 7 other", "span 8 other", "span 9 other")
_TENSOR_TYPE = schema("int 1 elem_type", "span 2 shape")
_SHAPE = schema("span 1* dim")
_DIM = schema("int 1* value", "text 2 param")
_TYPE_NAMES = {number: name for name, number in ATTRIBUTE_TYPES.items()}
_DTYPE_NAMES = {number: name for name, number in DATA_TYPES.items()}


class GraphReader:
    """Its method raises InvalidModelFile, Unsupported, and what `tensor` does: that reads a TensorProto."""

    def __init__(self, wire: Wire, path: Path, tensor: Callable[[Span], StoredTensor]) -> None:
        self._wire, self._path, self._tensor = wire, path, tensor

    def graph(self, place: Span, depth: int = 1) -> tuple[Graph, list[StoredTensor]]:
        """A GraphProto, and its own initializers where they lie. depth: 1 for the model's graph, more for branches."""
        wire = self._wire
        if depth > MAX_DEPTH:
            raise wire.error(f"more than {MAX_DEPTH} graphs inside of each other", place[0])
        found = wire.read(place, _GRAPH)
        if found["sparse_initializer"]:
            raise Unsupported(f"{self._path}: holds sparse initializers; save the model with dense ones")
        nodes = tuple(self._node(node, depth) for node in found["node"])
        tensors = [self._tensor(each) for each in found["initializer"]]
        inputs, outputs = (
            tuple(self._value(value, depth > 1) for value in found[name]) for name in ("input", "output")
        )
        initializers = tuple(Initializer(each.name, each.dtype, each.shape, each.chunks) for each in tensors)
        return Graph(found["name"], inputs, outputs, nodes, initializers), tensors

    def _node(self, place: Span, depth: int) -> Node:
        found = self._wire.read(place, _NODE)
        attributes: dict[str, Attribute] = {}
        for each in found["attribute"]:
            name, attribute = self._attribute(each, depth)
            if name in attributes:
                raise self._wire.error(f"the attribute {shown(name)} of a node appears twice", each[0])
            attributes[name] = attribute
        if not found["op_type"]:
            raise self._wire.error(f"node {shown(found['name'])} has no operator", place[0])
        domain = "" if found["domain"] in MAIN else found["domain"]
        return Node(found["op_type"], tuple(found["input"]), tuple(found["output"]), domain, found["name"], attributes)

    def _attribute(self, place: Span, depth: int) -> tuple[str, Attribute]:
        found = self._wire.read(place, _ATTRIBUTE)
        name, kind = found["name"], found["type"]
        values: dict[str, Attribute] = {
            "INT": found["i"],
            "FLOAT": found["f"],
            "STRING": self._string(found["s"]) if found["s"] else "",
            "INTS": tuple(found["ints"]),
            "FLOATS": tuple(found["floats"]),
            "STRINGS": tuple(self._string(each) for each in found["strings"]),
        }
        if found["g"]:
            values["GRAPH"] = self.graph(found["g"], depth + 1)[0]
        if found["t"]:
            values["TENSOR"] = self._constant(self._tensor(found["t"]))
        if kind not in _TYPE_NAMES and kind:
            raise Unsupported(
                f"{self._path}: the attribute {shown(name)} is of the type {kind}; edgellm reads {[*ATTRIBUTE_TYPES]}"
            )
        typed = _TYPE_NAMES.get(kind)
        if typed not in values or found["ref_attr_name"] or not name:
            raise self._wire.error(f"the attribute {shown(name)} has no type or no value", place[0])
        return name, values[typed]

    def _string(self, place: Span) -> str:
        """A string among the attributes, which may hold any bytes."""
        try:
            return self._wire.text(*place)
        except InvalidModelFile:
            where = f"{self._path}: an attribute holds bytes that are no text (at byte {place[0]})"
            raise Unsupported(f"{where}; edgellm reads texts only") from None

    def _constant(self, tensor: StoredTensor) -> NDArray[np.generic]:
        """A tensor among the attributes: a copy where it lies in the model file, so that this is not kept mapped."""
        if tensor.dtype in FOREIGN:
            raise Unsupported(
                f"{self._path}: an attribute is a tensor of {tensor.dtype}; save such constants as initializers"
            )
        array = tensor.array()
        return array.copy() if tensor.file.path == self._path else array

    def _value(self, place: Span, inner: bool) -> Value:
        """inner: it belongs to a branch, and so need not say its type."""
        wire = self._wire
        found = wire.read(place, _VALUE)
        name, kind = found["name"], wire.read(found["type"], _TYPE)
        if kind["other"] or not (kind["tensor"] or inner):
            raise Unsupported(
                f"{self._path}: value {shown(name)} is no tensor (a sequence, map or optional, or of no type at all); "
                "export the model with tensors as inputs and outputs"
            )
        tensor = wire.read(kind["tensor"], _TENSOR_TYPE)
        number: int = tensor["elem_type"]
        shape: tuple[int | str, ...] = UNKNOWN
        if tensor["shape"]:
            shape = tuple(self._dim(name, dim) for dim in wire.read(tensor["shape"], _SHAPE)["dim"])
        if inner and not number:
            return Value(name, "UNDEFINED", UNKNOWN)
        if number not in _DTYPE_NAMES:
            raise Unsupported(f"{self._path}: value {shown(name)} is of the type {number}, which edgellm does not know")
        return Value(name, _DTYPE_NAMES[number], shape)

    def _dim(self, name: str, place: Span) -> int | str:
        found = self._wire.read(place, _DIM)
        size: int | str = found["value"][-1] if found["value"] else found["param"]
        if isinstance(size, int) and size < 0:
            raise self._wire.error(f"value {shown(name)} has a dimension of the size {size}", place[0])
        return size
