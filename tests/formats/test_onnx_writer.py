"""The ONNX writer against the `onnx` package and ONNX Runtime."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray

from edgellm.errors import CannotWrite, EdgeLLMError, InvalidParameter
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import NUMPY, UNKNOWN, Graph, Initializer, Node, Value
from edgellm.formats.onnx_writer import onnx_bytes, write_onnx

Array = NDArray[Any]


def initializer(name: str, array: Array, dtype: str = "FLOAT", shape: tuple[int, ...] | None = None) -> Initializer:
    return Initializer(name, dtype, array.shape if shape is None else shape, lambda: iter([array]))


def add(array: Array, dtype: str = "FLOAT", **other: Any) -> Graph:
    """y = x + w."""
    value: Callable[[str], Value] = lambda name: Value(name, dtype, ("n", *array.shape[1:]))  # noqa: E731
    nodes = (Node("Add", ("x", "w"), ("y",), name="add"),)
    return Graph("add", (value("x"),), (value("y"),), nodes, (initializer("w", array, dtype, **other),))


def checked(path: Path) -> onnx.ModelProto:
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def run(path: Path, feeds: dict[str, Array]) -> list[Array]:
    session = open_session(path)
    results: list[Array] = session.run(None, feeds)
    return results


def open_session(path: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", [*NUMPY])
@pytest.mark.parametrize("size", [3, 4099])
def test_every_type_is_what_onnx_reads(tmp_path: Path, dtype: str, size: int) -> None:
    random = np.random.default_rng(0)
    given = Initializer("w", dtype, (size,), lambda: iter([raw]))
    raw = random.integers(0, 2 if dtype == "BOOL" else 120, given.nbytes, np.uint8)
    if dtype in ("UINT4", "INT4", "FLOAT4E2M1") and size % 2:
        raw[-1] &= 0x0F
    if dtype in ("UINT2", "INT2"):
        raw[-1] &= 0x3F
    if not hasattr(onnx.TensorProto, dtype):
        pytest.skip(f"this version of onnx has no {dtype}")
    value = Value("y", dtype, (size,))
    path = tmp_path / "a.onnx"
    write_onnx(path, Graph("g", (), (value,), (Node("Identity", ("w",), ("y",)),), (given,)))
    assert (tmp_path / "a.onnx_data").exists() == (given.nbytes >= 1024)
    tensor = onnx.load(path).graph.initializer[0]
    assert tensor.data_type == onnx.TensorProto.DataType.Value(dtype)
    assert tuple(tensor.dims) == (size,)
    assert tensor.raw_data == raw.tobytes()
    if dtype in ("FLOAT", "FLOAT16", "INT64", "BOOL", "UINT8"):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), raw.view(NUMPY[dtype]))


def test_model_says_what_it_was_given(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    graph = add(weight)
    path = tmp_path / "a.onnx"
    write_onnx(path, graph, metadata={"b": "2", "a": "ü"}, opsets={"com.microsoft": 1, "": 17}, ir_version=8)
    model = checked(path)
    assert model.ir_version == 8
    assert model.producer_name == "edgellm"
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17), ("com.microsoft", 1)]
    assert [(each.key, each.value) for each in model.metadata_props] == [("a", "ü"), ("b", "2")]
    assert model.graph.name == "add"
    assert onnx.helper.printable_type(model.graph.input[0].type) == "FLOAT, nx4"
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), weight)
    assert [*tmp_path.iterdir()] == [path]


def test_attributes_of_every_kind(tmp_path: Path) -> None:
    constant = np.arange(6, dtype=np.int64).reshape(2, 3)
    attributes: dict[str, Any] = {
        "whole": -5, "most": 2**63 - 1, "least": -(2**63), "truth": True, "real": 0.5, "infinite": float("inf"),
        "text": "grün", "wholes": (1, -2, 300), "reals": (0.5, 1), "texts": ("a", ""), "none": (),
        "tensor": constant, "big_endian": constant.astype(">f4"), "scalar": np.array(2.5, np.float16),
        "truths": np.array([True, False]),
    }  # fmt: skip
    value = Value("y", "FLOAT", ())
    path = tmp_path / "a.onnx"
    write_onnx(path, Graph("g", (), (value,), (Node("Foo", ("",), ("y", ""), "own", attributes=attributes),)))
    node = onnx.load(path).graph.node[0]
    assert (node.op_type, node.domain, [*node.input], [*node.output]) == ("Foo", "own", [""], ["y", ""])
    read = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    for name in ("tensor", "big_endian", "scalar", "truths"):
        array = onnx.numpy_helper.to_array(read.pop(name))
        np.testing.assert_array_equal(array, attributes[name])
        assert array.shape == np.shape(attributes[name])
    assert read == {
        "whole": -5, "most": 2**63 - 1, "least": -(2**63), "truth": 1, "real": 0.5, "infinite": float("inf"),
        "text": "grün".encode(), "wholes": [1, -2, 300], "reals": [0.5, 1.0], "texts": [b"a", b""], "none": [],
    }  # fmt: skip
    kinds = {each.name: each.type for each in node.attribute}
    assert kinds["none"] == onnx.AttributeProto.INTS
    assert kinds["reals"] == onnx.AttributeProto.FLOATS


def test_data_file_is_aligned_and_named_in_the_model(tmp_path: Path) -> None:
    sizes = {"a": 1023, "b": 1024, "c": 5000, "d": 1 << 20, "e": 2000}
    arrays = {name: np.full(size, index + 1, np.uint8) for index, (name, size) in enumerate(sizes.items())}
    graph = Graph("g", (), (), (), tuple(initializer(name, array, "UINT8") for name, array in arrays.items()))
    path = tmp_path / "model_q4.onnx"
    write_onnx(path, graph)
    model = onnx.load(path, load_external_data=False)
    found = {each.name: {entry.key: entry.value for entry in each.external_data} for each in model.graph.initializer}
    assert found.pop("a") == {}
    assert {entry["location"] for entry in found.values()} == {"model_q4.onnx_data"}
    assert {name: int(entry["offset"]) for name, entry in found.items()} == {
        "b": 0, "c": 4096, "d": 65536, "e": 65536 + (1 << 20),
    }  # fmt: skip
    data = (tmp_path / "model_q4.onnx_data").read_bytes()
    for name, entry in found.items():
        start = int(entry["offset"])
        assert data[start : start + int(entry["length"])] == arrays[name].tobytes()
    assert onnx_bytes(graph, name=path.name) == (path.stat().st_size, len(data))


def test_sizes_are_known_without_the_data(tmp_path: Path) -> None:
    def never() -> Iterator[Array]:
        raise AssertionError("the data was read")
        yield

    weights = [Initializer("small", "FLOAT", (9,), never), Initializer("large", "FLOAT", (1 << 20, 1 << 20), never)]
    branch = Graph("b", (), (Value("inner", "FLOAT", (500,)),), (), (Initializer("inner", "FLOAT", (500,), never),))
    nodes = (Node("If", ("c",), ("y",), attributes={"then_branch": branch, "else_branch": branch}),)
    graph = Graph("g", (Value("c", "BOOL", ()),), (Value("y", "FLOAT", (500,)),), nodes, tuple(weights))
    model, data = onnx_bytes(graph, {"key": "value"})
    assert data == 1 << 42
    assert 4000 < model < 5000

    def some(initializer: Initializer) -> Initializer:
        return Initializer(initializer.name, "FLOAT", (500,), lambda: iter([np.ones((5, 50), np.float32)] * 2))

    branch = Graph(branch.name, branch.inputs, branch.outputs, branch.nodes, (some(branch.initializers[0]),))
    nodes = (Node("If", ("c",), ("y",), attributes={"then_branch": branch, "else_branch": branch}),)
    graph = Graph("g", graph.inputs, graph.outputs, nodes, (some(weights[1]),))
    path = tmp_path / "other.onnx"
    write_onnx(path, graph, metadata={"key": "value"})
    checked(path)
    sizes = path.stat().st_size, (tmp_path / "other.onnx_data").stat().st_size
    assert onnx_bytes(graph, {"key": "value"}, name="other.onnx") == sizes


def test_runtime_runs_branches_defaults_and_its_own_operators(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    quants = random.integers(0, 256, (48, 2, 16), np.uint8)  # 48 outputs, 2 blocks of 32 inputs
    scales = random.standard_normal((48, 2)).astype(np.float32)

    def branch(name: str, factor: float) -> Graph:
        nodes = (Node("Mul", ("product", f"{name}_factor"), (f"{name}_y",)),)
        constants = (initializer(f"{name}_factor", np.array(factor, np.float32)),)
        return Graph(name, (), (Value(f"{name}_y", "FLOAT", ("rows", 48)),), nodes, constants)

    sizes = {"K": 64, "N": 48, "bits": 4, "block_size": 32}
    nodes = (
        Node("Neg", ("keep",), ("start",)),
        Node("Slice", ("x", "start", "far"), ("rows",)),
        Node("MatMulNBits", ("rows", "quants", "scales"), ("product",), "com.microsoft", attributes=sizes),
        Node("If", ("twice",), ("y",), attributes={"then_branch": branch("a", 2), "else_branch": branch("b", 1)}),
    )
    constants = (
        initializer("quants", quants, "UINT8"),
        initializer("scales", scales),
        initializer("far", np.array([2**62]), "INT64"),
        initializer("keep", np.zeros(1, np.int64), "INT64"),
    )
    inputs = Value("x", "FLOAT", ("all", 64)), Value("twice", "BOOL", ()), Value("keep", "INT64", (1,))
    graph = Graph("g", inputs, (Value("y", "FLOAT", ("rows", 48)),), nodes, constants)
    path = tmp_path / "model.onnx"
    write_onnx(path, graph)
    assert (tmp_path / "model.onnx_data").exists()
    checked(path)
    session = open_session(path)
    assert [each.name for each in session.get_inputs()] == ["x", "twice"]
    assert [each.name for each in session.get_overridable_initializers()] == ["keep"]
    x = random.standard_normal((5, 64)).astype(np.float32)
    low, high = (quants & 15).astype(np.float32), (quants >> 4).astype(np.float32)
    weight = ((np.stack([low, high], -1).reshape(48, 2, 32) - 8) * scales[..., None]).reshape(48, 64)
    expected = x @ weight.T
    for feeds, result in (
        ({"twice": np.array(False)}, expected),
        ({"twice": np.array(True)}, 2 * expected),
        ({"twice": np.array(False), "keep": np.array([2])}, expected[-2:]),
    ):
        (y,) = session.run(None, {"x": x, **feeds})
        np.testing.assert_allclose(y, result, rtol=1e-4, atol=1e-3)


def test_runtime_reads_large_weights_of_several_pieces(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)  # more than 1 MiB
    pieces = Initializer("w", "FLOAT", weight.shape, lambda: iter([weight[:100], weight[100:].reshape(-1)]))
    graph = add(weight[:, :])
    path = tmp_path / "a.onnx"
    write_onnx(path, Graph("g", graph.inputs, graph.outputs, graph.nodes, (pieces,)))
    (y,) = run(path, {"x": np.ones((300, 1000), np.float32)})
    np.testing.assert_array_equal(y, weight + 1)


def test_memory_is_that_of_one_piece(tmp_path: Path) -> None:
    def pieces() -> Iterator[Array]:
        return (np.full(1 << 20, index, np.uint8) for index in range(32))

    path = tmp_path / "a.onnx"
    graph = Graph("g", (), (), (), (Initializer("w", "UINT8", (32, 1 << 20), pieces),))
    tracemalloc.start()
    try:
        write_onnx(path, graph)
        with ONNXFile.open(path) as file:
            write_onnx(tmp_path / "b.onnx", file.graph)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "b.onnx_data").read_bytes() == b"".join(piece.tobytes() for piece in pieces())


def test_same_graph_gives_same_bytes(tmp_path: Path) -> None:
    graph = add(np.arange(2000, dtype=np.float32))
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_onnx(tmp_path / folder / "m.onnx", graph, metadata={"x": "1", "y": "2"})
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {"m.onnx", "m.onnx_data"}


def test_values_without_type_or_shape_stay_so(tmp_path: Path) -> None:
    values = Value("y", "FLOAT", UNKNOWN), Value("z", "INT64", ("", "named", 0)), Value("s", "STRING", ())
    path = tmp_path / "a.onnx"
    write_onnx(path, Graph("g", values, (), ()))
    y, z, s = onnx.load(path).graph.input
    assert not y.type.tensor_type.HasField("shape")
    assert [dim.WhichOneof("value") for dim in z.type.tensor_type.shape.dim] == [None, "dim_param", "dim_value"]
    assert s.type.tensor_type.HasField("shape")
    assert s.type.tensor_type.elem_type == onnx.TensorProto.STRING


WEIGHT = np.ones(4, np.float32)
VALUE = Value("x", "FLOAT", (4,))


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (add(WEIGHT, shape=(5,)), "16 bytes given, its type and shape need 20"),
        (add(np.ones(2000, np.float32), shape=(1999,)), "its type and shape need 7996"),
        (add(WEIGHT, shape=(-4,)), "impossible"),
        (add(WEIGHT, dtype="STRING"), "STRING"),
        (Graph("g", (Value("x", "FLOAT5", ()),), (), ()), "FLOAT5"),
        (Graph("g", (VALUE,), (VALUE, Value("y", "FLOAT", ())), ()), "nothing makes the output 'y'"),
        (Graph("g", (VALUE, VALUE), (), ()), "two inputs are named 'x'"),
        (Graph("g", (), (), (), (initializer("w", WEIGHT), initializer("w", WEIGHT))), "two initializers"),
        (Graph("g", (), (), (), (initializer("", WEIGHT),)), "has no name"),
        (Graph("g", (VALUE,), (), (Node("Neg", ("z",), ("y",)),)), "reads 'z'"),
        (Graph("g", (VALUE,), (), (Node("Neg", ("x",), ("x",)),)), "makes 'x'"),
        (Graph("g", (), (), (Node("Add", ("b",), ("a",)), Node("Add", ("a",), ("b",)))), "reads 'b'"),
        (Graph("g", (VALUE,), (), (Node("Foo", (), ("y",), attributes={"a": [1]}),)), "a=list"),
        (Graph("g", (VALUE,), (), (Node("Foo", (), ("y",), attributes={"a": (1, "b")}),)), "a=tuple"),
        (Graph("g", (VALUE,), (), (Node("Foo", (), ("y",), attributes={"a": 1 << 63}),)), "a=int"),
        (Graph("g", (VALUE,), (), (Node("Foo", (), ("y",), attributes={"a": 1e40}),)), "a=float"),
        (Graph("g", (VALUE,), (), (Node("Foo", (), ("y",), attributes={"a": np.array("x")}),)), "a=ndarray"),
        (Graph("g", (VALUE,), (), (Node("Foo\ud800", (), ("y",)),)), "surrogate"),
    ],
)
def test_refuses(tmp_path: Path, graph: Graph, words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        write_onnx(tmp_path / "a.onnx", graph)
    assert words in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_broken_branch_is_refused(tmp_path: Path) -> None:
    outer = Node("Neg", ("x",), ("later",))
    branch = Graph("b", (), (Value("y", "FLOAT", ()),), (Node("Neg", ("later",), ("y",)),))
    choice = Node("If", ("x",), ("z",), name="choice", attributes={"then_branch": branch})
    write_onnx(tmp_path / "a.onnx", Graph("g", (VALUE,), (), (outer, choice)))
    with pytest.raises(InvalidParameter, match=r"reads 'later'.*then_branch.*choice"):
        write_onnx(tmp_path / "b.onnx", Graph("g", (VALUE,), (), (choice, outer)))


def test_more_than_protobuf_holds_is_refused() -> None:
    branch = Graph("b", (), (), (), (Initializer("w", "UINT8", (1 << 31,), lambda: iter([])),))
    graph = Graph("g", (VALUE,), (), (Node("If", ("x",), ("y",), attributes={"then_branch": branch}),))
    with pytest.raises(InvalidParameter, match="ONNX allows 2147483647"):
        onnx_bytes(graph)


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    def failing() -> Iterator[Array]:
        yield np.ones(1000, np.float32)
        raise EdgeLLMError("the source failed")

    graph = add(np.ones(2000, np.float32))
    path = tmp_path / "a.onnx"
    write_onnx(path, graph)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    broken = Graph("g", graph.inputs, graph.outputs, graph.nodes, (Initializer("w", "FLOAT", (2000,), failing),))
    with pytest.raises(EdgeLLMError, match="the source failed"):
        write_onnx(path, broken)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    with pytest.raises(CannotWrite):
        write_onnx(tmp_path / "none" / "a.onnx", graph)
