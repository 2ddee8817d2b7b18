"""The ONNX graph of every family against transformers: in one pass, in pieces, in batches."""

from __future__ import annotations

from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import EMBEDDERS, whole
from numpy.typing import NDArray
from onnx_models import VARIANTS, Runner, opened, write

from edgellm.converters import read

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
CLOSE = 1e-3
DECODERS = [name for name in VARIANTS if name not in EMBEDDERS]


def _random(name: str, folder: Path) -> tuple[Any, dict[str, NDArray[np.float32]]]:
    """A random model, and the tensors that transformers saves of it."""
    torch.manual_seed(1)
    auto = transformers.AutoModel if name in EMBEDDERS else transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(**deepcopy(VARIANTS[name]))  # which it changes
    model = auto.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        offset = parameter.data if parameter.dim() == 1 else 0.0
        parameter.data = offset + scale * torch.randn_like(parameter)
    model.save_pretrained(folder)
    with closing(read(folder)) as source:
        return model, {key: whole(tensor) for key, tensor in source.tensors.items()}


def _logits(model: Any, tokens: list[int], cache: Any = None) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([tokens]), past_key_values=cache).logits[0].numpy()
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, tmp_path: Path) -> None:
    model, tensors = _random(name, tmp_path / "source")
    hyper = write(tmp_path / "model.onnx", VARIANTS[name], tensors)
    runner = Runner(tmp_path / "model.onnx", hyper)

    expected = _logits(model, TOKENS)
    assert np.abs(expected).max() > 0.5
    once, _ = runner.run([TOKENS], [40], runner.empty())
    np.testing.assert_allclose(once[0], expected, rtol=0, atol=CLOSE)
    last, _ = runner.run([TOKENS], [40], runner.empty(), keep=1)
    assert last.shape == (1, 1, 271)
    np.testing.assert_allclose(last[0], expected[-1:], rtol=0, atol=CLOSE)

    # in pieces, with a cache that grows and with one that is written into
    growing, shared = runner.empty(), runner.empty(length=64)
    piecewise, start = transformers.DynamicCache(config=model.config), 0
    for size in (5, 3, 26, 1, 1, 4):
        piece, stop = TOKENS[start : start + size], start + size
        expected_piece = _logits(model, piece, piecewise)
        found, growing = runner.run([piece], [stop], growing)
        np.testing.assert_allclose(found[0], expected_piece, rtol=0, atol=CLOSE)
        np.testing.assert_allclose(runner.run_shared([piece], [stop], shared)[0], expected_piece, rtol=0, atol=CLOSE)
        start = stop
    assert start == len(TOKENS)

    # two rows of 20 and 30 tokens, then one token more for each
    long, short = TOKENS[:30], TOKENS[10:30]
    slab = runner.empty(batch=2, length=64)
    first = runner.run_shared([long, short + [0] * 10], [30, 20], slab)
    second = runner.run_shared([[7], [9]], [31, 21], slab)
    for row, tokens, last_token in ((0, long, 7), (1, short, 9)):
        alone = _logits(model, [*tokens, last_token])
        np.testing.assert_allclose(first[row, : len(tokens)], alone[:-1], rtol=0, atol=CLOSE)
        np.testing.assert_allclose(second[row, 0], alone[-1], rtol=0, atol=CLOSE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EMBEDDERS)
def test_encoders(name: str, tmp_path: Path) -> None:
    model, tensors = _random(name, tmp_path / "source")
    write(tmp_path / "model.onnx", VARIANTS[name], tensors)
    session = opened(tmp_path / "model.onnx")
    ids = np.array([TOKENS, TOKENS[::-1]], np.int64)
    mask = np.array([[1] * 40, [1] * 25 + [0] * 15], np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    if "type_vocab_size" in VARIANTS[name]:
        feeds["token_type_ids"] = (np.arange(40) > 20).astype(np.int64)[None].repeat(2, axis=0)
    (found,) = session.run(["last_hidden_state"], feeds)
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(value) for key, value in feeds.items()}).last_hidden_state.numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=0, atol=CLOSE)
