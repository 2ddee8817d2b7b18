"""Small ONNX models, by the `onnx` package and as our Graph, and how they are opened or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper as make
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidModelFile, ModelNotFound
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import UNKNOWN, Attribute, Graph, Initializer, Node, Value

Array = NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT


def initializer(name: str, array: Array, dtype: str = "FLOAT") -> Initializer:
    return Initializer(name, dtype, array.shape, lambda: iter([array]))


def sample() -> Graph:
    """A graph with a bit of everything."""
    branches: dict[str, Attribute] = {}
    for name, factor in (("then_branch", 2), ("else_branch", 3)):
        result = Value(f"{name}_y", "FLOAT", ("n", "", 4))
        multiply = Node("Mul", ("sum", f"{name}_c"), (result.name,))
        constant = initializer(f"{name}_c", np.array(factor, np.float32))
        branches[name] = Graph(name, (), (result,), (multiply,), (constant,))
    attributes: dict[str, Attribute] = {
        "whole": -3, "real": 0.25, "text": "grün", "wholes": (1, -(2**63)), "reals": (0.5, -1.0), "texts": ("a", ""),
        "array": np.arange(6, dtype=np.int64).reshape(2, 3), "none": (),
    }  # fmt: skip
    nodes = (
        Node("Add", ("x", "w"), ("sum",), name="add"),
        Node("If", ("c",), ("y",), name="if", attributes=branches),
        Node("Own", ("y", "", "packed"), ("", "z"), "com.example", "own", attributes),
    )
    inputs = Value("x", "FLOAT", ("n", "", 4)), Value("c", "BOOL", ()), Value("keep", "INT64", (1,))
    outputs = Value("y", "FLOAT", ("n", "", 4)), Value("z", "STRING", UNKNOWN)
    constants = (
        initializer("w", np.arange(4, dtype=np.float32)),
        initializer("large", np.arange(1000, dtype=np.float64), "DOUBLE"),
        Initializer("packed", "UINT4", (3, 3), lambda: iter([np.arange(5, dtype=np.uint8)])),
        initializer("keep", np.zeros(1, np.int64), "INT64"),
        initializer("empty", np.zeros((0, 3), np.float32)),
    )
    return Graph("sample", inputs, outputs, nodes, constants)


def content(tensor: Initializer) -> bytes:
    return b"".join(chunk.tobytes() for chunk in tensor.data())


def model(
    nodes: list[onnx.NodeProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    graph = make.make_graph(nodes or [], "g", inputs or [], outputs or [], initializers or [])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)


def opened(folder: Path, made: onnx.ModelProto | bytes) -> ONNXFile:
    path = folder / "made.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return ONNXFile.open(path)


def refused(
    folder: Path, made: onnx.ModelProto | bytes, kind: type[EdgeLLMError] | None = None, words: str = ""
) -> None:
    with pytest.raises(kind or InvalidModelFile) as caught:
        opened(folder, made)
    assert type(caught.value) is (kind or InvalidModelFile)
    assert "made.onnx" in str(caught.value) or kind is ModelNotFound
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1500 + len(str(folder))


def outside(location: str = "data", **entries: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def node(op: str = "Neg", inputs: str = "x", outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return make.make_node(op, inputs.split(), outputs.split(), **attributes)
