"""Embeddings by the ONNX engine, on a tiny random encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_onnx
from tiny_onnx import PROMPT

import edgellm
from edgellm.backends import open_backend
from edgellm.errors import ContextOverflow, Interrupted, Unsupported
from edgellm.params import LoadParams


def test_embeddings_pool_what_the_encoder_gives(folders: dict[str, Path]) -> None:
    backend = open_backend(folders["encoder"], LoadParams())
    texts = [PROMPT[:9], PROMPT[:3], PROMPT[5:40], [4]]
    found = backend.embed(texts)
    assert found.shape == (4, tiny_onnx.WIDTH)
    session = onnxruntime.InferenceSession(folders["encoder"] / "model.onnx", providers=["CPUExecutionProvider"])
    for tokens, vector in zip(texts, found, strict=True):
        ids = np.array([tokens], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = session.run(None, feed)[0][0].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert backend.embed([]).shape == (0, tiny_onnx.WIDTH)
    with pytest.raises(ContextOverflow):
        backend.embed([[5] * 129])
    with pytest.raises(Unsupported, match="embed"):
        backend.new_sequence()
    backend.interrupt()
    with pytest.raises(Interrupted):
        backend.embed(texts)
    assert np.array_equal(backend.embed(texts), found)
    backend.close()


@pytest.mark.parametrize("kind", ["cls", "last", "max", "raw"])
def test_how_it_pools_is_read_from_the_folder(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(folders["encoder"], tmp_path / "encoder")
    names = {"cls": "cls_token", "last": "lasttoken", "max": "max_tokens", "raw": "mean_tokens"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{names[kind]}": True}))
    modules = json.loads((folder / "modules.json").read_text())[:2]
    (folder / "modules.json").write_text(json.dumps(modules))  # without Normalize
    backend = open_backend(folder, LoadParams())
    ids = np.array([PROMPT[:9]], np.int64)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    hidden = session.run(None, feed)[0][0]
    expected = {"cls": hidden[0], "last": hidden[-1], "max": hidden.max(0), "raw": hidden.mean(0)}[kind]
    found = backend.embed([[5, 6], PROMPT[:9]])[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    backend.close()


def test_positions_that_begin_behind_the_padding_are_fewer(folders: dict[str, Path], tmp_path: Path) -> None:
    """As XLM-RoBERTa's, whose table of positions has rows that no token reaches."""
    folder = shutil.copytree(folders["encoder"], tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "xlm-roberta", "pad_token_id": 1}))
    backend = open_backend(folder, LoadParams())
    assert (backend.n_ctx, backend.info.n_ctx_train) == (126, 126)
    with pytest.raises(ContextOverflow):
        backend.embed([[5] * 127])
    backend.close()


def test_pooling_that_is_not_known_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["encoder"], tmp_path / "encoder")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(Unsupported, match="weightedmean"):
        open_backend(folder, LoadParams())
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Dense"}]))
    with pytest.raises(Unsupported, match="Dense"):
        open_backend(folder, LoadParams())


def test_embeddings_end_to_end(folders: dict[str, Path]) -> None:
    with edgellm.load(folders["encoder"]) as model:
        vectors = model.embed(["hello", "world, hello"])
        assert vectors.shape == (2, tiny_onnx.WIDTH)
        with pytest.raises(Unsupported):
            model.generate("hello")
