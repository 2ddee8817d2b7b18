"""Models whose files are links: the cache of the Hugging Face hub, git-annex, DVC, and links that people make."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_onnx
from arch_models import LLAMA
from click.testing import CliRunner
from hf_models import ALIGNED, folder_of
from link_layouts import LAYOUTS, data_alone, hub_cache
from numpy.typing import NDArray
from tiny_models import tiny

import edgellm
from edgellm.backends import open_backend
from edgellm.backends.onnx.backend import OnnxBackend
from edgellm.cli.show import show
from edgellm.converters import ConvertParams, convert
from edgellm.errors import ModelNotFound
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.params import LoadParams

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
Layout = Callable[[Path, Path], Path]
OPTIONS = {"cache": edgellm.CacheParams(memory=0, disk=0), "threads": 2}


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request: pytest.FixtureRequest) -> Layout:
    chosen: Layout = request.param
    return chosen


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX decoder with its weights in a file beside the graph, of a kind that none of our kernels computes."""
    folder = tiny_onnx.write_decoder(tmp_path_factory.mktemp("decoder"))
    graph = folder / "onnx" / "model.onnx"
    proto = onnx.load(graph)
    graph.unlink()
    onnx.save(proto, graph, save_as_external_data=True, location="model.onnx_data", size_threshold=256)
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX decoder of 4 bits: our kernels compute it, where the processor has them."""
    folder = tmp_path_factory.mktemp("quantized")
    source = folder_of(folder / "source", ALIGNED)
    return convert(source, folder / "graph", ConvertParams(to="onnx", quant="int4", verify=False)).path


def logits(path: Path) -> NDArray[np.float32]:
    with edgellm.load(path, **OPTIONS) as model:
        return np.concatenate(list(model.logits([1, 5, 9, 2])))


def split(folder: Path) -> None:
    """A tiny GGUF model in two parts."""
    model = tiny("llama")
    names = sorted(model.tensors)
    for number in range(2):
        parts = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(2),
            "split.tensors.count": np.int32(len(names)),
        }
        tensors = [(name, *model.tensors[name]) for name in names[number::2]]
        path = folder / f"m-{number + 1:05d}-of-00002.gguf"
        write_gguf(path, parts if number else {**model.metadata, **parts}, tensors)


@pytest.mark.parametrize("kind", ["decoder", "quantized"])
def test_an_onnx_folder(layout: Layout, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(kind)
    folder = layout(source, tmp_path)
    np.testing.assert_array_equal(logits(folder), logits(source))
    there = edgellm.inspect(folder)
    assert there.fingerprint == edgellm.inspect(source).fingerprint
    assert str(there.n_params) in CliRunner().invoke(show, [str(folder), "--json"], catch_exceptions=False).stdout
    graph = next((folder / "onnx").glob("*.onnx"))
    np.testing.assert_array_equal(logits(graph), logits(source))


def test_the_same_state_as_without_links(quantized: Path, tmp_path: Path) -> None:
    keys = []
    for folder in (quantized, data_alone(quantized, tmp_path)):
        backend = open_backend(folder, LoadParams(threads=2))
        assert isinstance(backend, OnnxBackend)
        keys.append(backend.state_key)
        backend.close()
    assert keys[0] == keys[1]


def test_a_checkpoint(layout: Layout, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", LLAMA, shards=2)
    folder = layout(source, tmp_path / "linked")
    plain, linked = (
        convert(path, tmp_path / f"{path.name}.gguf", ConvertParams(quant="f16", verify=False)).path
        for path in (source, folder)
    )
    with GGUFFile.open(plain) as one, GGUFFile.open(linked) as other:
        assert one.tensors.keys() == other.tensors.keys()
        assert all((one.data(name) == other.data(name)).all() for name in one.tensors)


def test_a_model_of_the_hub_is_called_as_its_repository(decoder: Path, tmp_path: Path) -> None:
    folder = hub_cache(decoder, tmp_path)
    assert edgellm.inspect(folder).name == "thing"


def test_a_split_gguf_file(layout: Layout, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    split(source)
    first = layout(source, tmp_path / "linked") / "m-00001-of-00002.gguf"
    assert edgellm.inspect(first).fingerprint == edgellm.inspect(source / first.name).fingerprint
    np.testing.assert_array_equal(logits(first), logits(source / first.name))


def test_what_was_not_fetched_is_named(decoder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"):
        folder = hub_cache(decoder, tmp_path / name.replace("/", "-"))
        (folder / name).resolve().unlink()
        with pytest.raises(ModelNotFound, match=f"{name}: a link to .*; fetch the file"):
            edgellm.load(folder, **OPTIONS)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take names of Unicode only")
@pytest.mark.parametrize("kind", ["decoder", "quantized", "inline"])
def test_a_folder_whose_name_is_not_unicode(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    inline = kind == "inline"
    source = tiny_onnx.write_decoder(tmp_path / "inline") if inline else request.getfixturevalue(kind)
    folder = tmp_path / os.fsdecode(b"gr\xfc\xdfe")
    shutil.copytree(source, folder)
    np.testing.assert_array_equal(logits(folder), logits(source))


def test_data_beside_a_graph_under_a_name_with_a_dot(decoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dotted"
    shutil.copytree(decoder, folder)
    graph = folder / "onnx" / "model.onnx"
    proto = onnx.load(graph, load_external_data=False)
    for each in proto.graph.initializer:
        for entry in each.external_data:
            if entry.key == "location":
                entry.value = f"./{entry.value}"
    graph.write_bytes(proto.SerializeToString())
    np.testing.assert_array_equal(logits(folder), logits(decoder))
