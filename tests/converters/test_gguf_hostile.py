"""Damaged and hostile checkpoints, full disks: a typed error, no output, and nothing left beside it."""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from arch_models import LLAMA, checkpoint
from hf_models import folder_of, write_weights
from tiny_models import tiny

from edgellm.converters import ConvertParams, convert, plan
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

INDEX = "model.safetensors.index.json"


def edit_json(path: Path, **changed: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changed}), encoding="utf-8")


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def truncate(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def overlap(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        spans = [entry for name, entry in header.items() if name != "__metadata__"]
        spans[1]["data_offsets"] = [offset - 2 for offset in spans[1]["data_offsets"]]

    edit_header(folder / "model-00001-of-00002.safetensors", change)


def beyond(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = next(entry for name, entry in header.items() if name != "__metadata__")
        entry["data_offsets"] = [1 << 40, (1 << 40) + entry["data_offsets"][1] - entry["data_offsets"][0]]

    edit_header(folder / "model-00001-of-00002.safetensors", change)


def lose_shard(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()


def climb(folder: Path) -> None:
    """The index names a file outside the folder, which exists."""
    shard = folder / "model-00001-of-00002.safetensors"
    os.replace(shard, folder.parent / "outside.safetensors")
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    moved = {name: "../outside.safetensors" if file == shard.name else file for name, file in weight_map.items()}
    edit_json(folder / INDEX, weight_map=moved)


def absolute(folder: Path) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={name: str(folder / file) for name, file in weight_map.items()})


def link_nowhere(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    os.replace(shard, folder.parent / "aside.safetensors")
    shard.symlink_to(folder.parent / "nothing.safetensors")


def lie(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **values)


def pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ', encoding="utf-8")


def strange_pre_tokenizer(folder: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": r"\d{7}|\w"}, "behavior": "Isolated", "invert": False}
    steps = [pattern, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]
    edit_json(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def deep_json(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000, encoding="utf-8")


HOSTILE: dict[str, tuple[Callable[[Path], None], type[EdgeLLMError], str]] = {
    "truncated shard": (truncate, InvalidModelFile, "00002-of-00002"),
    "overlapping offsets": (overlap, InvalidModelFile, "overlaps|hole"),
    "offsets beyond the end": (beyond, InvalidModelFile, "beyond the end"),
    "missing shard": (lose_shard, ModelNotFound, "shard is missing"),
    "index that climbs": (climb, InvalidModelFile, "plain name"),
    "index with absolute paths": (absolute, InvalidModelFile, "plain name"),
    "link to nothing": (link_nowhere, ModelNotFound, "shard is missing"),
    "too few layers": (lie(num_hidden_layers=1), Unsupported, "would be lost"),
    "too many layers": (lie(num_hidden_layers=3), InvalidModelFile, "missing"),
    "endless layers": (lie(num_hidden_layers=10**9), InvalidModelFile, "n_layer"),
    "other heads": (lie(num_attention_heads=8), InvalidModelFile, "shape"),
    "other vocabulary": (lie(vocab_size=300), InvalidModelFile, "shape"),
    "other width": (lie(hidden_size=128), InvalidModelFile, "shape"),
    "negative width": (lie(hidden_size=-64), EdgeLLMError, "hidden_size|n_embd|embedding|rotary"),
    "a key nobody knows": (lie(secret_sauce=3), Unsupported, "secret_sauce"),
    "another architecture": (lie(model_type="mamba"), UnsupportedArchitecture, "mamba"),
    "a pickle": (pickles, Unsupported, "pickle"),
    "no tokenizer": (no_tokenizer, InvalidModelFile, "tokenizer.json"),
    "half a tokenizer": (broken_tokenizer, InvalidModelFile, "tokenizer.json"),
    "unknown pre-tokenizer": (strange_pre_tokenizer, Unsupported, r"--pre"),
    "endless JSON": (deep_json, InvalidModelFile, "config.json"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint(what: str, tmp_path: Path) -> None:
    damage, error, complaint = HOSTILE[what]
    source = folder_of(tmp_path / "source", shards=2)
    plan(source, ConvertParams(quant="q8_0"))
    damage(source)
    before = sorted(tmp_path.iterdir())
    for run in (
        lambda: plan(source, ConvertParams(quant="q8_0")),
        lambda: convert(source, tmp_path / "model.gguf", ConvertParams(quant="q8_0")),
    ):
        with pytest.raises(error, match=complaint):
            run()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "value", [np.uint32(2**32 - 1), np.float32("nan"), "x", ["x"], np.zeros(0, np.int32)], ids=repr
)
def test_a_gguf_file_of_numbers_that_cannot_be(value: Any, tmp_path: Path) -> None:
    for name in ("block_count", "context_length", "attention.head_count_kv", "attention.value_length"):
        model = tiny("gemma2")
        model.metadata[f"gemma2.{name}"] = value
        source = model.write(tmp_path / "source.gguf")
        with pytest.raises(EdgeLLMError):
            plan(source, ConvertParams(to="onnx"))
        assert plan(source).memory is not None  # copied, whatever it is


@pytest.mark.parametrize(("quant", "value"), [("keep", np.nan), ("f16", -np.inf), ("q8_0", np.inf), ("q4_k_m", np.nan)])
def test_weights_that_are_not_numbers(quant: str, value: float, tmp_path: Path) -> None:
    tensors = checkpoint(LLAMA)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    source = folder_of(tmp_path / "source", tensors=tensors, dtype="F32")
    with pytest.raises(InvalidModelFile, match=r"ffn_up.*(NaN|not a number)"):
        convert(source, tmp_path / "model.gguf", ConvertParams(quant=quant, verify=False))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_beyond_f16(tmp_path: Path) -> None:
    tensors = checkpoint(LLAMA)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6
    source = folder_of(tmp_path / "source", tensors=tensors, dtype="F32")
    with pytest.raises(InvalidModelFile, match=r'ffn_up.*does not fit F16.*"bf16"'):
        convert(source, tmp_path / "model.gguf", ConvertParams(quant="f16"))
    convert(source, tmp_path / "model.gguf", ConvertParams(quant="bf16"))


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.Q8_0])
@pytest.mark.parametrize("to", ["gguf", "safetensors"])
def test_a_gguf_file_with_weights_that_are_not_numbers(kind: GGMLType, to: Any, tmp_path: Path) -> None:
    made = tiny(weights=kind)
    shape, stored, data = made.tensors["blk.0.ffn_up.weight"]
    data = np.array(data).copy()
    data.reshape(-1).view(np.uint8)[:4] = (0, 0, 0xC0, 0x7F) if kind is GGMLType.F32 else (0, 0x7E, 0, 0)  # NaN
    made.tensors["blk.0.ffn_up.weight"] = (shape, stored, data)
    source = made.write(tmp_path / "source.gguf")
    with pytest.raises(InvalidModelFile, match=r"NaN|not a number"):
        convert(source, tmp_path / "target", ConvertParams(to=to, verify=False))
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


class _Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        self._room -= memoryview(data).nbytes
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.mark.parametrize("room", [100, 50_000])
@pytest.mark.parametrize("to", ["gguf", "safetensors"])
def test_a_full_disk(to: Any, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny().write(tmp_path / "source.gguf")
    real = os.fdopen

    def fdopen(handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file: Any = real(handle, mode, *rest, **more)
        return _Full(file, room) if mode == "wb" else file

    monkeypatch.setattr("edgellm.formats.writing.os.fdopen", fdopen)
    with pytest.raises(CannotWrite, match=r"No space left on device.*free some space") as caught:
        convert(source, tmp_path / "target", ConvertParams(to=to))
    assert isinstance(caught.value, OSError)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_a_disk_that_is_too_small_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny().write(tmp_path / "source.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CannotWrite, match="the disk has 1000"):
        convert(source, tmp_path / "target.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny().write(tmp_path / "source.gguf")

    def refuse(*args: Any, **more: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)  # root may write everywhere
    with pytest.raises(CannotWrite, match=r"Permission denied.*permissions"):
        convert(source, tmp_path / "target.gguf")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    source = tiny().write(tmp_path / "source.gguf")
    with pytest.raises(CannotWrite, match="No such file"):
        convert(source, tmp_path / "missing" / "target.gguf")


def test_sources_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        convert(tmp_path / "nothing", tmp_path / "target.gguf")
    made = tiny()
    made.metadata["general.type"] = "adapter"
    with pytest.raises(Unsupported, match="'adapter'"):
        convert(made.write(tmp_path / "adapter.gguf"), tmp_path / "target.gguf")
    made = tiny()
    made.tensors.clear()
    with pytest.raises(InvalidModelFile, match="no tensors"):
        convert(made.write(tmp_path / "vocabulary.gguf"), tmp_path / "target.gguf")
    made = tiny("mamba")
    with pytest.raises(UnsupportedArchitecture):
        convert(made.write(tmp_path / "mamba.gguf"), tmp_path / "target", ConvertParams(to="safetensors"))
    folder = folder_of(tmp_path / "folder")
    with pytest.raises(Unsupported, match="safetensors already"):
        convert(folder, tmp_path / "target", ConvertParams(to="safetensors"))
    with pytest.raises(InvalidParameter, match="pre"):
        convert(tmp_path / "mamba.gguf", tmp_path / "target.gguf", ConvertParams(pre="qwen2"))
    (folder / "model.safetensors").unlink()
    write_weights(folder / "model.safetensors", {})
    with pytest.raises(InvalidModelFile, match="missing"):
        convert(folder, tmp_path / "target.gguf")
