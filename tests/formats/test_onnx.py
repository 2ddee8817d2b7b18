"""The ONNX reader against the `onnx` package and against our writer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper as make
import onnx.numpy_helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_protos import FLOAT, content, model, node, opened, refused, sample

from edgellm.errors import InvalidModelFile, ModelNotFound
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import FOREIGN, NUMPY, UNKNOWN, Graph, Value
from edgellm.formats.onnx_writer import write_onnx
from edgellm.formats.protobuf import integer, message, text, unpacked, varint


def plain(graph: Graph) -> tuple[Any, ...]:
    """A graph as values that can be compared."""

    def attribute(value: Any) -> Any:
        if isinstance(value, Graph):
            return plain(value)
        return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value

    nodes = [
        (
            each.op,
            each.inputs,
            each.outputs,
            each.domain,
            each.name,
            [(name, type(value), attribute(value)) for name, value in each.attributes.items()],
        )
        for each in graph.nodes
    ]
    tensors = [(each.name, each.dtype, each.shape, content(each)) for each in graph.initializers]
    return graph.name, graph.inputs, graph.outputs, nodes, tensors


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    write_onnx(path, sample(), metadata={"b": "2", "a": "ü"}, opsets={"": 21, "com.example": 3})
    with ONNXFile.open(path) as file:
        assert plain(file.graph) == plain(sample())
        assert file.metadata == {"a": "ü", "b": "2"}
        assert file.opsets == {"": 21, "com.example": 3}
        assert (file.ir_version, file.producer) == (10, "edgellm")
        assert file.data_paths == [tmp_path / "a.onnx_data"]
        np.testing.assert_array_equal(file.array("large"), np.arange(1000.0))
        assert file.data("packed").tobytes() == bytes(range(5))
        assert file.array("packed").shape == (5,)
        assert file.array("empty").shape == (0, 3)
        file.release("large")
        assert not file.array("large").flags.writeable
        again = tmp_path / "b.onnx"
        write_onnx(again, file.graph, metadata=file.metadata, opsets=file.opsets)
        with pytest.raises(KeyError):
            file.data("then_branch_c")
    assert again.read_bytes() == path.read_bytes().replace(b"a.onnx_data", b"b.onnx_data")
    assert (tmp_path / "b.onnx_data").read_bytes() == (tmp_path / "a.onnx_data").read_bytes()
    file.close()


TYPES = [name for name in NUMPY if hasattr(onnx.TensorProto, name)]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_that_onnx_writes(tmp_path: Path, dtype: str, raw: bool) -> None:
    kind = onnx.TensorProto.DataType.Value(dtype)
    numpy_type = make.tensor_dtype_to_np_dtype(kind)
    values = np.array([[1, 0, 1], [0, 1, 1]] if dtype == "BOOL" else [[1, 0, 2], [4, 1, 0.5]])
    if "INT" in dtype and not dtype.startswith("U"):
        values = values * -1
    array = np.clip(values, -2, 1).astype(numpy_type) if dtype.endswith("INT2") else values.astype(numpy_type)
    if raw:
        tensor = onnx.numpy_helper.from_array(array, "w")
        tensor.data_type = kind  # INT4 and the like may come as another
    else:
        tensor = make.make_tensor("w", kind, array.shape, array.flatten().tolist())
    assert tensor.HasField("raw_data") == raw
    expected = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
    with opened(tmp_path, model(initializers=[tensor])) as file:
        (found,) = file.graph.initializers
        assert (found.name, found.dtype, found.shape) == ("w", dtype, (2, 3))
        assert file.data("w").tobytes() == content(found) == expected
        assert found.nbytes == len(expected)
        if dtype not in FOREIGN:
            np.testing.assert_array_equal(file.array("w"), array)


def test_extreme_numbers_kept_one_by_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "INT64": np.concatenate([[-(2**63), 2**63 - 1, -1], random.integers(-(2**62), 2**62, 200_000)]),
        "UINT64": np.array([0, 2**64 - 1, 127, 128], np.uint64),
        "UINT32": np.array([2**32 - 1, 0], np.uint32),
        "INT32": np.array([-(2**31), 2**31 - 1, 300], np.int32),
        "FLOAT16": np.array([-1.5, np.inf, 65504], np.float16),
        "DOUBLE": np.array([1e300, -0.0]),
    }
    tensors = [
        make.make_tensor(name, onnx.TensorProto.DataType.Value(name), array.shape, array)
        for name, array in arrays.items()
    ]
    with opened(tmp_path, model(initializers=tensors)) as file:
        for name, array in arrays.items():
            found = file.array(name)
            assert found.dtype == array.dtype
            assert found.tobytes() == array.tobytes() == file.data(name).tobytes()
        streamed = b"".join(chunk.tobytes() for chunk in file.graph.initializers[0].data())
        assert streamed == arrays["INT64"].tobytes()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_unpacked_is_the_inverse_of_varint(numbers: list[int]) -> None:
    packed = np.frombuffer(b"".join(varint(number) for number in numbers), np.uint8)
    assert [number for block in unpacked(packed) for number in block.tolist()] == numbers


def test_model_that_onnx_writes(tmp_path: Path) -> None:
    body = make.make_graph(
        [make.make_node("Add", ["x", "i"], ["sum"]), make.make_node("Identity", ["go"], ["on"])],
        "body",
        [onnx.ValueInfoProto(name="i"), onnx.ValueInfoProto(name="go")],
        [make.make_tensor_value_info("on", 0, []), make.make_tensor_value_info("sum", FLOAT, None)],
    )
    loop = make.make_node("Loop", ["", "c"], ["y"], name="loop", body=body, domain="ai.onnx", doc_string="words")
    constant = make.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.arange(3.0)))
    made = model(
        [constant, loop],
        inputs=[make.make_tensor_value_info("x", FLOAT, [2, "n", None]), make.make_tensor_value_info("c", 9, [])],
        outputs=[make.make_tensor_value_info("y", FLOAT, None)],
    )
    made.producer_name, made.producer_version, made.doc_string = "tool", "2.1", "words"
    made.opset_import.append(make.make_opsetid("com.microsoft", 1))
    made.graph.value_info.append(make.make_tensor_value_info("sum", FLOAT, [1]))
    made.functions.append(make.make_function("own", "f", ["a"], ["b"], [make.make_node("Neg", ["a"], ["b"])], []))
    make.set_model_props(made, {"k": "v"})
    with opened(tmp_path, made) as file:
        assert file.graph.inputs == (Value("x", "FLOAT", (2, "n", "")), Value("c", "BOOL", ()))
        assert file.graph.outputs == (Value("y", "FLOAT", UNKNOWN),)
        assert (file.producer, file.metadata, file.opsets) == ("tool 2.1", {"k": "v"}, {"": 21, "com.microsoft": 1})
        first, second = file.graph.nodes
        value = first.attributes["value"]
        assert isinstance(value, np.ndarray)
        assert value.base is None  # it does not keep the file mapped
        np.testing.assert_array_equal(value, np.arange(3.0))
        assert (second.op, second.inputs, second.domain, second.name) == ("Loop", ("", "c"), "", "loop")
        inner = second.attributes["body"]
        assert isinstance(inner, Graph)
        assert [(each.dtype, each.shape) for each in inner.inputs + inner.outputs] == [
            ("UNDEFINED", UNKNOWN), ("UNDEFINED", UNKNOWN), ("UNDEFINED", UNKNOWN), ("FLOAT", UNKNOWN),
        ]  # fmt: skip


def test_packed_and_unpacked_lists_are_the_same(tmp_path: Path) -> None:
    numbers = b"".join(varint(number & (1 << 64) - 1) for number in (1, -2, 300))
    floats = np.array([0.5, -1], "<f4").tobytes()
    attributes = [
        message(5, text(1, "wholes"), integer(20, 7), text(8, numbers)),
        message(5, text(1, "reals"), integer(20, 6), text(7, floats)),
    ]
    tensor = message(5, text(1, varint(2) + varint(1)), integer(2, 2), text(8, "w"), text(9, b"ab"))
    graph = message(7, message(1, text(4, "Op"), *attributes), tensor)
    with opened(tmp_path, integer(1, 10) + message(8, integer(2, 21)) + graph) as file:
        assert file.graph.nodes[0].attributes == {"wholes": (1, -2, 300), "reals": (0.5, -1.0)}
        assert file.array("w").tolist() == [[97], [98]]


def test_words_in_another_encoding_are_replaced(tmp_path: Path) -> None:
    made = model()
    made.producer_name = made.doc_string = made.graph.doc_string = "GRUEN"
    made.metadata_props.append(onnx.StringStringEntryProto(key="by", value="GRUEN"))
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString().replace(b"GRUEN", b"gr\xfc\xdfe"))
    with ONNXFile.open(path) as file:
        assert file.producer.startswith("gr\ufffd\ufffde")
        assert file.metadata["by"] == "gr\ufffd\ufffde"


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        ONNXFile.open(tmp_path / "none.onnx")
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        ONNXFile.open(tmp_path)


def test_a_branch_may_hide_a_name_and_reads_what_is_around_it(tmp_path: Path) -> None:
    inner = make.make_graph([node("Neg", "x", "h")], "b", [], [make.make_tensor_value_info("h", 1, [])])
    choice = node("If", "c", "y", then_branch=inner)
    inputs = [make.make_tensor_value_info(name, 1, []) for name in "xc"]
    opened(tmp_path, model([node("Neg", "x", "h"), choice], inputs=inputs)).close()
    refused(tmp_path, model([choice, node("Neg", "h", "z")], inputs=inputs), words="reads 'h'")


def test_fingerprint_is_that_of_graph_and_weights(tmp_path: Path) -> None:
    def of(folder: Path) -> str:
        with ONNXFile.open(folder / "m.onnx") as file:
            return file.fingerprint

    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    weights = np.zeros(5000, np.float32)
    constant = make.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(weights))
    onnx.save_model(
        model([constant], [onnx.numpy_helper.from_array(weights, "w")]), first / "m.onnx", save_as_external_data=True,
        location="data",
    )  # fmt: skip
    shutil.copytree(first, second)
    same = of(first)
    assert len(same) == 32
    assert of(second) == same
    size = (second / "m.onnx").stat().st_size
    assert size > 20000  # the constant is in it
    for name, at in (("data", 0), ("data", 19999), ("m.onnx", size - 5), ("m.onnx", size // 2 - 9000)):
        raw = bytearray((second / name).read_bytes())
        before = bytes(raw)
        raw[at] ^= 1
        (second / name).write_bytes(raw)
        try:
            assert of(second) != same
        except InvalidModelFile:
            assert name == "m.onnx"
        (second / name).write_bytes(before)
    assert of(second) == same
    with open(second / "data", "ab") as file:
        file.write(b"\0")
    assert of(second) != same


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    write_onnx(tmp_path / "a.onnx", sample())
    with ONNXFile.open(tmp_path / "a.onnx") as file:
        array = file.array("large")
    assert array.sum() == 999 * 500
