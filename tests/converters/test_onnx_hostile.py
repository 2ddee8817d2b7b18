"""Converting to and from ONNX when something is wrong: a typed error, no output, and nothing left beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from arch_models import LLAMA, checkpoint
from hf_models import ALIGNED, folder_of
from numpy.typing import NDArray
from tiny_models import tiny

from edgellm.converters import ConvertParams, convert
from edgellm.converters.onnx.graph.carrier import Packed, transcode
from edgellm.errors import (
    CannotWrite,
    EdgeLLMError,
    InvalidModelFile,
    InvalidParameter,
    ModelNotFound,
    Unsupported,
    UnsupportedArchitecture,
)
from edgellm.formats.ggml_types import GGMLType


def stop_in(stage: str) -> Callable[[str, int, int], None]:
    def stop(what: str, done: int, total: int) -> None:
        if what == stage and 2 * done > total:
            raise KeyboardInterrupt

    return stop


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", ALIGNED)
    (tmp_path / "words.txt").write_text("hello world, the other world. " * 40, encoding="utf-8")
    for stage in ("converting", "verifying", "calibrating"):
        calibrate = tmp_path / "words.txt" if stage == "calibrating" else None
        params = ConvertParams(to="onnx", quant="int4", calibrate=calibrate)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "model", params, progress=stop_in(stage))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "words.txt"]


def test_the_wrong_bytes_never_get_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny(weights=GGMLType.Q4_0).write(tmp_path / "source.gguf")

    def wrong(kind: GGMLType, raw: NDArray[np.uint8], columns: int) -> Packed:
        return transcode(kind, np.roll(raw, 1, axis=0), columns)

    monkeypatch.setattr("edgellm.converters.onnx.graph.quantized.transcode", wrong)
    with pytest.raises(InvalidModelFile, match=r"differs from the source.*nothing was kept"):
        convert(source, tmp_path / "model", ConvertParams(to="onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny().write(tmp_path / "source.gguf")
    real = os.fdopen

    def fdopen(handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file: Any = real(handle, mode, *rest, **more)
        if mode == "wb":
            written = 0
            write = file.write

            class Full:
                def write(self, data: Any) -> int:
                    nonlocal written
                    written += memoryview(data).nbytes
                    if written > 30_000:
                        raise OSError(28, os.strerror(28))
                    return int(write(data))

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

                def __enter__(self) -> Full:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

            return Full()
        return file

    monkeypatch.setattr("edgellm.formats.writing.os.fdopen", fdopen)
    with pytest.raises(CannotWrite, match="No space left on device"):
        convert(source, tmp_path / "target", ConvertParams(to="onnx"))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CannotWrite, match="the disk has 1000"):
        convert(source, tmp_path / "target", ConvertParams(to="onnx"))


@pytest.mark.parametrize("quant", ["keep", "f16", "int8", "int4"])
def test_weights_that_are_not_numbers(quant: str, tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        tensors = checkpoint(LLAMA)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        source = folder_of(tmp_path / f"source-{value}", tensors=tensors, dtype="F32")
        with pytest.raises(InvalidModelFile, match=r"ffn_up.*(NaN|not a number|finite)"):
            convert(source, tmp_path / "model", ConvertParams(to="onnx", quant=quant, verify=False))
    assert not (tmp_path / "model").exists()


def test_targets_and_sources_that_will_not_do(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    graph = convert(source, tmp_path / "graph", ConvertParams(to="onnx", quant="f32", verify=False)).path
    with pytest.raises(InvalidParameter, match="a folder of this name"):
        convert(source, graph, ConvertParams(to="onnx", force=True))
    with pytest.raises(InvalidParameter, match="source itself"):
        convert(graph, graph, ConvertParams(to="onnx", quant="int4", force=True))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidParameter, match="is a file"):
        convert(source, tmp_path / "file", ConvertParams(to="onnx", force=True))
    with pytest.raises(Unsupported, match="convert it to GGUF first"):
        convert(graph, tmp_path / "back", ConvertParams(to="safetensors"))
    with pytest.raises(UnsupportedArchitecture):
        convert(tiny("mamba").write(tmp_path / "mamba.gguf"), tmp_path / "target", ConvertParams(to="onnx"))
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "back").exists()


def test_half_of_a_surrogate_pair_comes_back_as_it_was(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    edit(id2label={"0": "\ud800"})(source)
    made = convert(source, tmp_path / "graph", ConvertParams(to="onnx", verify=False)).path
    assert json.loads((made / "config.json").read_bytes())["id2label"] == {"0": "\ud800"}


def elsewhere(location: str) -> Callable[[Path], None]:
    """Data that the graph says lie there."""

    def change(folder: Path) -> None:
        path = folder / "onnx" / "model_q4.onnx"
        model = onnx.load(path, load_external_data=False)
        for each in model.graph.initializer:
            for entry in each.external_data:
                if entry.key == "location":
                    entry.value = location.replace("FOLDER", str(folder))
        path.write_bytes(model.SerializeToString())

    return change


def link(folder: Path) -> None:
    data = folder / "onnx" / "model_q4.onnx_data"
    os.replace(data, folder.parent / "outside")
    data.symlink_to(folder.parent / "nothing")


def lose(folder: Path) -> None:
    (folder / "onnx" / "model_q4.onnx_data").unlink()


def cut(name: str, count: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "onnx" / name
        path.write_bytes(path.read_bytes()[:-count])

    return change


def edit(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def manifest(text: Callable[[str], str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "onnx" / "model_q4.onnx"
        model = onnx.load(path, load_external_data=False)
        for entry in model.metadata_props:
            if entry.key == "edgellm.tensors":
                entry.value = text(entry.value)
        path.write_bytes(model.SerializeToString())

    return change


def renamed(text: str) -> str:
    return text.replace('"blk.1.ffn_up.weight"', '"blk.1.ffn_aside.weight"')


def moved(text: str) -> str:
    return text.replace('[["blk.1.attn_norm.weight"', '[["blk.1.gone"')


HOSTILE: dict[str, tuple[Callable[[Path], None], type[EdgeLLMError], str]] = {
    "data outside": (elsewhere("../../outside"), InvalidModelFile, "outside"),
    "data at an absolute path": (elsewhere("/etc/passwd"), InvalidModelFile, "passwd"),
    "a link to nothing": (link, ModelNotFound, "where nothing is"),
    "no data": (lose, ModelNotFound, "model_q4.onnx_data"),
    "data that end early": (cut("model_q4.onnx_data", 5000), InvalidModelFile, "model_q4"),
    "a graph that ends early": (cut("model_q4.onnx", 50), InvalidModelFile, r"model_q4\.onnx"),
    "no graph": (cut("model_q4.onnx", 10**9), InvalidModelFile, r"model_q4\.onnx"),
    "other heads": (edit(num_attention_heads=8), EdgeLLMError, "attn_|heads"),
    "other layers": (edit(num_hidden_layers=1), EdgeLLMError, "blk.1|does not have"),
    "more layers": (edit(num_hidden_layers=3), EdgeLLMError, "blk.2|missing"),
    "another architecture": (edit(model_type="mamba"), UnsupportedArchitecture, "mamba"),
    "a manifest of something else": (manifest(renamed), Unsupported, "ffn_aside"),
    "a manifest of what is not there": (manifest(moved), InvalidModelFile, r"blk\.1\.gone"),
    "half a manifest": (manifest(lambda text: text[: len(text) // 2]), InvalidModelFile, "edgellm.tensors"),
    "a manifest without end": (manifest(lambda text: "[" * 100_000), InvalidModelFile, "edgellm.tensors"),
    "rows beyond the end": (manifest(lambda text: text.replace("64]]", "6400]]")), InvalidModelFile, "rows"),
}


@pytest.fixture(scope="module")
def graph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    source = folder_of(folder / "source")
    return convert(source, folder / "graph", ConvertParams(to="onnx", quant="int4", verify=False)).path


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_folder(what: str, graph_folder: Path, tmp_path: Path) -> None:
    damage, error, complaint = HOSTILE[what]
    source = tmp_path / "source"
    for path in graph_folder.rglob("*"):
        if path.is_file():
            copied = source / path.relative_to(graph_folder)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
    (tmp_path / "outside").write_bytes((source / "onnx" / "model_q4.onnx_data").read_bytes())
    damage(source)
    before = sorted(tmp_path.iterdir())
    for to in ("gguf", "onnx"):
        with pytest.raises(error, match=complaint):
            convert(source, tmp_path / "target", ConvertParams(to=to))
    assert sorted(tmp_path.iterdir()) == before
