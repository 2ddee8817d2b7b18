"""The grade of a conversion: a divergence that was measured as `edgellm eval` measures it, or none."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from arch_models import LLAMA, checkpoint
from hf_models import folder_of
from tiny_models import tiny

import edgellm
from edgellm.converters import ConvertParams, TargetParams, Verification, convert, verify
from edgellm.converters.evaluate import evaluate
from edgellm.converters.job import counter, paced
from edgellm.converters.yardstick import GRADES, PREDICTIONS, TEXT, grade_of
from edgellm.errors import InvalidModelFile, NotEnoughMemory

Q4 = ConvertParams(quant="q4_0")


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model as a Hugging Face folder, a GGUF file and an ONNX folder, without loss."""
    place = tmp_path_factory.mktemp("ways")
    folder = folder_of(place / "folder", dtype="F32")
    unverified = ConvertParams(verify=False)
    return {
        "huggingface": folder,
        "gguf": convert(folder, place / "model.gguf", unverified).path,
        "onnx": convert(folder, place / "onnx", ConvertParams(to="onnx", verify=False)).path,
    }


def graded(source: Path, target: Path, params: TargetParams) -> Verification:
    verified = convert(source, target, params).verified
    assert verified is not None
    return verified


@pytest.mark.parametrize("params", [Q4, ConvertParams(to="onnx", quant="int4")], ids=["gguf", "onnx"])
def test_the_grade_does_not_depend_on_the_source(params: TargetParams, ways: dict[str, Path], tmp_path: Path) -> None:
    found = {name: graded(source, tmp_path / name, params) for name, source in ways.items()}
    kl = {name: each.mean_kl for name, each in found.items()}
    assert kl["huggingface"] == kl["gguf"]  # the same engine ran the same numbers
    assert kl["onnx"] == pytest.approx(kl["gguf"], rel=1e-3)
    assert {each.grade for each in found.values()} == {grade_of(kl["gguf"] or 0)}
    assert len({each.predictions for each in found.values()}) == 1
    assert found["gguf"].predictions >= PREDICTIONS
    assert not list(tmp_path.glob("*/temporary*"))


def test_it_is_what_eval_measures(ways: dict[str, Path], tmp_path: Path) -> None:
    for name, source in ways.items():
        done = graded(source, tmp_path / name, Q4)
        with edgellm.load(tmp_path / name, ctx=128) as model, edgellm.load(ways["gguf"], ctx=128) as base:
            whole = evaluate(model, TEXT, base=base, n_ctx=128, chunks=9)
        assert done.predictions == whole.tokens == 9 * 63
        assert done.mean_kl == pytest.approx(whole.mean_kl, rel=1e-3)
        assert done.grade == whole.grade
        assert f"{done.grade}: " in done.summary
        assert f"mean KL {done.mean_kl:.3g} ± {done.mean_kl_error:.2g}" in done.summary


def test_equal_weight_errors_are_graded_by_predictions(tmp_path: Path) -> None:
    """The same q4_0 under an output that is a hundred times as loud."""
    found = []
    for loudness in (1, 100):
        made = tiny()
        shape, kind, values = made.tensors["output_norm.weight"]
        made.tensors["output_norm.weight"] = (shape, kind, (values * loudness).astype("float32"))
        source = made.write(tmp_path / f"{loudness}.gguf")
        found.append(graded(source, tmp_path / f"{loudness}-q4.gguf", Q4))
    quiet, loud = found
    assert quiet.rmse == pytest.approx(loud.rmse, rel=1e-6)
    assert (quiet.grade, loud.grade) == ("excellent", "poor")


def test_names_are_those_of_the_scale() -> None:
    assert [grade_of(most) for _, most in GRADES] == [name for name, _ in GRADES]
    assert grade_of(0) == "excellent"
    assert grade_of(0.222) == "poor"


def test_rows_that_pad_a_vocabulary_are_no_other_vocabulary(tmp_path: Path) -> None:
    """Formats give them different texts, or none."""
    config = {**LLAMA, "vocab_size": 300}
    tensors = {n: np.resize(v, (300, v.shape[1])) if v.shape[0] == 271 else v for n, v in checkpoint(LLAMA).items()}
    source = folder_of(tmp_path / "source", LLAMA, tensors=tensors)
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    padded = convert(source, tmp_path / "padded.gguf", ConvertParams(verify=False)).path
    for at in (source, padded):
        for params in (Q4, ConvertParams(to="onnx", quant="int4")):
            done = graded(at, tmp_path / f"{at.stem}-{params.to}", params)
            assert done.grade is not None, done.ungraded


def test_weights_rounded_on_the_way_to_a_folder_are_graded(ways: dict[str, Path], tmp_path: Path) -> None:
    source = tiny().write(tmp_path / "source.gguf")
    rounded = graded(source, tmp_path / "bf16", ConvertParams(to="safetensors", quant="bf16"))
    assert rounded.grade == "excellent"
    assert rounded.predictions >= PREDICTIONS
    exact = graded(ways["gguf"], tmp_path / "f32", ConvertParams(to="safetensors"))
    assert (exact.grade, exact.predictions, exact.ungraded) == ("lossless", 0, "")


def test_what_cannot_be_run_has_no_grade(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "bert", "bert")
    done = graded(source, tmp_path / "bert.gguf", Q4)
    assert done.grade is None
    assert done.to_dict()["grade"] is None
    assert done.ran.startswith("not run: it gives vectors")
    assert "error of the others" in done.summary
    assert not any(name in done.summary for name, _ in (*GRADES, ("poor", 0)))
    assert graded(source, tmp_path / "same.gguf", ConvertParams()).grade == "lossless"


class _Usage(NamedTuple):
    free: int


def _no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([10**12, 1000])  # of the disk, before the file is written and before the temporary one
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(next(sizes)))


def _no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PATIENCE", 0.0)


def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = edgellm.load

    def load(path: Path, **options: Any) -> Any:
        if path.name.startswith("temporary"):
            raise NotEnoughMemory("the model needs 9 GB, 1 GB is there")
        return real(path, **options)

    monkeypatch.setattr(edgellm, "load", load)


@pytest.mark.parametrize(
    ("lacking", "why"),
    [(_no_room, "needs .* bytes"), (_no_time, "would take about"), (_no_memory, "needs 9 GB")],
)
def test_a_source_that_cannot_run_costs_only_the_grade(
    lacking: Callable[[pytest.MonkeyPatch], None],
    why: str,
    ways: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking(monkeypatch)
    done = graded(ways["huggingface"], tmp_path / "model.gguf", Q4)
    assert done.grade is None
    assert done.ran.startswith("it runs")
    assert re.search(why, done.ungraded)
    assert done.summary.endswith(done.ungraded)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_result_that_computes_nothing_of_use_gets_no_name(tmp_path: Path) -> None:
    """Every weight is a number, and what they compute is none."""
    made = tiny()
    shape, kind, values = made.tensors["output_norm.weight"]
    made.tensors["output_norm.weight"] = (shape, kind, (values * 0 + 3e38).astype("float32"))
    source = made.write(tmp_path / "source.gguf")
    with pytest.raises(InvalidModelFile, match="infinite logits or NaN"):
        convert(source, tmp_path / "model.gguf", Q4)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_progress_is_told_twenty_times_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    told: list[tuple[str, int, int]] = []
    advance = counter("converting", 1000, paced(lambda *what: told.append(what)))
    for _ in range(1000):  # a second
        clock[0] += 0.001
        advance(1)
    assert 18 <= len(told) <= 22
    assert (told[0], told[-1]) == (("converting", 0, 1000), ("converting", 1000, 1000))
