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
    Node,
    Value,
)
from edgellm.formats.onnx_tensor import StoredTensor
from edgellm.formats.protobuf import Wire, schema, signed

MAX_DEPTH = 8  # graphs in graphs
MAIN = ("", "ai.onnx")  # two names of the domain of ONNX's own operators
_GRAPH = schema(
    "span 1* node", "span 2 name", "span 5* initializer", "span 11* input", "span 12* output",
    "span 15* sparse_initializer",
)  # fmt: skip
_NODE = schema("span 1* input", "span 2* output", "span 3 name", "span 4 op_type", "span 5* attribute", "span 7 domain")
_ATTRIBUTE = schema(
    "span 1 name", "four 2 f", "varint 3 i", "span 4 s", "span 5 t", "span 6 g", "span 7* floats", "four 7* float",
    "span 8* ints", "varint 8* int", "span 9* strings", "varint 20 type", "span 21 ref_attr_name",
)  # fmt: skip
_VALUE = schema("span 1 name", "span 2 type")
_TYPE = schema("span 1 tensor", "span 4 other", "span 5 other", "span 7 other", "span 8 other", "span 9 other")
_TENSOR_TYPE = schema("varint 1 elem_type", "span 2 shape")
_SHAPE = schema("span 1* dim")
_DIM = schema("varint 1 value", "span 2 param")
_TYPE_NAMES = {number: name for name, number in ATTRIBUTE_TYPES.items()}
_DTYPE_NAMES = {number: name for name, number in DATA_TYPES.items()}


class GraphReader:
    """Its method raises InvalidModelFile, Unsupported, and what `tensor` does: that reads a TensorProto."""

    def __init__(self, wire: Wire, path: Path, tensor: Callable[[int, int], StoredTensor]) -> None:
        self._wire, self._path, self._tensor = wire, path, tensor

    def graph(self, start: int, stop: int, depth: int = 1) -> tuple[Graph, list[StoredTensor]]:
        """A GraphProto, and its own initializers where they lie. depth: 1 for the model's graph, more for branches."""
        wire = self._wire
        if depth > MAX_DEPTH:
            raise wire.error(f"more than {MAX_DEPTH} graphs inside of each other", start)
        name = ""
        nodes: list[Node] = []
        values: dict[str, list[Value]] = {"input": [], "output": []}
        tensors: list[StoredTensor] = []
        for field, value, end in wire.fields(start, stop, _GRAPH):
            if field == "node":
                nodes.append(self._node(value, end, depth))
            elif field == "name":
                name = wire.text(value, end)
            elif field == "initializer":
                tensors.append(self._tensor(value, end))
            elif field == "sparse_initializer":
                raise Unsupported(f"{self._path}: holds sparse initializers; save the model with dense ones")
            else:
                values[field].append(self._value(value, end, depth > 1))
        initializers = tuple(tensor.initializer() for tensor in tensors)
        found = Graph(name, tuple(values["input"]), tuple(values["output"]), tuple(nodes), initializers)
        return found, tensors

    def _node(self, start: int, stop: int, depth: int) -> Node:
        wire = self._wire
        names: dict[str, list[str]] = {"input": [], "output": []}
        one = {"op_type": "", "domain": "", "name": ""}
        attributes: dict[str, Attribute] = {}
        for field, value, end in wire.fields(start, stop, _NODE):
            if field == "attribute":
                name, attribute = self._attribute(value, end, depth)
                if name in attributes:
                    raise wire.error(f"the attribute {shown(name)} of a node appears twice", value)
                attributes[name] = attribute
            elif field in names:
                names[field].append(wire.text(value, end))
            else:
                one[field] = wire.text(value, end)
        if not one["op_type"]:
            raise wire.error(f"node {shown(one['name'])} has no operator", start)
        domain = "" if one["domain"] in MAIN else one["domain"]
        return Node(one["op_type"], tuple(names["input"]), tuple(names["output"]), domain, one["name"], attributes)

    def _attribute(self, start: int, stop: int, depth: int) -> tuple[str, Attribute]:
        wire, name, kind, referred = self._wire, "", 0, False
        single: dict[str, Attribute] = {}
        ints: list[int] = []
        floats: list[float] = []
        strings: list[str] = []
        for field, value, end in wire.fields(start, stop, _ATTRIBUTE):
            if field == "name":
                name = wire.text(value, end)
            elif field == "type":
                kind = value
            elif field == "i":
                single["INT"] = signed(value)
            elif field == "f":
                single["FLOAT"] = next(wire.singles(value, end))
            elif field == "s":
                single["STRING"] = self._string(value, end)
            elif field == "g":
                single["GRAPH"] = self.graph(value, end, depth + 1)[0]
            elif field == "t":
                single["TENSOR"] = self._constant(self._tensor(value, end))
            elif field == "int":
                ints.append(signed(value))
            elif field == "ints":
                ints += wire.integers(value, end)
            elif field in ("float", "floats"):
                floats += wire.singles(value, end)
            elif field == "strings":
                strings.append(self._string(value, end))
            else:
                referred = True
        if kind not in _TYPE_NAMES and kind:
            raise Unsupported(
                f"{self._path}: the attribute {shown(name)} is of the type {kind}; edgellm reads {[*ATTRIBUTE_TYPES]}"
            )
        single.update(INTS=tuple(ints), FLOATS=tuple(floats), STRINGS=tuple(strings))
        for absent, default in (("INT", 0), ("FLOAT", 0.0), ("STRING", "")):
            single.setdefault(absent, default)
        typed = _TYPE_NAMES.get(kind)
        if typed not in single or referred or not name:
            raise wire.error(f"the attribute {shown(name)} has no type or no value", start)
        return name, single[typed]

    def _string(self, start: int, stop: int) -> str:
        """A string among the attributes, which may hold any bytes."""
        try:
            return self._wire.text(start, stop)
        except InvalidModelFile:
            raise Unsupported(
                f"{self._path}: an attribute holds bytes that are no text (at byte {start}); edgellm reads texts only"
            ) from None

    def _constant(self, tensor: StoredTensor) -> NDArray[np.generic]:
        """A tensor among the attributes: a copy where it lies in the model file, so that this is not kept mapped."""
        if tensor.dtype in FOREIGN:
            raise Unsupported(
                f"{self._path}: an attribute is a tensor of {tensor.dtype}; save such constants as initializers"
            )
        array = tensor.array()
        return array.copy() if tensor.file.path == self._path else array

    def _value(self, start: int, stop: int, inner: bool) -> Value:
        """inner: it belongs to a branch, and so need not say its type."""
        wire, name, kind = self._wire, "", None
        for field, value, end in wire.fields(start, stop, _VALUE):
            if field == "name":
                name = wire.text(value, end)
            else:
                kind = value, end
        tensor = None
        if kind is not None:
            for field, value, end in wire.fields(*kind, _TYPE):
                if field == "other":
                    raise self._no_tensor(name)
                tensor = value, end
        if tensor is None:
            if not inner:
                raise self._no_tensor(name)
            return Value(name, "UNDEFINED", UNKNOWN)
        number = 0
        shape: tuple[int | str, ...] = UNKNOWN
        for field, value, end in wire.fields(*tensor, _TENSOR_TYPE):
            if field == "elem_type":
                number = value
            else:
                shape = tuple(self._dim(name, *dim[1:]) for dim in wire.fields(value, end, _SHAPE))
        if inner and not number:
            return Value(name, "UNDEFINED", UNKNOWN)
        if number not in _DTYPE_NAMES:
            raise Unsupported(f"{self._path}: value {shown(name)} is of the type {number}, which edgellm does not know")
        return Value(name, _DTYPE_NAMES[number], shape)

    def _no_tensor(self, name: str) -> Unsupported:
        return Unsupported(
            f"{self._path}: value {shown(name)} is no tensor (a sequence, map or optional, or of no type at all); "
            "export the model with tensors as inputs and outputs"
        )

    def _dim(self, name: str, start: int, stop: int) -> int | str:
        size: int | str = ""
        for field, value, end in self._wire.fields(start, stop, _DIM):
            size = signed(value) if field == "value" else self._wire.text(value, end)
        if isinstance(size, int) and size < 0:
            raise self._wire.error(f"value {shown(name)} has a dimension of the size {size}", start)
        return size
