"""Embeddings of GGUF files: MiniLM against two references, tiny models against llama.cpp's own pooling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, EMBEDDERS, checkpoint, convert
from bert_reference import Bert
from numpy.typing import NDArray
from tiny_models import tiny

import edgellm
from edgellm.backends import inspect, open_backend
from edgellm.backends.llamacpp.checks import check_header
from edgellm.backends.llamacpp.library import load_library, model_params
from edgellm.converters import ConvertParams
from edgellm.converters import convert as convert_folder
from edgellm.errors import ContextOverflow, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.model import Model
from edgellm.params import LoadParams

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A fast auburn animal leapt above a sleepy hound!",
    "Die Größe der Häuser beträgt 42 m², sagte er.",
    "def greet(name):\n    return f'hello {name}'",
    "",
    "In 1969 people walked on the Moon for the first time, and the whole world watched on television. " * 6,
]


@pytest.fixture(scope="module")
def reference(minilm_folder: Path) -> Bert:
    return Bert(minilm_folder)


@pytest.fixture(scope="module", params=["f32", "q8_0"])
def minilm(
    request: pytest.FixtureRequest, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("minilm-gguf") / f"minilm-{request.param}.gguf"
    convert_folder(minilm_folder, path, ConvertParams(quant=request.param))
    with GGUFFile.open(path) as file:
        assert check_header(file) == []  # an encoder of ours is not tried first, either
    with edgellm.load(path, backend="llamacpp") as model:
        yield model


def test_the_reference_is_what_transformers_computes(reference: Bert, minilm_folder: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    for tokens in ([101, 7592, 2088, 102], [101, *range(1000, 1060), 102]):
        with torch.no_grad():
            hidden = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(reference.hidden(tokens), hidden, rtol=0, atol=2e-5)


def test_minilm_gives_the_vectors_of_its_weights(minilm: Model, reference: Bert) -> None:
    """llama.cpp computes GELU by its tanh approximation, from a table of f16, hence not 1 to all digits."""
    tokens = [minilm.encode(text) for text in TEXTS]
    assert [(ids[0], ids[-1]) for ids in tokens] == [(101, 102)] * len(TEXTS)
    expected = np.array([reference.embed(ids) for ids in tokens])
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() >= (0.9999 if minilm.info.quantization == "F32" else 0.99)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[3]
    np.testing.assert_allclose(minilm.embed(TEXTS[0]), vectors[:1], atol=1e-3)


def test_minilm_says_what_it_is(minilm: Model) -> None:
    for info in (minilm.info, inspect(minilm.info.path)):
        assert (info.architecture, info.can_embed, info.kv_bytes_per_token, info.n_ctx_train) == ("bert", True, 0, 512)
    assert minilm.n_ctx == 512
    with pytest.raises(Unsupported, match=r"encoder.*model\.embed"):
        minilm.generate("hello")
    with pytest.raises(ContextOverflow, match="at most 512"):
        minilm.embed("word " * 600)
    with edgellm.load(minilm.info.path, backend="llamacpp", ctx=100_000) as model:  # it has no more positions
        assert model.n_ctx == 512


@pytest.mark.parametrize("name", EMBEDDERS)
@pytest.mark.parametrize(("kind", "key"), [("mean", "mean_tokens"), ("cls", "cls_token"), ("last", "lasttoken")])
def test_an_encoder_pools_as_its_file_says(tmp_path: Path, name: str, kind: str, key: str) -> None:
    config, texts = CONFIGS[name], [list(range(5, 5 + n)) for n in (1, 7, 128, 40)]
    path = convert(config, checkpoint(config), tmp_path / "a.gguf", {f"pooling_mode_{key}": True})
    backend = open_backend(path, LoadParams(backend="llamacpp", micro_batch=64))
    np.testing.assert_allclose(backend.embed(texts), pooled_by_llama(path, texts), rtol=0, atol=1e-4)
    backend.close()


@pytest.mark.parametrize("pooling", [1, 2, 3])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "lfm2"])
def test_a_long_text_is_read_in_several_passes(tmp_path: Path, kind: str, pooling: int) -> None:
    model = tiny(kind)
    model.metadata[f"{kind}.pooling_type"] = pooling
    path = model.write(tmp_path / f"{kind}.gguf")
    texts = [[3 + (i * 37 + n) % 250 for i in range(n)] for n in (3, 300, 64, 65, 10, 20, 40)]
    backend = open_backend(path, LoadParams(backend="llamacpp", micro_batch=64, kv_type="f32"))
    np.testing.assert_allclose(backend.embed(texts), pooled_by_llama(path, texts), rtol=0, atol=1e-3)
    backend.close()


def test_a_header_that_hides_an_encoder_changes_nothing(tmp_path: Path) -> None:
    config, texts = CONFIGS["bert"], [list(range(5, 125)), [7, 8]]
    path = convert(config, checkpoint(config), tmp_path / "a.gguf", {"pooling_mode_mean_tokens": True})
    hidden = rewritten(path, tmp_path / "b.gguf", "bert.attention.causal")
    vectors = []
    for each in (path, hidden):
        backend = open_backend(each, LoadParams(backend="llamacpp", micro_batch=64))
        assert not backend.info.can_generate
        with pytest.raises(Unsupported, match="encoder"):
            backend.new_sequence()
        vectors.append(backend.embed(texts))
        backend.close()
    assert np.array_equal(vectors[0], vectors[1])


def test_an_encoder_without_a_pooling_type_gives_no_vector(tmp_path: Path) -> None:
    config = CONFIGS["bert"]
    path = convert(config, checkpoint(config), tmp_path / "a.gguf")
    with edgellm.load(path, backend="llamacpp") as model:
        assert not model.info.can_embed
        with pytest.raises(Unsupported, match="no embeddings"):
            model.embed("x")
        with pytest.raises(Unsupported, match="pooling_type"):
            model._engine.call(lambda backend: backend.embed([[5]]))


def rewritten(path: Path, target: Path, without: str) -> Path:
    """The same file without one key."""
    with GGUFFile.open(path) as file:
        metadata = {key: value for key, value in file.metadata.items() if key != without}
        tensors = [(name, info.shape, info.type, file.data(name)) for name, info in file.tensors.items()]
        write_gguf(target, metadata, tensors)
    return target


def pooled_by_llama(path: Path, texts: list[list[int]]) -> NDArray[np.float32]:
    """llama.cpp's own pooling, one text and one pass at a time, scaled to length 1."""
    lib: Any = load_library()
    model = lib.llama_model_load_from_file(str(path).encode(), model_params())
    params = lib.llama_context_default_params()
    params.embeddings, params.n_ctx, params.n_batch, params.n_ubatch = True, 512, 512, 512
    params.type_k = params.type_v = lib.GGML_TYPE_F32
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    vectors = []
    for text in texts:
        context = lib.llama_init_from_model(model, params)
        ids = (lib.llama_token * len(text))(*text)
        assert lib.llama_decode(context, lib.llama_batch_get_one(ids, len(text))) == 0
        vector = np.array(lib.llama_get_embeddings_seq(context, 0)[: lib.llama_model_n_embd_out(model)], np.float32)
        vectors.append(vector / np.linalg.norm(vector))
        lib.llama_free(context)
    lib.llama_model_free(model)
    return np.array(vectors)
