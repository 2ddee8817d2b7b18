"""Every architecture against transformers: what it saves in llama.cpp, and what comes back in it again."""

from __future__ import annotations

import json
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, EMBEDDERS, atol, convert, embeddings, logits, read_back, whole
from numpy.typing import NDArray

from edgellm.architectures import from_metadata
from edgellm.converters import read
from edgellm.converters.folder.source import HuggingFace
from edgellm.formats.gguf import GGUFFile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
IDS = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2}  # the vocabulary's part of config.json
SHARDED = {"llama", "gemma3"}
BF16 = {"qwen2", "phi3", "llama-llama3"}


def _auto(name: str) -> Any:
    return transformers.AutoModel if name in EMBEDDERS else transformers.AutoModelForCausalLM


def _run(model: Any, name: str) -> NDArray[np.float32]:
    with torch.no_grad():
        out = model.eval()(torch.tensor([TOKENS]))
    found: NDArray[np.float32] = (out.last_hidden_state if name in EMBEDDERS else out.logits)[0].numpy()
    return found


def _load(folder: Path, name: str) -> Any:
    return _auto(name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def _saved(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """A random model, saved by transformers: config.json and tensors."""
    torch.manual_seed(1)
    values = dict(CONFIGS[name])
    model = _auto(name).from_config(transformers.AutoConfig.for_model(**deepcopy(values)))  # which it changes
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        offset = parameter.data if parameter.dim() == 1 else 0.0
        parameter.data = offset + scale * torch.randn_like(parameter)
    if name in BF16:
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB" if name in SHARDED else "1GB")
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (name in SHARDED)
    with closing(read(folder)) as source:
        assert isinstance(source, HuggingFace)
        assert {tensor.stored for tensor in source.tensors.values()} == {"BF16" if name in BF16 else "F32"}
        return source.config, {key: whole(tensor) for key, tensor in source.tensors.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree(name: str, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    config, tensors = _saved(name, source)
    path = convert(config, tensors, tmp_path / "tiny.gguf")
    expected = _run(_load(source, name), name)
    found = embeddings(path, TOKENS) if name in EMBEDDERS else logits(path, TOKENS)
    assert np.abs(expected).max() > 0.5
    assert np.abs(found - expected).max() < atol(CONFIGS[name])

    with GGUFFile.open(path) as file:
        architecture, hyper = from_metadata(file)
        rebuilt = read_back(architecture, hyper, file)
    back.mkdir()
    (back / "config.json").write_text(json.dumps({**architecture.config(hyper), **IDS}))
    safetensors.save_file({key: torch.from_numpy(value) for key, value in rebuilt.items()}, back / "model.safetensors")
    again = _run(_load(back, name), name)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5)
