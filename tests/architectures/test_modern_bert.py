"""ModernBERT on both engines against numpy: hidden states, vectors, scores; its configurations; its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, MODERN_RERANKER, checkpoint, embeddings
from hf_models import folder_of
from modern_bert_reference import ModernBert
from numpy.typing import NDArray
from onnx_models import opened

import edgellm
from edgellm.architectures import from_config
from edgellm.backends import open_backend
from edgellm.backends.llamacpp.checks import check_header
from edgellm.converters import ConvertParams, convert
from edgellm.errors import ContextOverflow, EdgeLLMError, InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.params import LoadParams

CONFIG = CONFIGS["modernbert"]
TOKENS = np.random.default_rng(6).integers(3, 271, 120).tolist()
BASE: dict[str, Any] = {  # keys of the published ModernBERT-base
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ModernBERT-base": BASE,
    "ModernBERT-large": {
        **BASE,
        "hidden_size": 1024,
        "intermediate_size": 2624,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
    },
    "gte-modernbert-base": {
        **BASE,
        "architectures": ["ModernBertModel"],
        "reference_compile": False,
        "repad_logits_with_grad": False,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": False,
    },
    "gte-reranker-modernbert-base": {
        **BASE,
        "architectures": ["ModernBertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "reference_compile": None,
        "repad_logits_with_grad": False,
        "sparse_pred_ignore_index": -100,
        "sparse_prediction": False,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_known(name: str) -> None:
    architecture, hyper = from_config(PUBLISHED[name])
    assert (architecture.gguf, hyper.window, hyper.centred, hyper.causal) == ("modern-bert", 128, True, False)
    assert hyper.pooling == ("rank" if "reranker" in name else None)
    assert hyper.windowed[:7] == (False, True, True, False, True, True, False)
    full, local = hyper.rotation(0), hyper.rotation(1)
    assert full is not None
    assert local is not None
    assert (full.base, local.base, full.dim) == (160000.0, 10000.0, 64)


@pytest.mark.parametrize(
    ("changed", "error", "word"),
    [
        ({"norm_bias": True}, Unsupported, "norm_bias"),
        ({"attention_bias": True}, Unsupported, "attention_bias"),
        ({"mlp_bias": True}, Unsupported, "mlp_bias"),
        ({"hidden_activation": "silu"}, Unsupported, "hidden_activation"),
        ({"layer_types": ["sliding_attention", *["full_attention"] * 4]}, Unsupported, "layer_types"),
        ({"layer_types": ["full_attention"] * 4}, InvalidModelFile, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 5}, InvalidModelFile, "layer_types"),
        ({"global_attn_every_n_layers": 0}, InvalidModelFile, "0th layer"),
        ({"local_attention": 0}, InvalidModelFile, "window of 0"),
        ({"local_attention": None}, InvalidModelFile, "window of None"),
        ({"hidden_size": 60}, InvalidModelFile, "15 rotated elements"),
        ({"a_new_trick": 1}, Unsupported, "a_new_trick"),
        ({**MODERN_RERANKER, "classifier_pooling": "cls"}, Unsupported, "classifier_pooling"),
        ({**MODERN_RERANKER, "classifier_bias": True}, Unsupported, "classifier_bias"),
        ({**MODERN_RERANKER, "id2label": {"0": "a", "1": "b"}}, Unsupported, "2 labels"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(
    changed: dict[str, Any], error: type[EdgeLLMError], word: str
) -> None:
    with pytest.raises(error, match=word):
        from_config({**CONFIG, **changed})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder that pools its first token."""
    path = folder_of(tmp_path_factory.mktemp("modern") / "source", CONFIG, dtype="F32", tensors=amplified(CONFIG))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (path / "modules.json").write_text(json.dumps(modules))
    return path


def amplified(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Weights under which attention matters."""
    return {name: value * np.float32(1 if "norm" in name else 2) for name, value in checkpoint(config).items()}


def cosines(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """Of the angles between rows."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return np.asarray((found * expected).sum(axis=-1) / lengths)


def test_hidden_states_are_those_of_the_weights(folder: Path, tmp_path: Path) -> None:
    """llama.cpp computes GELU by its tanh approximation, from a table of f16."""
    expected = ModernBert(CONFIG, amplified(CONFIG)).hidden(TOKENS)
    wide = ModernBert({**CONFIG, "local_attention": 240}, amplified(CONFIG)).hidden(TOKENS)
    assert np.abs(wide - expected).max() > 0.1  # the window is seen in it
    gguf = convert(folder, tmp_path / "made.gguf", ConvertParams(quant="f32", verify=False)).path
    with GGUFFile.open(gguf) as file:
        assert check_header(file) == []
    found = embeddings(gguf, TOKENS)
    assert cosines(found, expected).min() > 0.9999
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)

    made = convert(folder, tmp_path / "onnx", ConvertParams(to="onnx", quant="f32", verify=False)).path
    session = opened(made / "onnx" / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    ids = np.array([TOKENS, [*TOKENS[:50], *[5] * 70]], np.int64)
    mask = np.array([[1] * 120, [1] * 50 + [0] * 70], np.int64)
    (rows,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(rows[0], expected, rtol=0, atol=1e-4)
    short = ModernBert(CONFIG, amplified(CONFIG)).hidden(TOKENS[:50])
    np.testing.assert_allclose(rows[1, :50], short, rtol=0, atol=1e-4)


@pytest.mark.parametrize("quant", ["f32", "q8_0", "onnx-f32", "onnx-int8"])
def test_vectors_are_those_of_the_weights(folder: Path, tmp_path: Path, quant: str) -> None:
    to = "onnx" if "onnx" in quant else "gguf"
    params = ConvertParams(to=to, quant=quant.removeprefix("onnx-"), verify=False)
    texts = ["hello world", "the other world, hello " * 8, "x", ""]
    reference = ModernBert(CONFIG, amplified(CONFIG))
    with edgellm.load(convert(folder, tmp_path / f"made.{to}", params).path) as model:
        assert (model.info.architecture, model.info.can_embed, model.n_ctx) == (
            ("modern-bert" if to == "gguf" else "modernbert"),
            True,
            128,
        )
        tokens = [model.encode(text) for text in texts]
        assert all((ids[0], ids[-1]) == (1, 0) for ids in tokens)
        expected = np.array([reference.hidden(ids)[0] for ids in tokens])
        found = model.embed(texts)
        assert cosines(found, expected).min() > (0.9999 if "f32" in quant else 0.99)
        assert cosines(expected[:1], expected[1:2])[0] < 0.9
        np.testing.assert_allclose(model.embed(texts[1])[0], found[1], rtol=0, atol=1e-3 * np.abs(found).max())
        with pytest.raises(ContextOverflow):
            model.embed("hello world " * 80)


@pytest.mark.parametrize("to", ["gguf", "onnx"])
def test_scores_are_those_of_the_weights(tmp_path: Path, to: str) -> None:
    tensors = amplified(MODERN_RERANKER)
    source = folder_of(tmp_path / "source", MODERN_RERANKER, dtype="F32", tensors=tensors)
    made = convert(source, tmp_path / f"made.{to}", ConvertParams(to=to, quant="f32", verify=False)).path
    reference = ModernBert(MODERN_RERANKER, tensors)
    query, texts = "hello", ["the world", "hell", "a b c d e f " * 5, "other there " * 7]
    if to == "gguf":
        with GGUFFile.open(made) as file:
            assert check_header(file) == []
    with edgellm.load(made) as model:
        assert (model.info.can_rerank, model.info.can_embed) == (True, False)
        pairs = [
            model._engine.backend.tokenizer.joined(model.encode(query, bos=False), ids) for ids in plain(model, texts)
        ]
        assert pairs[1][0][0] == 1
        assert [each for each in pairs[1][0] if each < 3] == [1, 0, 0]
        expected = [reference.score(tokens) for tokens, _ in pairs]
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(model.rerank(query, texts), expected, rtol=0, atol=5e-3 if to == "gguf" else 1e-4)


def plain(model: edgellm.Model, texts: list[str]) -> list[list[int]]:
    """Their tokens, with nothing around them."""
    return [model.encode(text, bos=False, special=False) for text in texts]


def test_its_tokenizer_is_read_as_it_is_published(folder: Path, tmp_path: Path) -> None:
    """Byte-level BPE behind a normalizer, and no bos or eos: the template alone says what stands around a text."""
    source = shutil.copytree(folder, tmp_path / "source")
    document = json.loads((source / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "NFC"}
    document["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    (source / "tokenizer.json").write_text(json.dumps(document))
    config = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "special_tokens_map.json").unlink(missing_ok=True)
    ids = []
    for to in ("gguf", "onnx"):
        done = convert(source, tmp_path / f"made.{to}", ConvertParams(to=to, quant="f32", verify=False))
        with edgellm.load(done.path) as model:
            tokenizer = model._engine.backend.tokenizer
            assert (tokenizer.begin, tokenizer.end) == ((1,), (0,))
            assert tokenizer.joined([5], [6, 7])[0] == [1, 5, 0, 6, 7, 0]
            ids.append(model.encode("hello world, they're 42"))
    assert ids[0] == ids[1]


def test_a_layer_without_its_norm_is_refused(tmp_path: Path) -> None:
    """Only the first layer has none."""
    for name, value in (("layers.0.attn_norm.weight", np.ones(64, np.float32)), ("layers.3.attn_norm.weight", None)):
        tensors = checkpoint(CONFIG)
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
        source = folder_of(tmp_path / name, CONFIG, dtype="F32", tensors=tensors)
        with pytest.raises(EdgeLLMError, match=name.replace(".", r"\.")):
            convert(source, tmp_path / "no.gguf", ConvertParams(verify=False))
    path = convert(
        folder_of(tmp_path / "whole", CONFIG, dtype="F32"),
        tmp_path / "whole.gguf",
        ConvertParams(quant="f32", verify=False),
    ).path
    backend = open_backend(path, LoadParams())
    assert not backend.info.can_embed  # nothing says how it pools
    backend.close()
