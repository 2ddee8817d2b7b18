"""The ONNX reader against the `onnx` package, against our writer, and against files that lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper as make
import onnx.numpy_helper
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.confined import file_in, path_in
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import FOREIGN, NUMPY, UNKNOWN, Attribute, Graph, Initializer, Node, Value
from edgellm.formats.onnx_writer import onnx_bytes, write_onnx
from edgellm.formats.protobuf import integer, message, text, unpacked, varint

Array = NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT
Y = make.make_tensor_value_info("y", FLOAT, ["n", None, 3])


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


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_that_onnx_writes(tmp_path: Path, one_file: bool) -> None:
    arrays = {name: np.random.default_rng(0).standard_normal((30, size)).astype(np.float32) for name, size in
              (("a", 20), ("b", 1), ("c", 70))}  # fmt: skip
    made = model(initializers=[onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()])
    path = tmp_path / "model.onnx"
    onnx.save_model(
        made, path, save_as_external_data=True, all_tensors_to_one_file=one_file, size_threshold=0,
        location="all.bin" if one_file else None,
    )  # fmt: skip
    with ONNXFile.open(path) as file:
        assert [each.name for each in file.data_paths] == (["all.bin"] if one_file else ["a", "b", "c"])
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.array(name), array)


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


def outside(location: str = "data", **entries: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "1"}, "at bytes 1 to 17 of data, which has 16"),
        ({"offset": "999999999999999999"}, "at bytes 999999999999999999"),
        ({"offset": "-1"}, "offset '-1'"),
        ({"offset": "9" * 30}, "offset"),
        ({"offset": "٣"}, "offset"),
        ({"offset": ""}, "offset"),
        ({"length": "15"}, "has 15 bytes, its type and shape need 16"),
        ({"length": "0x10"}, "length '0x10'"),
        ({"location": ""}, "not the plain name"),
        ({"location": "/etc/passwd"}, "not the plain name"),
        ({"location": "../data"}, "not the plain name"),
        ({"location": "."}, "not the plain name"),
        ({"location": "./"}, "not the plain name"),
        ({"location": "data/."}, "not the plain name"),
        ({"location": "./../data"}, "not the plain name"),
        ({"location": ".//etc/passwd"}, "not the plain name"),
        ({"location": "sub/../../data"}, "not the plain name"),
        ({"location": "sub//data"}, "not the plain name"),
        ({"location": "C:data"}, "not the plain name"),
        ({"location": "data:stream"}, "not the plain name"),
        ({"location": "..\\data"}, "not the plain name"),
        ({"location": "data\0"}, "not the plain name"),
    ],
)
def test_external_data_that_lies(tmp_path: Path, entries: dict[str, str], words: str) -> None:
    (tmp_path / "data").write_bytes(bytes(16))
    (tmp_path / "made.onnx").write_bytes(model(initializers=[outside(**entries)]).SerializeToString())
    with pytest.raises(InvalidModelFile) as caught:
        ONNXFile.open(tmp_path / "made.onnx")
    assert words in str(caught.value)


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data").write_bytes(np.arange(6, dtype="<f4").tobytes())
    with opened(tmp_path, model(initializers=[outside("sub/data", offset="8", length="16")])) as file:
        assert file.array("w").tolist() == [2, 3, 4, 5]
    for name in ("./sub/data", "sub/./data", "././sub/././data"):
        with opened(tmp_path, model(initializers=[outside(name, offset="8", length="16")])) as file:
            assert file.array("w").tolist() == [2, 3, 4, 5]
    refused(tmp_path, model(initializers=[outside("none")]), ModelNotFound)
    refused(
        tmp_path,
        model(initializers=[onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)]),
        words="in which file",
    )
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        opened(tmp_path, model(initializers=[outside("sub")]))
    (tmp_path / "empty").touch()
    refused(tmp_path, model(initializers=[outside("empty")]), words="which has 0")
    both = outside("sub/data")
    both.raw_data = bytes(16)
    refused(tmp_path, model(initializers=[both]), words="in another file")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_links_of_the_folder_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(16))
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / "123"
    (snapshot / "onnx").mkdir(parents=True)
    (repo / "blobs").mkdir()
    made = model(initializers=[outside("data")]).SerializeToString()
    (repo / "blobs" / "m").write_bytes(made)
    shutil.copy(elsewhere, repo / "blobs" / "d")
    for folder, up in ((snapshot, "../.."), (snapshot / "onnx", "../../..")):
        (folder / "model.onnx").symlink_to(f"{up}/blobs/m")
        (folder / "data").symlink_to(f"{up}/blobs/d")
        with ONNXFile.open(folder / "model.onnx") as file:
            assert file.array("w").tolist() == [0, 0, 0, 0]
        (folder / "data").unlink()
        (folder / "data").symlink_to(elsewhere)
        with ONNXFile.open(folder / "model.onnx") as file:
            moved = onnx.ModelProto.FromString(file.rewritten(file.graph, tmp_path))
            assert [entry.value for entry in moved.graph.initializer[0].external_data] == ["elsewhere", "0", "16"]
        for lost in ("data", tmp_path / "gone", folder / "model.onnx" / "data"):
            (folder / "data").unlink()
            (folder / "data").symlink_to(lost)
            with pytest.raises(ModelNotFound, match=r"data: a link to .* where nothing is; fetch the file"):
                ONNXFile.open(folder / "model.onnx")
        (folder / "data").unlink()
        os.mkfifo(folder / "data")
        with pytest.raises(InvalidModelFile, match="not a regular file"):
            ONNXFile.open(folder / "model.onnx")
    assert path_in(tmp_path, "a/b") == tmp_path / "a" / "b"
    with pytest.raises(InvalidModelFile, match="plain name"):
        file_in(tmp_path, "a/b")


def test_words_in_another_encoding_are_replaced(tmp_path: Path) -> None:
    made = model()
    made.producer_name = made.doc_string = made.graph.doc_string = "GRUEN"
    made.metadata_props.append(onnx.StringStringEntryProto(key="by", value="GRUEN"))
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString().replace(b"GRUEN", b"gr\xfc\xdfe"))
    with ONNXFile.open(path) as file:
        assert file.producer.startswith("gr\ufffd\ufffde")
        assert file.metadata["by"] == "gr\ufffd\ufffde"


def node(op: str = "Neg", inputs: str = "x", outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return make.make_node(op, inputs.split(), outputs.split(), **attributes)


def tensor(dims: list[int], kind: int = FLOAT, name: str = "w", **fields: Any) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=kind, dims=dims, **fields)


def nested(depth: int) -> onnx.GraphProto:
    nodes = [node("If", "", "y", then_branch=nested(depth - 1))] if depth > 1 else []
    return make.make_graph(nodes, "g", [], [])


def attributed(*attributes: onnx.AttributeProto) -> onnx.ModelProto:
    return model([onnx.NodeProto(op_type="A", attribute=attributes)])


LIES = {
    "a cycle": (model([node("Add", "b", "a"), node("Add", "a", "b")]), "reads 'b'"),
    "reads nothing's value": (model([node()]), "reads 'x'"),
    "two makers": (model([node("A", "", "y"), node("B", "", "y")]), "makes 'y'"),
    "no maker": (model(outputs=[Y]), "nothing makes the output 'y'"),
    "initializer twice": (model(initializers=[tensor([0])] * 2), "two initializers are named 'w'"),
    "no operator": (model([node("", "", "")]), "has no operator"),
    "negative": (model(initializers=[tensor([-1])]), "impossible shape"),
    "overflow": (model(initializers=[tensor([1 << 32, 1 << 32])]), "impossible shape"),
    "product": (model(initializers=[tensor([1 << 47, 1 << 47])]), "impossible shape"),
    "many dims": (model(initializers=[tensor([1] * 17, raw_data=bytes(4))]), "impossible shape"),
    "too short": (model(initializers=[tensor([4], raw_data=bytes(15))]), "15 bytes, its type and shape need 16"),
    "too long": (model(initializers=[tensor([4], raw_data=bytes(17))]), "17 bytes"),
    "no bytes": (model(initializers=[tensor([4])]), "0 bytes"),
    "few floats": (model(initializers=[tensor([4], float_data=[1, 2, 3])]), "12 bytes"),
    "many integers": (model(initializers=[tensor([1], 7, int64_data=[1, 2])]), "16 bytes"),
    "wrong field": (model(initializers=[tensor([1], int32_data=[1])]), "do not belong"),
    "two fields": (model(initializers=[tensor([1], float_data=[1], raw_data=bytes(4))]), "do not belong"),
    "packed": (model(initializers=[tensor([3], 21, raw_data=b"a")]), "1 bytes, its type and shape need 2"),
    "value of negative size": (model(inputs=[make.make_tensor_value_info("x", 1, [-1])]), "size -1"),
    "deep": (model(nested(9).node), "more than 8 graphs"),
    "no type": (attributed(onnx.AttributeProto(name="a", i=1)), "'a' has no type"),
    "another type": (attributed(onnx.AttributeProto(name="a", type=5)), "no value"),
    "attribute twice": (attributed(*[make.make_attribute("a", 1)] * 2), "twice"),
    "no attribute name": (attributed(make.make_attribute("", 1)), "no type or"),
}  # fmt: skip


@pytest.mark.parametrize("lie", [*LIES])
def test_refuses_what_lies(tmp_path: Path, lie: str) -> None:
    made, words = LIES[lie]
    refused(tmp_path, made, words=words)


def test_eight_graphs_in_each_other_are_read(tmp_path: Path) -> None:
    opened(tmp_path, model(nested(8).node)).close()


SEQUENCE = make.make_tensor_sequence_value_info("x", FLOAT, None)
UNSUPPORTED = {
    "sequence": (model(inputs=[SEQUENCE]), "'x' is no tensor"),
    "no type": (model(inputs=[onnx.ValueInfoProto(name="x")]), "'x' is no tensor"),
    "new type": (model(inputs=[make.make_tensor_value_info("x", 77, [])]), "type 77"),
    "strings": (model(initializers=[make.make_tensor("w", onnx.TensorProto.STRING, [1], ["a"])]), "STRING"),
    "complex": (model(initializers=[make.make_tensor("w", onnx.TensorProto.COMPLEX64, [1], [1j])]), "COMPLEX64"),
    "new tensor": (model(initializers=[tensor([1], 77)]), "type 77"),
    "bytes": (model([node("A", "", "y", a=b"\xff\xfe")]), "bytes that are no text"),
    "tensors": (model([node("A", "", "y", a=[tensor([0])])]), "'a' is of the type 9"),
    "bfloat16": (model([node("A", "", "y", a=tensor([1], 16, raw_data=bytes(2)))]), "BFLOAT16"),
}


@pytest.mark.parametrize("what", [*UNSUPPORTED])
def test_refuses_what_is_not_supported(tmp_path: Path, what: str) -> None:
    made, words = UNSUPPORTED[what]
    refused(tmp_path, made, Unsupported, words)


def test_sparse_initializers_are_not_supported(tmp_path: Path) -> None:
    made = model()
    made.graph.sparse_initializer.add()
    refused(tmp_path, made, Unsupported, "sparse")


@pytest.mark.parametrize(("kind", "numbers"), [(3, [200]), (2, [-1]), (4, [1 << 16]), (9, [2]), (9, [-1])], ids=str)
def test_numbers_too_large_for_their_type(tmp_path: Path, kind: int, numbers: list[int]) -> None:
    with (
        opened(tmp_path, model(initializers=[tensor([1], kind, int32_data=numbers)])) as file,
        pytest.raises(InvalidModelFile, match=r"made\.onnx"),
    ):
        file.array("w")


def test_a_number_of_more_than_ten_bytes(tmp_path: Path) -> None:
    number = b"\x80" * 10 + b"\1"
    weight = message(5, integer(2, 7), integer(1, 1), text(8, "w"), text(7, number))
    with opened(tmp_path, HEAD + message(7, weight)) as file, pytest.raises(InvalidModelFile, match="10 bytes"):
        file.data("w")


HEAD = integer(1, 10) + message(8, integer(2, 21))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x80", b"GGUF" + bytes(100), bytes(100), b"\xff" * 100, HEAD, HEAD[:-1], HEAD + b"\x3a\x05",
        HEAD + b"\x3b", HEAD + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", HEAD + message(7) + message(7),
        HEAD + message(8, text(1, "ai.onnx")) + message(7), HEAD + message(7, text(2, b"\xff")),
        HEAD + message(7) + message(14) * 2, HEAD + message(7) + b"\0\0", message(7) + integer(1, 10),
        HEAD + b"\x3d\0\0",
        HEAD + message(7, message(1, text(4, "A"), message(5, text(1, "a"), integer(20, 6), text(7, b"123")))),
        HEAD + message(7, message(5, integer(2, 7), integer(1, 1), text(7, b"\xff"))),
    ],
)  # fmt: skip
def test_refuses_broken_messages(tmp_path: Path, raw: bytes) -> None:
    refused(tmp_path, raw)


def test_the_number_of_fields_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.formats.protobuf.MAX_FIELDS", 1000)
    opened(tmp_path, HEAD + message(7, *[message(1, text(4, "A"))] * 400)).close()
    many = [
        message(1, text(4, "A")) * 600,
        integer(99, 1) * 1100,
        message(1, text(4, "A"), message(5, text(1, "a"), integer(20, 7), text(8, bytes(1100)))),
        message(1, text(4, "A"), message(5, text(1, "a"), integer(20, 6), text(7, bytes(4400)))),
    ]
    for graph in many:
        refused(tmp_path, HEAD + message(7, graph), words="more than 1000")


def test_the_number_of_data_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.formats.onnx.MAX_FILES", 1)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(16))
    refused(tmp_path, model(initializers=[outside("a"), outside("b")]), Unsupported, "more than 1 data files")


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


def seeds(folder: Path) -> list[bytes]:
    """Small models of both writers."""
    write_onnx(folder / "s.onnx", sample())
    typed = [make.make_tensor("i", 7, [3], [1, -2, 300]), make.make_tensor("h", 10, [2], [0.5, 2.0])]
    body = make.make_graph([node("Neg", "i", "o")], "b", [], [make.make_tensor_value_info("o", 7, [3])])
    made = model([node("If", "c", "z", then_branch=body, else_branch=body)], typed,
                 [make.make_tensor_value_info("c", 9, [])])  # fmt: skip
    return [(folder / "s.onnx").read_bytes(), made.SerializeToString()]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, seeds(folder)


Edits = Mapping[int, int]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, 1),
    edits=st.dictionaries(st.integers(0, 2000), st.integers(0, 255), max_size=4),
    cut=st.none() | st.integers(0, 2000),
    insert=st.tuples(st.integers(0, 2000), st.binary(max_size=12)),
)
def test_damaged_models_give_only_our_errors(
    fuzzed: tuple[Path, list[bytes]], which: int, edits: Edits, cut: int | None, insert: tuple[int, bytes]
) -> None:
    folder, models = fuzzed
    raw = bytearray(models[which])
    for at, byte in edits.items():
        raw[at % len(raw)] = byte
    at, more = insert
    raw[at % len(raw) : at % len(raw)] = more
    path = folder / "s.onnx"
    path.write_bytes(raw if cut is None else raw[: cut % len(raw)])
    try:
        with ONNXFile.open(path) as file:
            for each in file.graph.initializers:
                assert each.nbytes <= 8000
                assert len(content(each)) == each.nbytes == file.data(each.name).nbytes
                file.array(each.name)
            assert len(file.fingerprint) == 32
            assert onnx_bytes(file.graph)[0] < 4 * len(raw) + 1000
    except EdgeLLMError:
        pass


def test_every_truncation_is_refused(fuzzed: tuple[Path, list[bytes]]) -> None:
    folder, models = fuzzed
    last = models[0].rindex(message(8, text(1, ""), integer(2, 21)))  # the graph is whole from here on
    for stop in range(0, last, 3):
        refused(folder, models[0][:stop])
