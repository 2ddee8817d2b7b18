"""Rerankers: scores of texts beside a query, on both engines that have them, against numpy."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from arch_models import CONFIGS, RERANKER, checkpoint
from bert_reference import Bert
from hf_models import folder_of
from safetensors.numpy import load_file, save_file
from tiny_models import tiny
from tiny_onnx import write_decoder, write_encoder

import edgellm
from edgellm import Model
from edgellm.backends import inspect, open_backend
from edgellm.backends.llamacpp.checks import check_header
from edgellm.converters import ConvertParams, convert
from edgellm.errors import Closed, ContextOverflow, Interrupted, InvalidParameter, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.params import LoadParams

CHARACTERS = [chr(0x4E00 + at) for at in range(250)]  # each a token
SIZES = (3, 10, 40, 1, 100, 0)
RNG = np.random.default_rng(4)
QUERY = "".join(RNG.choice(CHARACTERS, 9))
TEXTS = ["".join(RNG.choice(CHARACTERS, size)) for size in SIZES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with one label."""
    tensors = checkpoint(RERANKER)
    for name, values in tensors.items():
        values += np.float32("LayerNorm.weight" in name)
    return folder_of(tmp_path_factory.mktemp("reranker") / "source", RERANKER, dtype="F32", tensors=tensors)


@pytest.fixture(scope="module", params=["gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-f32", "onnx-int8"])
def path(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to, _, quant = request.param.partition("-")
    return converted(folder, tmp_path_factory.mktemp("made"), to, quant)


def converted(folder: Path, where: Path, to: str, quant: str = "f32") -> Path:
    where.mkdir(exist_ok=True)
    return convert(folder, where / f"made-{quant}.{to}", ConvertParams(to=to, quant=quant, verify=False)).path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with edgellm.load(path) as opened:
        yield opened


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def plain(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In F32."""
    return converted(folder, tmp_path_factory.mktemp("plain"), request.param)


def test_scores_are_those_of_the_weights(model: Model, folder: Path) -> None:
    """llama.cpp computes GELU by its tanh approximation."""
    tokenizer, reference = model._engine.backend.tokenizer, Bert(folder)
    pairs = [tokenizer.joined(tokenizer.encode(QUERY), tokenizer.encode(text)) for text in TEXTS]
    assert [len(tokens) for tokens, _ in pairs] == [9 + size + 3 for size in SIZES]
    assert {first for _, first in pairs} == {9 + 2}
    expected = np.array([reference.score(*pair) for pair in pairs])
    untyped = np.array([reference.score(tokens) for tokens, _ in pairs])
    assert np.ptp(expected) > 0.1
    assert np.abs(expected - untyped).max() > 0.1  # what the types of tokens are is seen in it
    found = model.rerank(QUERY, TEXTS)
    assert (found.shape, found.dtype) == ((len(TEXTS),), np.float32)
    name = Path(model.info.path).name
    atol = 1e-3 if "f32" in name else 2e-3 if "f16" in name else 0.02 if "8" in name else 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_a_score_depends_on_its_pair_alone(model: Model) -> None:
    found = model.rerank(QUERY, TEXTS)
    assert np.array_equal(model.rerank(QUERY, TEXTS), found)
    np.testing.assert_allclose(model.rerank(QUERY, TEXTS[::-1])[::-1], found, rtol=0, atol=1e-3)
    np.testing.assert_allclose([model.rerank(QUERY, text)[0] for text in TEXTS], found, rtol=0, atol=1e-3)
    many = model.rerank(QUERY, TEXTS * 40)
    np.testing.assert_allclose(many.reshape(40, -1), np.tile(found, (40, 1)), rtol=0, atol=1e-3)
    ids = [model.encode(text, special=False, bos=False) for text in TEXTS]
    assert np.array_equal(model.rerank(model.encode(QUERY, special=False, bos=False), ids), found)
    assert model.rerank(QUERY, []).shape == (0,)


def test_it_says_what_it_is(model: Model) -> None:
    for info in (model.info, inspect(model.info.path)):
        assert (info.can_rerank, info.can_embed, info.can_generate) == (True, False, False)
    with pytest.raises(Unsupported, match="embeddings"):
        model.embed(TEXTS)
    with pytest.raises(Unsupported, match=r"encoder.*model\.rerank"):
        model.generate(QUERY)
    with pytest.raises(Unsupported, match=r"encoder.*model\.rerank"):
        model._engine.call(lambda backend: backend.new_sequence())


def test_what_does_not_fit_is_refused_and_nothing_is_cut(model: Model) -> None:
    fits = "".join(CHARACTERS[:116])
    assert np.isfinite(model.rerank(QUERY, fits)).all()
    with pytest.raises(ContextOverflow, match="text 1 has 129 tokens with the query") as error:
        model.rerank(QUERY, [QUERY, fits + CHARACTERS[0]])
    assert (error.value.needed, error.value.n_ctx) == (129, 128)
    with pytest.raises(ContextOverflow):
        model._engine.call(lambda backend: backend.rank([[5] * 129], [3]))


def test_control_tokens_in_a_text_are_text(model: Model) -> None:
    tokenizer = model._engine.backend.tokenizer
    separator = tokenizer.end[0]
    assert separator in model.encode("[SEP]", special=True, bos=False)
    spelled = model.encode("[SEP]", special=False, bos=False)
    assert separator not in spelled
    assert np.array_equal(model.rerank(QUERY, ["[SEP]"]), model.rerank(QUERY, [spelled]))


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        (QUERY, [[271]]),
        (QUERY, [[-1]]),
        ([1 << 40], [QUERY]),
        (QUERY, [3]),
        (None, TEXTS),
        (QUERY, b"x"),
        ("\ud800", []),
    ],
)
def test_what_is_no_text_is_refused(model: Model, query: Any, texts: Any) -> None:
    with pytest.raises(InvalidParameter):
        model.rerank(query, texts)


def test_a_pair_that_is_none_is_refused(model: Model) -> None:
    for batch, first in (([5, 6], 0), ([5, 6], 3), ([], 0)):
        with pytest.raises(InvalidParameter):
            model._engine.call(lambda backend, batch=batch, first=first: backend.rank([batch], [first]))


def test_progress_is_told(model: Model) -> None:
    told: list[tuple[int, int]] = []
    model.rerank(QUERY, TEXTS * 40, progress=lambda done, total: told.append((done, total)))
    total = sum(size + 12 for size in SIZES) * 40
    assert (told[0], told[-1]) == ((0, total), (total, total))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_interruption_stops_it_once(plain: Path) -> None:
    backend = open_backend(plain, LoadParams())
    tokens, first = backend.tokenizer.joined([7, 8, 9], [10, 11])
    expected = backend.rank([tokens] * 3, [first] * 3)
    assert expected[0] == pytest.approx(expected[2], abs=1e-5)
    backend.interrupt()
    with pytest.raises(Interrupted):
        backend.rank([tokens] * 3, [first] * 3)
    assert np.array_equal(backend.rank([tokens] * 3, [first] * 3), expected)
    assert backend.rank([], []).shape == (0,)
    backend.close()
    with pytest.raises(Closed):
        backend.rank([tokens], [first])


def test_closing_ends_it(plain: Path) -> None:
    model = edgellm.load(plain)
    timer = threading.Timer(0.05, model.close)

    def rerank_on_and_on() -> None:
        while True:
            model.rerank(QUERY, TEXTS * 400)

    timer.start()
    with pytest.raises(Closed):
        rerank_on_and_on()
    timer.join()


def test_a_file_that_says_less_ranks_all_the_same(folder: Path, tmp_path: Path) -> None:
    """Published files may leave the pooling type out, and name the label."""
    path = converted(folder, tmp_path, "gguf")
    with GGUFFile.open(path) as file:
        assert check_header(file) == []
        metadata = {key: value for key, value in file.metadata.items() if key != "bert.pooling_type"}
        metadata["bert.classifier.output_labels"] = ["LABEL_0"]
        tensors = [(name, info.shape, info.type, file.data(name)) for name, info in file.tensors.items()]
        write_gguf(tmp_path / "less.gguf", metadata, tensors)
    with edgellm.load(path) as model, edgellm.load(tmp_path / "less.gguf") as less:
        assert np.array_equal(less.rerank(QUERY, TEXTS), model.rerank(QUERY, TEXTS))


def test_a_pooling_type_without_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    made = tiny("bert")
    made.metadata["bert.pooling_type"] = 4
    with GGUFFile.open(made.write(tmp_path / "a.gguf")) as file:
        assert "no cls.output.weight" in check_header(file)[0]
    info = inspect(tmp_path / "a.gguf")
    assert (info.can_rerank, info.can_embed) == (False, False)


def test_models_that_are_no_rerankers_refuse_by_name(tmp_path: Path) -> None:
    bert = folder_of(tmp_path / "bert", CONFIGS["bert"], dtype="F32")
    paths = [
        tiny("llama").write(tmp_path / "llama.gguf"),
        converted(bert, tmp_path, "gguf"),
        write_encoder(tmp_path / "encoder"),
        write_decoder(tmp_path / "decoder"),
    ]
    for path in paths:
        with edgellm.load(path) as model:
            assert not model.info.can_rerank
            with pytest.raises(Unsupported, match=f"{model.info.name} on {model.backend} ranks no texts"):
                model.rerank("a", ["b"])
            with pytest.raises(Unsupported, match="ranks no texts"):
                model._engine.call(lambda backend: backend.rank([[5, 6]], [1]))


def test_a_classifier_of_several_labels_is_no_reranker(folder: Path, tmp_path: Path) -> None:
    labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    for config in ({**RERANKER, **labels}, {key: value for key, value in RERANKER.items() if "2" not in key}):
        other = shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(Unsupported, match="a classifier of 2 labels"):
            convert(other, tmp_path / "no.gguf", ConvertParams())
    export = converted(folder, tmp_path, "onnx")
    graph = onnx.load(export / "onnx" / "model.onnx", load_external_data=False)
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(graph, export / "onnx" / "model.onnx")
    with pytest.raises(Unsupported, match="a classifier of 2 labels"):
        open_backend(export, LoadParams())


def test_every_way_there_is_leads_back(folder: Path, tmp_path: Path) -> None:
    """GGUF, ONNX and Hugging Face's folder of one another hold the same numbers."""
    source = load_file(folder / "model.safetensors")
    gguf = converted(folder, tmp_path, "gguf")
    for made in (gguf, converted(gguf, tmp_path, "onnx"), converted(folder, tmp_path / "straight", "onnx")):
        file = made if made is gguf else converted(made, made.parent / "again", "gguf")
        back = convert(file, made.parent / f"{made.name}-back", ConvertParams(to="safetensors", verify=False)).path
        found = load_file(back / "model.safetensors")
        assert found.keys() == source.keys()
        assert all(np.array_equal(found[name], source[name]) for name in source)
        config = json.loads((back / "config.json").read_text())
        assert config["architectures"] == ["BertForSequenceClassification"]
        assert config["id2label"] == {"0": "LABEL_0"}
        assert not (back / "1_Pooling").exists()


def test_minilm_with_a_classifier_reads_english(minilm_folder: Path, tmp_path: Path) -> None:
    """Words in pieces, and weights that were trained: all but those of the classifier, which is drawn."""
    source = shutil.copytree(minilm_folder, tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = {f"bert.{name}": value for name, value in load_file(minilm_folder / "model.safetensors").items()}
    rng = np.random.default_rng(5)
    weights["classifier.weight"] = rng.standard_normal((1, 384)).astype(np.float32)
    weights["classifier.bias"] = np.array([0.25], np.float32)
    save_file(
        {name: value for name, value in weights.items() if "position_ids" not in name}, source / "model.safetensors"
    )
    config = json.loads((minilm_folder / "config.json").read_text())
    labels = {key: value for key, value in RERANKER.items() if key in ("architectures", "id2label", "label2id")}
    (source / "config.json").write_text(json.dumps({**config, **labels}))
    query = "How many people live in Berlin?"
    texts = ["Berlin has 3,520,031 inhabitants.", "New York is famous for its Metropolitan Museum.", "Größe: 42 m²"]
    reference = Bert(source)
    for to in ("gguf", "onnx"):
        with edgellm.load(converted(source, tmp_path, to)) as model:
            tokenizer = model._engine.backend.tokenizer
            pairs = [tokenizer.joined(tokenizer.encode(query), tokenizer.encode(text)) for text in texts]
            assert pairs[1][0][:9] == [101, 2129, 2116, 2111, 2444, 1999, 4068, 1029, 102]
            assert pairs[1][0][9:12] == [2047, 2259, 2003]
            assert (pairs[1][1], pairs[1][0][-1]) == (9, 102)
            expected = [reference.score(*pair) for pair in pairs]
            assert np.ptp(expected) > 0.5
            np.testing.assert_allclose(
                model.rerank(query, texts), expected, rtol=0, atol=5e-3 if to == "gguf" else 1e-3
            )
