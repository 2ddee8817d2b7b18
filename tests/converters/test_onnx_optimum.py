"""Exporting by way of optimum, with a package of that name that does what a test wants."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hf_models import folder_of
from tiny_models import tiny

from edgellm.converters import ConvertParams, convert, plan
from edgellm.converters.onnx.optimum import export
from edgellm.errors import (
    EdgeLLMError,
    InvalidParameter,
    ModelNotFound,
    NotEnoughMemory,
    Unsupported,
    UnsupportedArchitecture,
)

EXPORTED = Path(__file__).parents[1] / "fixtures" / "onnx" / "optimum"
COPIES = f"import shutil; shutil.copytree({str(EXPORTED)!r}, target)"
WRITES = """
    from pathlib import Path
    import json, os
    Path(target).mkdir()
    (Path(target) / "model.onnx").write_bytes(b"graph")
    (Path(target) / "seen.json").write_text(json.dumps([task, options, os.environ["HF_HUB_OFFLINE"], os.getpid()]))
"""
QUANTIZER = """
from pathlib import Path

class ORTQuantizer:
    @classmethod
    def from_pretrained(cls, folder, name):
        assert (Path(folder) / name).is_file()
        return cls()

    def quantize(self, config, save_dir, use_external_data_format):
        assert config == "avx2" and not use_external_data_format
        Path(save_dir).mkdir()
        (Path(save_dir) / "model_quantized.onnx").write_bytes(b"small")
"""
KINDS = """
class AutoQuantizationConfig:
    @staticmethod
    def avx2(is_static):
        assert not is_static
        return "avx2"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").touch()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions that are installed, by package."""
    versions = {"optimum-onnx": "0.1.0", "torch": "2.9.0", "transformers": "4.57.6"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def optimum(path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package where a child process finds it."""
    package = path / "fake" / "optimum"
    for name, text in {
        "__init__.py": "",
        "exporters/__init__.py": "",
        "exporters/onnx.py": f"def main_export(source, target, task, **options):\n    {body.strip()}\n",
        "onnxruntime/__init__.py": QUANTIZER,
        "onnxruntime/configuration.py": KINDS,
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(package.parent)


def test_what_optimum_is_asked_for(
    tmp_path: Path, folder: Path, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimum(tmp_path, WRITES, monkeypatch)
    export(folder, tmp_path / "out")
    task, options, offline, _ = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert (task, offline) == ("text-generation-with-past", "1")
    assert options["local_files_only"]
    assert not options["trust_remote_code"]
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "model", "out"]


def test_int8_replaces_the_graph(
    tmp_path: Path, folder: Path, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimum(tmp_path, WRITES, monkeypatch)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    export(folder, tmp_path / "out", quantize="int8")
    assert json.loads((tmp_path / "out" / "seen.json").read_text())[0] == "feature-extraction"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model_quantized.onnx", "seen.json", "1_Pooling"}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("raise ValueError('no such model here')", Unsupported, "optimum could not export.*ValueError: no such model"),
        ("raise MemoryError", NotEnoughMemory, "ran out of memory"),
        ("import os; os._exit(3)", Unsupported, "code 3"),
    ],
)
def test_failures_are_told_and_leave_nothing(
    tmp_path: Path,
    folder: Path,
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    kind: type[Exception],
    words: str,
) -> None:
    optimum(tmp_path, body, monkeypatch)
    with pytest.raises(kind, match=words):
        export(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "model"]


@pytest.mark.parametrize("package", ["optimum-onnx", "torch", "transformers"])
def test_a_missing_extra_says_how_to_get_it(
    tmp_path: Path, folder: Path, installed: dict[str, str], package: str
) -> None:
    del installed[package]
    with pytest.raises(Unsupported, match=rf"{package}, which is not installed: pip install 'edgellm\[optimum\]'"):
        export(folder, tmp_path / "out")


@pytest.mark.parametrize("version", ["4.58.0", "5.20.1", "4.58.0.dev0"])
def test_a_transformers_that_is_too_new_is_refused(
    tmp_path: Path, folder: Path, installed: dict[str, str], version: str
) -> None:
    installed["transformers"] = version
    with pytest.raises(Unsupported, match=rf"transformers below 4\.58, and {version} is installed"):
        export(folder, tmp_path / "out")


def test_what_cannot_be_meant_is_refused(tmp_path: Path, folder: Path, installed: dict[str, str]) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        export(tmp_path, tmp_path / "out")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Unsupported, match=r"neither model\.safetensors"):
        export(folder, tmp_path / "out")


OPTIMUM = ConvertParams(to="onnx", exporter="optimum")


def test_converting_by_way_of_optimum(
    tmp_path: Path, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote is run before it gets its name; the plan beforehand says that it guesses."""
    optimum(tmp_path, COPIES, monkeypatch)
    source = folder_of(tmp_path / "model")
    planned = plan(source, OPTIMUM)
    assert (planned.format, planned.recipe, planned.architecture) == ("onnx", "f32", "llama")
    assert {one.target for one in planned.tensors} == {"F32"}
    assert "guesses" in planned.notes[0]
    small = plan(source, ConvertParams(to="onnx", quant="int8", exporter="optimum"))
    assert {(len(one.shape), one.target, one.exact) for one in small.tensors} == {(2, "INT8", False), (1, "F32", True)}
    done = convert(source, tmp_path / "out", OPTIMUM)
    assert done.plan.file_bytes == sum(path.stat().st_size for path in done.path.iterdir())
    assert done.verified is not None
    assert done.verified.grade == "poor"  # what stands in for the export is another model's graph
    assert done.verified.summary.startswith("poor: no tensor was compared; mean KL ")
    with pytest.raises(InvalidParameter, match="a folder of this name"):
        convert(source, tmp_path / "out", OPTIMUM)


def test_what_optimum_wrote_and_nothing_runs(
    tmp_path: Path, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimum(tmp_path, WRITES, monkeypatch)  # no graph
    source = folder_of(tmp_path / "model")
    with pytest.raises(EdgeLLMError, match="out"):
        convert(source, tmp_path / "out", OPTIMUM)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "model"]
    unverified = ConvertParams(to="onnx", exporter="optimum", verify=False)
    assert convert(source, tmp_path / "out", unverified).verified is None


def test_an_unknown_family_is_referred_to_optimum(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    with pytest.raises(UnsupportedArchitecture, match="optimum may export it: --exporter optimum"):
        plan(source, ConvertParams(to="onnx"))
    assert plan(source, OPTIMUM).architecture == "opt"
    with pytest.raises(Unsupported, match="optimum exports Hugging Face folders"):
        plan(tiny().write(tmp_path / "tiny.gguf"), OPTIMUM)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"to": "gguf"}, "writes ONNX, not gguf"),
        ({"quant": "int4"}, "f32 and int8"),
        ({"fit": 10**6}, "fit: optimum has no such choice"),
        ({"exact": True, "max_context": 64, "strict": True}, "strict, exact, max_context: optimum"),
        ({"quant": "int8", "calibrate": Path("a")}, "calibrate: optimum"),
        ({"kv": "int8"}, "kv: optimum"),
        ({"exporter": "torch"}, "one of own, optimum"),
    ],
)
def test_options_that_optimum_does_not_have(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidParameter, match=complaint):
        ConvertParams(**{"to": "onnx", "exporter": "optimum", **options})
