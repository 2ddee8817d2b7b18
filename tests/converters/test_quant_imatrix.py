"""Importance matrices: the `gguf` package writes and reads the new form, bytes by hand are the old one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.converters.quant.imatrix import ImportanceMatrix, InputSums
from edgellm.errors import InvalidModelFile, InvalidParameter, ModelNotFound
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import write_gguf

DENSE, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"
SUMS = np.array([[8, 4, 2, 0]], np.float32)
EXPERT_SUMS = np.array([[2, 4], [0, 0], [9, 3]], np.float32)


def matrix() -> ImportanceMatrix:
    entries = {
        DENSE: InputSums(SUMS, np.array([4], np.float32)),
        EXPERTS: InputSums(EXPERT_SUMS, np.array([2, 0, 3], np.float32)),
    }
    return ImportanceMatrix(entries, 5, 512, ("wiki.txt", "code.txt"))


def check(read: ImportanceMatrix) -> None:
    dense, experts = read.of(DENSE, (7, 4)), read.of(EXPERTS, (3, 5, 2))
    assert dense is not None
    assert experts is not None
    assert dense.dtype == experts.dtype == np.float32
    np.testing.assert_array_equal(dense, [2, 1, 0.5, 0])
    np.testing.assert_array_equal(experts, [[1, 2], [1, 1], [3, 1]])  # the second was never asked


def test_what_we_write_the_gguf_package_reads(tmp_path: Path) -> None:
    matrix().write(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["wiki.txt", "code.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 5
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    assert reader.fields["imatrix.chunk_count"].types == [gguf.GGUFValueType.UINT32]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors[EXPERTS + ".in_sum2"], EXPERT_SUMS)
    np.testing.assert_array_equal(tensors[EXPERTS + ".counts"].reshape(-1), [2, 0, 3])
    np.testing.assert_array_equal(tensors[DENSE + ".counts"].reshape(-1), [4])
    back = ImportanceMatrix.read(tmp_path / "m.gguf")
    check(back)
    assert (back.chunk_count, back.chunk_size, back.datasets) == (5, 512, ("wiki.txt", "code.txt"))


def test_what_the_gguf_package_writes_we_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.dat", "ignored")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 64)
    for name, entry in matrix().entries.items():
        writer.add_tensor(name + ".in_sum2", entry.sums)
        writer.add_tensor(name + ".counts", entry.counts[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check(ImportanceMatrix.read(tmp_path / "m.dat"))


def old(calls: int = 5, tail: bytes | None = None) -> bytes:
    """Values are means times calls; three experts of two columns make six values."""
    raw = struct.pack("<i", 2)
    for name, mean in ((DENSE, [2, 1, 0.5, 0]), (EXPERTS, [1, 2, 1, 1, 3, 1])):
        values = np.array(mean, "<f4") * max(calls, 1)
        raw += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values)) + values.tobytes()
    return raw + (struct.pack("<ii", 17, 8) + b"wiki.txt" if tail is None else tail)


@pytest.mark.parametrize("calls", [5, 1, 0])
def test_the_old_form(tmp_path: Path, calls: int) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(old(calls))
    read = ImportanceMatrix.read(path)
    check(read)
    assert (read.chunk_count, read.datasets) == (17, ("wiki.txt",))


def test_the_old_form_without_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(old(tail=b""))
    read = ImportanceMatrix.read(path)
    check(read)
    assert (read.chunk_count, read.datasets) == (0, ())


def test_the_old_form_can_be_written_as_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(old())
    ImportanceMatrix.read(tmp_path / "old.dat").write(tmp_path / "new.gguf")
    check(ImportanceMatrix.read(tmp_path / "new.gguf"))


def test_entries_of_another_model(tmp_path: Path) -> None:
    assert matrix().of("output.weight", (10, 4)) is None
    with pytest.raises(InvalidParameter, match=r"4 values for 'blk.0.ffn_up.weight' of shape \(7, 8\), not 8"):
        matrix().of(DENSE, (7, 8))
    with pytest.raises(InvalidParameter, match="another model"):
        matrix().of(EXPERTS, (4, 5, 2))


METADATA = {
    "general.type": "imatrix",
    "imatrix.datasets": ["a"],
    "imatrix.chunk_count": 1,
    "imatrix.chunk_size": 64,
}
GOOD = {"w.in_sum2": np.ones((2, 3), np.float32), "w.counts": np.ones((2, 1), np.float32)}


@pytest.mark.parametrize(
    ("metadata", "tensors", "complaint"),
    [
        ({"general.type": "model"}, GOOD, "not an importance matrix"),
        ({"imatrix.chunk_size": "64"}, GOOD, "expected int"),
        ({"imatrix.datasets": None}, GOOD, "imatrix.datasets.* is missing"),
        ({}, {"w.in_sum2": GOOD["w.in_sum2"]}, "'w.counts' is missing"),
        ({}, {"w.counts": GOOD["w.counts"]}, "'w.in_sum2' is missing"),
        ({}, {**GOOD, "w.counts": np.ones((4, 1), np.float32)}, "4 counts do not divide the 6 sums"),
        ({}, {**GOOD, "w.in_sum2": np.ones((2, 3), np.float16)}, "missing or not F32"),
        ({}, {**GOOD, "w.in_sum2": np.full((2, 3), np.nan, np.float32)}, "no sum of squares"),
        ({}, {**GOOD, "w.counts": np.full((2, 1), -1, np.float32)}, "no sum of squares"),
        ({}, {**GOOD, "w.other": np.ones((2, 3), np.float32)}, "'w.other' is neither"),
        ({}, {}, "no entries"),
    ],
)
def test_gguf_files_that_lie(tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "m.gguf"
    pairs = {key: value for key, value in {**METADATA, **metadata}.items() if value is not None}
    kinds = {2: GGMLType.F16, 4: GGMLType.F32}
    write_gguf(path, pairs, [(name, a.shape, kinds[a.itemsize], a) for name, a in tensors.items()])
    with pytest.raises(InvalidModelFile, match=complaint):
        ImportanceMatrix.read(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"abc",
        struct.pack("<i", 0),
        struct.pack("<i", -3),
        struct.pack("<ii", 1, 1 << 30) + b"x",
        struct.pack("<ii", 1, 0),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", -1, 1) + b"\0\0\0\0",
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 0),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 1 << 30),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, 1, np.inf),
        struct.pack("<ii", 2, 1) + 2 * (b"w" + struct.pack("<iif", 1, 1, 1.0) + struct.pack("<i", 1)),
    ],
)
def test_old_files_that_lie(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(raw)
    with pytest.raises(InvalidModelFile, match=r"old\.dat: "):
        ImportanceMatrix.read(path)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(old())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "old.dat"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        read = ImportanceMatrix.read(path)
    except InvalidModelFile:
        return
    for name, entry in read.entries.items():
        values = read.of(name, (1, entry.sums.size))
        assert values is not None
        assert np.isfinite(values).all()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="importance matrix"):
        ImportanceMatrix.read(tmp_path / "none.dat")
    with pytest.raises(InvalidModelFile):
        ImportanceMatrix.read(tmp_path)
