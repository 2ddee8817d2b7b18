"""ONNX models with other nodes: `ONNXFile.rewritten` against the `onnx` package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper as make
import onnx.numpy_helper
from onnx_protos import model, node

from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Node


def test_other_nodes_and_all_else_as_it_was(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    nodes = [
        make.make_node("Op", [before, "w"], [name], domain="" if name == "b" else "com.microsoft", doc_string="why")
        for before, name in zip(["x", *names], names, strict=False)
    ]
    nodes[1].overload = "one of two"
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "d", "c")]
    graph = make.make_graph(
        nodes,
        "g",
        values[:1],
        values[1:2],
        [onnx.numpy_helper.from_array(np.float32([1, 2]), "w")],
        value_info=values[2:],
    )
    own = make.make_function("own", "Op", ["x"], ["y"], [node("Neg", "x", "y")], [make.make_opsetid("", 21)])
    made = make.make_model(graph, functions=[own], doc_string="what it is")
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    with ONNXFile.open(path) as file:
        assert onnx.ModelProto.FromString(file.rewritten(file.graph, tmp_path)) == made
        fused = Node("Other", ("b", "w"), ("d",), "edgellm", "fused", {"n": 3})
        changed = onnx.ModelProto.FromString(
            file.rewritten(replace(file.graph, nodes=(*file.graph.nodes[:2], fused)), tmp_path)
        )
    del made.graph.node[2:]
    made.graph.node.append(make.make_node("Other", ["b", "w"], ["d"], "fused", domain="edgellm", n=3))
    made.opset_import.append(make.make_opsetid("edgellm", 1))
    assert changed == made


def test_weights_inside_of_a_model_are_not_copied(tmp_path: Path) -> None:
    large = np.arange(1000, dtype=np.float32)
    few = onnx.numpy_helper.from_array(np.float32([1]), "few")
    numbers = make.make_tensor("numbers", onnx.TensorProto.INT32, [600], range(600))  # one by one: they are copied
    inside = onnx.numpy_helper.from_array(large, "large")
    path = tmp_path / "m.onnx"
    path.write_bytes(model(initializers=[few, inside, numbers]).SerializeToString())
    with ONNXFile.open(path) as file:
        assert file.weight_paths == [path]
        raw = file.rewritten(file.graph, tmp_path)
    assert len(raw) < 2500
    again = tmp_path / "again.onnx"
    again.write_bytes(raw)
    with ONNXFile.open(again) as file:
        assert file.data_paths == [path]
        assert (file.array("large") == large).all()
        assert file.array("numbers").tolist() == [*range(600)]
        assert file.array("few").tolist() == [1.0]
