"""The data files beside an ONNX model: where they may lie, and what they are said to hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import pytest
from onnx_protos import model, opened, outside, refused

from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.confined import file_in, path_in
from edgellm.formats.onnx import ONNXFile


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


def test_the_number_of_data_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.formats.onnx.MAX_FILES", 1)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(16))
    refused(tmp_path, model(initializers=[outside("a"), outside("b")]), Unsupported, "more than 1 data files")
