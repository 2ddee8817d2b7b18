"""Rerankers against transformers: random models that it saves, converted, and put together by its own tokenizer."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import MODERN_RERANKER, RERANKER
from hf_models import write_tokenizer

import edgellm
from edgellm.architectures import from_config
from edgellm.converters import ConvertParams, convert

PUBLISHED: dict[str, dict[str, Any]] = {  # keys of published configurations beyond those of RERANKER
    "ms-marco-MiniLM": {
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        "transformers_version": "4.45.2",
    },
    "ms-marco-MiniLM, saved by CrossEncoder": {
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0.dev0"},
        "torch_dtype": "float32",
    },
    "ms-marco-MiniLM of 2021": {"gradient_checkpointing": False, "transformers_version": "4.4.2", "use_cache": True},
}
CHARACTERS = [chr(0x4E00 + at) for at in range(250)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_known(name: str) -> None:
    architecture, hyper = from_config({**RERANKER, **PUBLISHED[name]})
    assert (architecture.classname, hyper.pooling) == ("BertForSequenceClassification", "rank")
    assert hyper == from_config(RERANKER)[1]
    assert from_config(RERANKER, {"pooling_mode_mean_tokens": True})[1].pooling == "rank"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["gguf", "onnx"])
@pytest.mark.parametrize("values", [RERANKER, MODERN_RERANKER], ids=["bert", "modernbert"])
def test_scores_agree(tmp_path: Path, values: dict[str, Any], to: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**deepcopy(values))  # which it changes
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        offset = parameter.data if parameter.dim() == 1 else 0.0
        parameter.data = offset + scale * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "source")
    write_tokenizer(tmp_path / "source", values)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "source")

    rng = np.random.default_rng(2)
    letters = CHARACTERS if values is RERANKER else [*"abcdefgh ", "hello", " world"]
    query, *texts = ["".join(rng.choice(letters, size)) for size in (7, 3, 10, 40, 1, 60)]
    expected = []
    for text in texts:
        given = tokenizer(query, text, return_tensors="pt")
        if values is RERANKER:
            assert given["token_type_ids"].sum() == len(text) + 1
        with torch.no_grad():
            expected.append(model(**given).logits.item())
    assert np.ptp(expected) > 0.3
    made = convert(tmp_path / "source", tmp_path / f"made.{to}", ConvertParams(to=to, quant="f32", verify=False)).path
    with edgellm.load(made) as opened:
        np.testing.assert_allclose(opened.rerank(query, texts), expected, rtol=0, atol=1e-3)

    # and back, where transformers reads it again
    made = convert(made, tmp_path / "again.gguf", ConvertParams(quant="f32", verify=False)).path
    back = convert(made, tmp_path / "back", ConvertParams(to="safetensors", verify=False)).path
    again = transformers.AutoModelForSequenceClassification.from_pretrained(back).eval()
    given = transformers.AutoTokenizer.from_pretrained(back)(query, texts[2], return_tensors="pt")
    with torch.no_grad():
        assert again(**given).logits.item() == pytest.approx(expected[2], abs=1e-5)
