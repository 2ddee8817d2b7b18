"""The ONNX reader against files that lie, are broken, or hold what is not supported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.external_data_helper
import onnx.helper as make
import onnx.numpy_helper
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_protos import FLOAT, content, model, node, opened, refused, sample

from edgellm.errors import EdgeLLMError, InvalidModelFile, Unsupported
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_writer import onnx_bytes, write_onnx
from edgellm.formats.protobuf import integer, message, text

Y = make.make_tensor_value_info("y", FLOAT, ["n", None, 3])


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
