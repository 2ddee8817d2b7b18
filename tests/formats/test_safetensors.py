"""The safetensors reader and writer against the `safetensors` package, and against files that lie."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidModelFile, InvalidParameter, ModelNotFound
from edgellm.formats.safetensors import SafetensorsFile, write_safetensors


def entry(start: int = 0, stop: int = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def made(header: Any, data: int = 16, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


def refused(folder: Path, raw: bytes) -> str:
    path = folder / "made.safetensors"
    path.write_bytes(raw)
    with pytest.raises(InvalidModelFile) as caught:
        SafetensorsFile.open(path)
    assert "made.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(path))
    return str(caught.value)


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "weight": random.standard_normal((3, 5)).astype(np.float32),
        "half": random.standard_normal(7).astype(np.float16),
        "wide": random.standard_normal((1, 2, 3)),
        "ids": np.arange(6, dtype=np.int64),
        "mask": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "bytes": np.arange(5, dtype=np.uint8),
    }
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    with SafetensorsFile.open(path) as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            assert file.tensors[name].shape == array.shape
            assert file.tensors[name].nbytes == array.nbytes
            assert file.data(name).tobytes() == array.tobytes()
        assert [file.tensors[n].dtype for n in ("weight", "half", "ids", "mask")] == ["F32", "F16", "I64", "BOOL"]


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)

    def chunks() -> Iterator[Any]:
        yield array[:1]
        yield array[1:].tobytes()

    path = tmp_path / "a.safetensors"
    tensors: list[tuple[str, str, tuple[int, ...], Any]] = [
        ("odd", "U8", (3,), b"abc"),
        ("brain", "BF16", (2, 2), bytes(range(8))),
        ("streamed", "F32", (4, 6), chunks),
        ("scalar", "F32", (), np.float32(1.5).tobytes()),
        ("turned", "F32", (6, 4), array.T),
        ("none", "F16", (0, 3), b""),
    ]
    write_safetensors(path, tensors, {"format": "pt", "from": "größe"})
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert set(found) == {name for name, *_ in tensors}
    assert found["streamed"]["data"] == array.tobytes()
    assert found["turned"]["data"] == np.ascontiguousarray(array.T).tobytes()
    assert (found["turned"]["shape"], found["turned"]["dtype"]) == ([6, 4], "F32")
    assert (found["brain"]["data"], found["brain"]["dtype"]) == (bytes(range(8)), "BF16")
    assert (found["odd"]["data"], found["scalar"]["shape"], found["none"]["shape"]) == (b"abc", [], [0, 3])
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt", "from": "größe"}
    with SafetensorsFile.open(path) as file:
        assert all(info.offset % {"F32": 4, "BF16": 2}.get(info.dtype, 1) == 0 for info in file.tensors.values())
        assert [file.data(name).nbytes for name in ("streamed", "none")] == [96, 0]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I16", "U32", "F4", "C64"])
def test_types_have_the_package_s_sizes(tmp_path: Path, dtype: str) -> None:
    size = {"F8": 4, "I1": 8, "U3": 16, "F4": 2, "C6": 32}[dtype[:2]]
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [("t", dtype, (2, 2), bytes(range(size)))])
    with safetensors.safe_open(path, "np") as opened:
        assert opened.get_slice("t").get_dtype() == dtype
    with SafetensorsFile.open(path) as file:
        assert file.data("t").tolist() == list(range(size))


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"short", "too few"),
        (made({"t": entry()}, length=1 << 40), "is announced"),
        (made({"t": entry()}, length=1), "is announced"),
        (made({"t": entry()})[:-1], "beyond the end"),
        (made({"t": entry()}, data=17), "the file at"),
        (made(b"[1, 2, 3]"), "not a JSON object"),
        (made(b'{"t": nonsense}'), "not JSON"),
        (made(b'{"\xff": 1}'), "not JSON"),
        (made(b'{"t": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "not JSON"),
        (made(b'{"t": ' + b"9" * 5000 + b"}"), "not JSON"),
        (made(b'{"t": 1, "t": 2}'), "'t' appears twice"),
        (made(b'{"t": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' appears twice"),
        (made({"__metadata__": {"a": 1}}), "not a table of texts"),
        (made({"t": 5}), "not described by"),
        (made({"t": entry() | {"more": 1}}), "not described by"),
        (made({"": entry()}), "empty or not printable"),
        (made({"a\ud800": entry()}), "empty or not printable"),
        (made({"t": entry(dtype="F31")}), "unknown type 'F31'"),
        (made({"t": entry(dtype=["F32"])}), "unknown type"),
        (made({"t": entry(shape=[-4])}), "impossible shape"),
        (made({"t": entry(shape=[4.0])}), "impossible shape"),
        (made({"t": entry(shape=[True, 4])}), "impossible shape"),
        (made({"t": entry(shape=[1 << 62, 1 << 62])}), "impossible shape"),
        (made({"t": entry(shape=[1] * 1000)}), "impossible shape"),
        (made({"t": entry(shape=[5])}), "needs 20"),
        (made({"t": entry(shape=[3], dtype="F4", stop=1)}, data=1), "needs 1.5"),
        (made({"t": entry(start=16, stop=0)}), "has -16 bytes"),
        (made({"t": entry() | {"data_offsets": [0, 8, 16]}}), "impossible offsets"),
        (made({"t": entry() | {"data_offsets": [-16, 0]}}), "impossible offsets"),
        (made({"t": entry(start=16, stop=32)}), "beyond the end"),
        (made({"t": entry(start=8, stop=24)}, data=24), "leaves a hole"),
        (made({"a": entry(), "b": entry(8, 24)}, data=24), "overlaps"),
        (made({"a": entry(), "b": entry()}), "overlaps"),
    ],
)  # fmt: skip
def test_a_lie_is_refused(tmp_path: Path, raw: bytes, complaint: str) -> None:
    assert complaint in refused(tmp_path, raw)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        SafetensorsFile.open(tmp_path / "none.safetensors")
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        SafetensorsFile.open(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
SMALL = st.integers(-1, 40)
ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F99"]),
    "shape": st.lists(SMALL, max_size=3),
    "data_offsets": st.lists(SMALL, min_size=2, max_size=2),
})  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3) | st.binary(max_size=40) | JSON,
    data=st.integers(0, 80),
    damage=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2),
)
def test_any_header_is_read_as_the_package_reads_it_or_refused(
    tmp_path: Path, header: Any, data: int, damage: list[tuple[int, int]]
) -> None:
    raw = bytearray(made(header, data))
    for at, value in damage:
        if at < len(raw):
            raw[at] = value
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(raw)
    try:
        file = SafetensorsFile.open(path)
    except EdgeLLMError:
        return
    with file:  # we are the stricter reader: what we accept, the package accepts, with the same bytes
        theirs = dict(safetensors.deserialize(bytes(raw)))
        assert {name: bytes(item["data"]) for name, item in theirs.items()} == {
            name: file.data(name).tobytes() for name in file.tensors
        }


def test_pages_can_be_released_and_come_back(tmp_path: Path) -> None:
    array = np.arange(100_000, dtype=np.float32)
    safetensors.numpy.save_file({"a": array[:1001], "b": array}, tmp_path / "a.safetensors")
    with SafetensorsFile.open(tmp_path / "a.safetensors") as file:
        view = file.data("b").view(np.float32)
        file.release("b")
        assert np.array_equal(view, array)
        del view


def test_fingerprint_follows_header_and_weights(tmp_path: Path) -> None:
    array = np.arange(5000, dtype=np.float32)

    def fingerprint(value: NDArray[Any], name: str = "a", metadata: dict[str, str] | None = None) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        safetensors.numpy.save_file({name: value}, path, metadata=metadata)
        with SafetensorsFile.open(path) as file:
            return file.fingerprint

    changed = array.copy()
    changed[-1] = 7
    assert fingerprint(array) == fingerprint(array)
    others = [fingerprint(changed), fingerprint(array, "b"), fingerprint(array, metadata={"x": "y"})]
    assert len({fingerprint(array), *others}) == 4


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ([("t", "F31", (4,), bytes(16))], "no type 'F31'"),
        ([("t", "F32", (-4,), bytes(16))], "cannot store"),
        ([("t", "F4", (3,), bytes(2))], "cannot store"),
        ([("t", "F32", (4,), bytes(15))], "15 bytes given"),
        ([("t", "F32", (4,), bytes(17))], "17 bytes given"),
        ([("t", "F32", (1,), bytes(4)), ("t", "F32", (1,), bytes(4))], "must be new"),
        ([("__metadata__", "F32", (1,), bytes(4))], "must be new"),
        ([("", "F32", (1,), bytes(4))], "must be new"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, tensors: Any, complaint: str) -> None:
    with pytest.raises(InvalidParameter, match=complaint):
        write_safetensors(tmp_path / "a.safetensors", tensors)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [("t", "U8", (3,), b"old")])

    def stops() -> Iterator[bytes]:
        yield b"n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, [("t", "U8", (3,), stops)])
    assert os.listdir(tmp_path) == ["a.safetensors"]
    with SafetensorsFile.open(path) as file:
        assert file.data("t").tobytes() == b"old"
