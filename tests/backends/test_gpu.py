"""What is asked of GPUs. None is needed: llama.cpp's own list of devices is read, and GPUs in it are pretended."""

from __future__ import annotations

import ctypes
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from tiny_models import tiny

import edgellm
from edgellm.backends import open_backend
from edgellm.backends.llamacpp import library, loading
from edgellm.backends.llamacpp.ggml import Device, Ggml
from edgellm.errors import Unsupported
from edgellm.params import LoadParams

GIB = 1 << 30
GPU = Device("Vulkan0", "A GPU", "gpu", 2 * GIB, 4 * GIB)
PROCESSOR = Device("CPU", "A CPU", "cpu", 64 * GIB, 64 * GIB)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp says that it has a GPU; what it is told to put there stays on the CPU."""
    monkeypatch.setattr(library.load_library(), "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(library, "devices", lambda: [PROCESSOR, GPU])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parameters that llama.cpp got, of models and contexts."""
    lib = library.load_library()
    seen: list[Any] = []

    def watch(name: str) -> None:
        real = getattr(lib, name)

        def spy(first: Any, params: Any) -> Any:
            seen.append(type(params).from_buffer_copy(params))
            return real(first, params)

        monkeypatch.setattr(lib, name, spy)

    watch("llama_model_load_from_file")
    watch("llama_init_from_model")
    return seen


def test_the_devices_of_this_machine() -> None:
    devices = Ggml(library.load_library()).devices()
    assert [each.name for each in devices if each.kind == "cpu"] == ["CPU"]
    assert all(each.description for each in devices)
    assert any(each.is_gpu for each in devices) == bool(llama_cpp.llama_supports_gpu_offload())


def test_a_library_that_hides_its_devices(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(Ggml, "_function", lambda _self, name: getattr(object(), name))
    with caplog.at_level(logging.WARNING):
        assert library.devices() == []
    assert "does not tell its devices" in caplog.text


@pytest.mark.parametrize("layers", [0, 2])
def test_no_layers_means_no_gpu_at_all(layers: int, pretended: None, asked: list[Any], tmp_path: Path) -> None:
    path = tiny("qwen3").write(tmp_path / "m.gguf")
    with closing(open_backend(path, LoadParams(backend="llamacpp", gpu_layers=layers, trust=True, ctx=64))):
        model, context = asked
    assert model.n_gpu_layers == layers
    assert (context.op_offload, context.offload_kqv) == (layers > 0,) * 2
    if layers:
        assert model.devices is None  # all that llama.cpp has
    else:
        assert ctypes.c_void_p.from_address(model.devices).value is None  # a list that ends at once


def test_vectors_of_texts_stay_off_it_too(pretended: None, asked: list[Any], tmp_path: Path) -> None:
    model = tiny("qwen3")
    model.metadata["qwen3.pooling_type"] = 3
    with edgellm.load(model.write(tmp_path / "m.gguf"), backend="llamacpp", gpu_layers=0, trust=True, ctx=64) as loaded:
        loaded.embed(["hello"])
    _model, *made = asked
    assert len(made) == 2
    assert not any(context.op_offload or context.offload_kqv for context in made)


def test_layers_that_fit_are_counted_on_gpus_alone(pretended: None, tmp_path: Path) -> None:
    path = tiny("llama").write(tmp_path / "m.gguf")
    info = edgellm.inspect(path)
    assert loading.gpu_layers(info, "auto", 64) == info.n_layer + 1
    assert loading.layers_that_fit(info, 64, info.file_bytes // 2) < info.n_layer + 1
    assert loading.gpu_layers(info, 0, 64) == 0


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library.load_library(), "llama_supports_gpu_offload", lambda: False)
    info = edgellm.inspect(tiny("llama").write(tmp_path / "m.gguf"))
    assert loading.gpu_layers(info, "auto", 64) == 0
    with pytest.raises(Unsupported, match="finds no GPU"):
        loading.gpu_layers(info, 5, 64)
