"""Hugging Face to GGUF and back without torch: nothing is lost, and llama.cpp runs what is in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from arch_models import CONFIGS, EMBEDDERS, checkpoint, convert, embeddings, logits, read_back

from edgellm.architectures import ARCHITECTURES, from_config, from_metadata
from edgellm.backends.llamacpp.checks import check_header
from edgellm.formats.gguf import GGUFFile

BACK = {"mistral": "llama"}  # in GGUF a Mistral is a llama


def test_every_family_has_a_configuration() -> None:
    assert {one.model_type for one in ARCHITECTURES} == {from_config(one)[0].model_type for one in CONFIGS.values()}


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    config, tensors = CONFIGS[name], checkpoint(CONFIGS[name])
    architecture, hyper = from_config(config)
    path = convert(config, tensors, tmp_path / "tiny.gguf")
    with GGUFFile.open(path) as file:
        back, read = from_metadata(file)
        found = read_back(back, read, file)
    assert back.model_type == BACK.get(architecture.model_type, architecture.model_type)
    assert {**hyper.__dict__, "model_type": ""} == {**read.__dict__, "model_type": ""}
    assert from_config(back.config(read))[1] == read
    assert sorted(found) == sorted(tensors)
    for key, values in tensors.items():
        np.testing.assert_allclose(found[key], values, rtol=0, atol=2e-7 if "gemma" in name else 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_is_known_to_run_it(name: str, tmp_path: Path) -> None:
    path = convert(CONFIGS[name], checkpoint(CONFIGS[name]), tmp_path / "tiny.gguf", {"pooling_mode_mean_tokens": True})
    with GGUFFile.open(path) as file:
        assert check_header(file) == []
    run = embeddings if name in EMBEDDERS else logits
    rows = run(path, [1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 3])
    assert rows.shape[0] == 12
    assert np.isfinite(rows).all()
    assert np.ptp(rows) > 0.01
