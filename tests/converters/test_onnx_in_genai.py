"""Folders that edgellm exports, in onnxruntime-genai: the same greedy tokens."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hf_models import folder_of

import edgellm
from edgellm.converters import ConvertParams, convert

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its bindings, compiled with an older pybind11
    og = pytest.importorskip("onnxruntime_genai")

PROMPT, COUNT = list(range(5, 25)), 16


@pytest.mark.parametrize("quant", ["f32", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2", "phi3", "gpt2"])
def test_the_same_tokens(name: str, quant: str, tmp_path: Path) -> None:
    folder = convert(
        folder_of(tmp_path / "source", name), tmp_path / "onnx", ConvertParams(to="onnx", quant=quant, exact=True)
    ).path
    with edgellm.load(folder) as model:
        expected = list(model.generate(PROMPT, max_tokens=COUNT, temperature=0, cache=False).tokens)
        ends = model.info.stop_ids
    params = og.GeneratorParams(engine := og.Model(str(folder)))
    params.set_search_options(max_length=len(PROMPT) + COUNT, do_sample=False)
    generator = og.Generator(engine, params)
    generator.append_tokens(np.array([PROMPT], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)[len(PROMPT) :]]
    assert [token for token in found if token not in ends] == [token for token in expected if token not in ends]
