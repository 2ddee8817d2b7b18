"""The GGUF writer against the `gguf` package's reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {
        "general.architecture": "llama", "text": "grüße", "number": 7, "negative": -7, "large": 1 << 40, "real": 0.5,
        "yes": True, "u16": np.uint16(9), "f64": np.float64(0.1), "words": ["a", "", "日本"], "ints": [1, -2],
        "reals": [0.5, 2.0], "bools": np.array([True, False]), "bytes": np.array([1, 2], np.uint8),
    }  # fmt: skip
    values = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_0)

    def chunks() -> Iterator[Any]:
        yield values[:1]
        yield values[1:].tobytes()

    path = tmp_path / "ours.gguf"
    write_gguf(path, metadata, [("a", (3, 64), GGMLType.Q4_0, packed), ("b", (3, 64), GGMLType.F32, chunks)])
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == list(metadata)
    for key, value in metadata.items():
        expected = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        assert fields[key].contents() == (pytest.approx(expected) if isinstance(expected, float) else expected)
    kinds = {key: field.types[0].name for key, field in fields.items()}
    assert [kinds[key] for key in ("number", "negative", "large")] == ["UINT32", "INT32", "UINT64"]
    assert [kinds[key] for key in ("real", "u16", "f64", "yes")] == ["FLOAT32", "UINT16", "FLOAT64", "BOOL"]
    a, b = reader.tensors
    assert (a.name, a.tensor_type.name, a.shape.tolist()) == ("a", "Q4_0", [64, 3])
    assert a.data.tobytes() == packed.tobytes()
    assert np.array_equal(b.data, values)


def test_alignment_is_honoured(tmp_path: Path) -> None:
    tensors = [(name, (8,), GGMLType.F32, bytes(32)) for name in "ab"]
    write_gguf(tmp_path / "a.gguf", {"general.alignment": 256}, tensors)
    assert [t.data_offset % 256 for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors] == [0, 0]


def test_our_reader_reads_it_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {"none": []}, [("t", (2, 2), GGMLType.F16, np.ones((2, 2), np.float16))])
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert file.kind("none") == "str[]"
        assert file.data("t").view(np.float16).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({}, [("t", (8,), GGMLType.F32, bytes(31))], "31 bytes"),
        ({}, [("t", (8,), GGMLType.F32, bytes(33))], "33 bytes"),
        ({}, [("t", (33,), GGMLType.Q8_0, bytes(34))], "cannot store"),
        ({}, [("t", (1,) * 5, GGMLType.F32, bytes(4))], "cannot store"),
        ({}, [("t" * 64, (1,), GGMLType.F32, bytes(4))], "tensor name"),
        ({}, [("t", (1,), GGMLType.F32, bytes(4))] * 2, "tensor name"),
        ({"k": object()}, [], "no type"),
        ({"k": "\ud800"}, [], "surrogates"),
        ({"k": ["\udfff"]}, [], "surrogates"),
        ({"k\ud800": 1}, [], "surrogates"),
        ({}, [("t\ud800", (1,), GGMLType.F32, bytes(4))], "surrogates"),
        ({"k": 1 << 64}, [], "no type"),
        ({"k": [1, "a"]}, [], "no type"),
        ({"k": [1 << 40]}, [], "no type"),
        ({"k": [[1], [2, 3]]}, [], "no type"),
        ({"k": np.zeros((2, 2))}, [], "no type"),
        ({"general.alignment": 24}, [], "power of two"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, metadata: dict[str, Any], tensors: list[Any], says: str
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"before")
    with pytest.raises(InvalidParameter, match=says):
        write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    assert (tmp_path / "a.gguf").read_bytes() == b"before"


def test_an_error_in_a_chunk_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "a.gguf", {}, [("t", (8,), GGMLType.F32, chunks)])
    assert not list(tmp_path.iterdir())
