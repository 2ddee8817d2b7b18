"""Importance matrices of tiny models, against sums that numpy computes from the weights."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import Tiny, tiny

import edgellm
from edgellm.child import Child
from edgellm.converters import calibrate
from edgellm.converters.calibrate import _Sums, _Tensor, _weight_name, collect
from edgellm.converters.quant.imatrix import ImportanceMatrix
from edgellm.errors import (
    BackendFailed,
    InvalidModelFile,
    InvalidParameter,
    ModelLoadError,
    ModelNotFound,
    Unsupported,
)

PLAIN = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    words = "".join(f"{i}: hello world, the other {i * i % 97}. " for i in range(64))
    (folder / "text.txt").write_text(words + "Grüße", encoding="utf-8")
    return folder


def written(folder: Path, name: str, made: Tiny) -> Path:
    return made.write(folder / f"{name}.gguf")


def contexts(model: Path, text: Path, count: int, bos: int | None) -> NDArray[np.int64]:
    """(count, 512) token ids, the first of each replaced by `bos`."""
    with edgellm.load(model) as opened:
        ids = opened.encode(text.read_text(encoding="utf-8"), special=False)
    found = np.array(ids[: 512 * count]).reshape(count, 512)
    if bos is not None:
        found[:, 0] = bos
    return found


def first_inputs(made: Tiny, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the first layer's attention multiplies: (tokens, hidden), the normalized embedding."""
    gemma = made.metadata["general.architecture"].startswith("gemma")
    embedding = made.tensors["token_embd.weight"][2].astype(np.float64)[ids.ravel()]
    if gemma:
        embedding *= embedding.shape[1] ** 0.5
    scale = np.sqrt((embedding**2).mean(axis=1, keepdims=True) + 1e-5)
    return np.asarray(embedding / scale * made.tensors["blk.0.attn_norm.weight"][2])


@pytest.mark.parametrize(("arch", "bos"), [("llama", None), ("gemma3", 1)])
def test_sums_of_the_first_layer_are_exact(folder: Path, arch: str, bos: int | None) -> None:
    made = tiny(arch)
    model = written(folder, arch, made)
    told: list[tuple[int, int]] = []
    matrix = collect(model, folder / "text.txt", chunks=2, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (2, 512, ("text.txt",))
    assert set(matrix.entries) == {f"blk.{layer}.{role}.weight" for layer in (0, 1) for role in PLAIN}
    expected = (first_inputs(made, contexts(model, folder / "text.txt", 2, bos)) ** 2).sum(axis=0)
    for role in ("attn_q", "attn_k", "attn_v"):
        entry = matrix.entries[f"blk.0.{role}.weight"]
        assert entry.counts.tolist() == [1024]
        np.testing.assert_allclose(entry.sums, expected[None], rtol=1e-4)
    for name, entry in matrix.entries.items():
        assert entry.sums.shape == (1, made.tensors[name][0][-1])
        assert entry.counts.tolist() == [1024]
        assert (entry.sums > 0).all()


def test_experts_are_counted_apart(folder: Path) -> None:
    """Every token reaches two of four experts, and all experts of a layer read what the router reads."""
    matrix = collect(written(folder, "moe", tiny("mixtral")), folder / "text.txt", chunks=1)
    for layer in (0, 1):
        gate, up, down, router = (
            matrix.entries[f"blk.{layer}.ffn_{role}.weight"]
            for role in ("gate_exps", "up_exps", "down_exps", "gate_inp")
        )
        assert gate.sums.shape == (4, 64)
        assert down.sums.shape == (4, 128)
        assert gate.counts.sum() == 2 * router.counts.sum() == 1024
        assert len(set(gate.counts.tolist())) > 1
        np.testing.assert_array_equal(gate.counts, down.counts)
        np.testing.assert_array_equal(gate.sums, up.sums)
        np.testing.assert_allclose(gate.sums.sum(axis=0), 2 * router.sums[0], rtol=1e-5)


def test_experts_that_are_forced_get_their_tokens(folder: Path) -> None:
    """A router of zeros but for two experts' rows: the choice follows from the sign of one product."""
    made = tiny("mixtral")
    shape, kind, values = made.tensors["blk.0.ffn_gate_inp.weight"]
    made.tensors["blk.0.ffn_gate_inp.weight"] = (
        shape,
        kind,
        np.stack([values[0], values[0] * 2, -values[0], -values[0] * 2]),
    )
    matrix = collect(written(folder, "forced", made), folder / "text.txt", chunks=1)
    entry = matrix.entries["blk.0.ffn_down_exps.weight"]
    assert entry.counts[0] == entry.counts[1]
    assert entry.counts[2] == entry.counts[3]
    assert entry.counts.sum() == 1024
    sums = matrix.entries["blk.0.ffn_gate_exps.weight"].sums
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[2], sums[3])


def test_the_file_is_read_by_others(folder: Path) -> None:
    gguf = pytest.importorskip("gguf")
    matrix = collect(written(folder, "read", tiny()), folder / "text.txt", chunks=1)
    matrix.write(folder / "imatrix.gguf")
    reader = gguf.GGUFReader(folder / "imatrix.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * len(matrix.entries)
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_down.weight.in_sum2"], matrix.entries["blk.1.ffn_down.weight"].sums
    )
    assert tensors["blk.1.ffn_down.weight.counts"].ravel().tolist() == [512]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    again = ImportanceMatrix.read(folder / "imatrix.gguf")
    assert set(again.entries) == set(matrix.entries)


def test_all_of_the_text_is_read_without_a_limit(folder: Path) -> None:
    model = written(folder, "all", tiny(layers=1))
    tokens = contexts(model, folder / "text.txt", 2, None)
    assert tokens.shape == (2, 512)
    matrix = collect(model, folder / "text.txt")
    assert matrix.chunk_count == matrix.entries["blk.0.attn_q.weight"].counts[0] / 512 >= 2


def test_a_model_trained_with_less_gets_shorter_contexts(folder: Path) -> None:
    made = tiny(layers=1)
    made.metadata["llama.context_length"] = 128
    matrix = collect(written(folder, "less", made), folder / "text.txt", chunks=3)
    assert (matrix.chunk_count, matrix.chunk_size) == (3, 128)
    assert matrix.entries["blk.0.attn_q.weight"].counts.tolist() == [384]


def _nan(made: Tiny) -> None:
    shape, kind, values = made.tensors["blk.0.ffn_up.weight"]
    made.tensors["blk.0.ffn_up.weight"] = (shape, kind, values * np.float32("nan"))


def _without_a_tensor(made: Tiny) -> None:
    del made.tensors["blk.1.ffn_up.weight"]


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [(_nan, InvalidModelFile, "infinite values or NaN"), (_without_a_tensor, ModelLoadError, "blk.1.ffn_up.weight")],
)
def test_errors_of_the_child_are_raised_here(folder: Path, harm: Any, error: type[Exception], words: str) -> None:
    made = tiny()
    harm(made)
    with pytest.raises(error, match=words):
        collect(written(folder, "harmed", made), folder / "text.txt", chunks=1)


class Mortal(Child):
    def receive(self, limit: float | None = None, *forms: Any) -> dict[str, Any] | None:
        answer = super().receive(limit, *forms)
        self._process.kill()
        return answer


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_a_text_may_come_through_a_pipe(folder: Path, tmp_path: Path) -> None:
    model, pipe = written(folder, "piped", tiny()), tmp_path / "text.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=((folder / "text.txt").read_bytes(),))
    writer.start()
    matrix = collect(model, pipe, chunks=1)
    writer.join()
    plain = collect(model, folder / "text.txt", chunks=1)
    assert matrix.datasets == plain.datasets == ("text.txt",)
    assert matrix.entries.keys() == plain.entries.keys()


def test_a_child_that_dies_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(folder, "dies", tiny())
    monkeypatch.setattr(calibrate, "Child", Mortal)
    with pytest.raises(BackendFailed, match="ended with code"):
        collect(model, folder / "text.txt")


def test_an_exception_of_the_caller_stops_the_child(folder: Path) -> None:
    def stop(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(written(folder, "stopped", tiny()), folder / "text.txt", progress=stop)


def test_the_arguments_are_checked(folder: Path, tmp_path: Path) -> None:
    model = written(folder, "checked", tiny())
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(InvalidParameter, match="two contexts of 512"):
        collect(model, tmp_path / "short.txt")
    with pytest.raises(InvalidParameter, match="not UTF-8"):
        collect(model, tmp_path / "latin.txt")
    with pytest.raises(InvalidParameter, match="cannot be read"):
        collect(model, tmp_path / "missing.txt")
    with pytest.raises(InvalidParameter, match="chunks=0"):
        collect(model, folder / "text.txt", chunks=0)
    with pytest.raises(ModelNotFound, match="no such file"):
        collect(tmp_path / "missing.gguf", folder / "text.txt")


def test_tensors_laid_out_in_another_way_are_refused() -> None:
    """The error of a callback cannot cross llama.cpp: it is kept, and the callback asks for nothing more."""
    sums = _Sums()
    product, source = _Tensor(name=b"product"), _Tensor(name=b"source")
    product.src[0] = product.src[1] = ctypes.pointer(source)
    sums._ggml = SimpleNamespace(  # type: ignore[assignment]
        ggml_op_name=lambda _op: b"MUL_MAT",
        ggml_get_name=lambda _where: b"another",
        ggml_nelements=lambda _where: 0,
        ggml_get_data=lambda _where: None,
    )
    assert sums.callback(ctypes.addressof(product), True, None) is False
    assert isinstance(sums.error, Unsupported)
    assert "another way" in str(sums.error)
    assert sums.callback(ctypes.addressof(product), False, None) is False


def test_any_exception_of_a_callback_is_kept() -> None:
    sums = _Sums()
    sums._ggml = SimpleNamespace()  # type: ignore[assignment]
    assert sums.callback(ctypes.addressof(_Tensor()), True, None) is False
    assert isinstance(sums.error, BackendFailed)


def test_a_copy_made_by_the_scheduler_counts_for_its_weight() -> None:
    source = _Tensor(name=b"CPU#blk.0.attn_q.weight#0")
    product = _Tensor()
    product.src[0] = ctypes.pointer(source)
    assert _weight_name(product) == "blk.0.attn_q.weight"
