"""Plans: what they promise is what the file becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, checkpoint
from hf_models import ALIGNED, UNALIGNED, folder_of
from tiny_models import tiny

import edgellm
from edgellm.backends.llamacpp import inspect_llamacpp
from edgellm.converters import ConvertParams, GGUFParams, SafetensorsParams, convert, plan
from edgellm.converters.folder.configured import size_label
from edgellm.converters.numbers import is_exact
from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import gguf_bytes, write_gguf


@pytest.mark.parametrize(
    "wrong",
    [
        {"quant": "q9_0"},
        {"to": "onnx", "quant": "q4_k_m"},
        {"fit": 0},
        {"fit": 1000, "quant": "q8_0"},
        {"imatrix": Path("a"), "calibrate": Path("b"), "quant": "q4_0"},
        {"imatrix": Path("a")},
        {"imatrix": Path("a"), "quant": "f16"},
        {"to": "safetensors", "quant": "q8_0"},
        {"to": "safetensors", "fit": 1000},
        {"to": "safetensors", "pre": "gpt-2"},
        {"quants": "q8_0"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=r"\w+"):
        ConvertParams(**wrong)


def test_defaults_of_other_targets_are_no_options() -> None:
    """So the command line can hand in all it has."""
    given: dict[str, Any] = {"exact": False, "kv": "f32", "max_context": None, "exporter": "own", "pre": None}
    assert ConvertParams(to="safetensors", fast_on_cpu=False, **given) == SafetensorsParams()
    assert ConvertParams(**given) == GGUFParams()
    with pytest.raises(InvalidParameter, match="exact"):
        ConvertParams(exact=0)  # type: ignore[typeddict-item]


def test_names_of_targets_are_read_as_usual() -> None:
    assert ConvertParams(quant="Q4_K").quant == "q4_k_m"


@pytest.mark.parametrize("quant", ["keep", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("config", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
def test_the_file_is_what_was_planned(config: dict[str, Any], quant: str, tmp_path: Path) -> None:
    """Names, types, bytes, the size to the byte, and what edgellm itself says of the finished file."""
    source = folder_of(tmp_path / "source", config)
    planned = plan(source, ConvertParams(quant=quant))
    done = convert(source, tmp_path / "model.gguf", ConvertParams(quant=quant, verify=False))
    assert planned == done.plan
    with GGUFFile.open(done.path) as file:
        made = [(i.name, i.shape, i.type.name, i.nbytes) for i in file.tensors.values()]
    assert made == [(one.name, one.shape, one.target, one.nbytes) for one in planned.tensors]
    assert done.path.stat().st_size == planned.file_bytes
    info = edgellm.inspect(done.path)
    assert planned.bits_per_weight == pytest.approx(info.bits_per_weight)
    assert planned.n_params == info.n_params
    assert planned.memory_ctx == 128
    assert planned.memory == edgellm.memory_needed(inspect_llamacpp(done.path), 128)
    assert json.loads(json.dumps(planned.to_dict()))["bits_per_weight"] == planned.bits_per_weight


@pytest.mark.parametrize("arch", ["gemma3", "mixtral", "phi3", "lfm2"])
def test_memory_of_a_gguf_file_is_what_edgellm_says(arch: str, tmp_path: Path) -> None:
    planned = plan(tiny(arch).write(tmp_path / "source.gguf"))
    done = convert(tmp_path / "source.gguf", tmp_path / "model.gguf", ConvertParams(verify=False))
    assert planned.memory_ctx is not None
    assert planned.memory == edgellm.memory_needed(inspect_llamacpp(done.path), planned.memory_ctx)


def test_exact_and_lossy() -> None:
    for stored, target in (("F32", "F32"), ("BF16", "F32"), ("F16", "F32"), ("BF16", "BF16"), ("Q4_K", "F32")):
        assert is_exact(stored, target)
    for stored, target in (("F32", "BF16"), ("F16", "BF16"), ("BF16", "F16"), ("F64", "F32"), ("F8_E4M3", "F32")):
        assert not is_exact(stored, target)


@pytest.mark.parametrize(("dtype", "exact"), [("BF16", True), ("F32", False)])
def test_a_norm_that_is_rounded_is_not_called_exact(dtype: str, exact: bool, tmp_path: Path) -> None:
    """Gemma's norms get 1 added: float32 holds the sum of most numbers of 16 bits, but not of those of 32."""
    rng = np.random.default_rng(0)
    tensors = checkpoint(CONFIGS["gemma2"])
    tensors |= {name: rng.random(v.shape, np.float32) for name, v in tensors.items() if name.endswith("norm.weight")}
    source = folder_of(tmp_path / "source", "gemma2", dtype=dtype, tensors=tensors)
    norms = [one for one in plan(source).tensors if one.name.endswith("norm.weight")]
    assert {one.exact for one in norms} == {exact}


def test_fallbacks_and_their_types(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", UNALIGNED)
    of = {one.name: one for one in plan(source, ConvertParams(quant="q4_k_m")).tensors}
    query = of["blk.0.attn_q.weight"]
    assert (query.source, query.target, query.fallback_from, query.exact) == ("BF16", "Q5_0", "Q4_K", False)
    assert of["blk.0.attn_norm.weight"].exact
    fast = {one.name: one.target for one in plan(source, ConvertParams(quant="q4_k_m", fast_on_cpu=True)).tensors}
    assert fast["blk.0.attn_q.weight"] == "Q8_0"


def test_computed_tensors_are_named_so(tmp_path: Path) -> None:
    of = {one.name: one for one in plan(folder_of(tmp_path / "source", "llama-llama3")).tensors}
    assert (of["rope_freqs.weight"].source, of["rope_freqs.weight"].target) == ("computed", "F32")


def test_general_metadata(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "models--some--Tiny-Phi" / "snapshots" / "abcdef")
    (source / "README.md").write_text(
        "---\nlanguage: en\nlicense: 'apache-2.0'\n---\nlicense: none\n", encoding="utf-8"
    )
    done = convert(source, tmp_path / "model.gguf", ConvertParams(verify=False))
    info = edgellm.inspect(done.path)
    assert (info.name, info.license) == ("Tiny-Phi", "apache-2.0")
    assert done.plan.source_fingerprint == plan(source).source_fingerprint


def test_size_labels() -> None:
    assert [size_label(n) for n in (134_515_008, 1_235_814_400, 8_030_261_248, 70_553_706_496, 93_000)] == [
        "135M", "1.2B", "8.0B", "71B", "93K",
    ]  # fmt: skip


def test_the_size_of_a_file_is_known_beforehand(tmp_path: Path) -> None:
    tensors = [("a", (3, 64), GGMLType.Q4_0), ("b", (5,), GGMLType.F32)]
    metadata = {"general.alignment": 128, "text": "grüße", "numbers": np.arange(5)}
    data = [(name, shape, kind, bytes(kind.nbytes(shape))) for name, shape, kind in tensors]
    write_gguf(tmp_path / "a.gguf", metadata, data)
    assert gguf_bytes(metadata, tensors) == (tmp_path / "a.gguf").stat().st_size
