"""`edgellm bench` on a tiny random model, with real workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_models import tiny

from edgellm.bench import measure
from edgellm.cli import bench as command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny("llama").write(tmp_path_factory.mktemp("bench") / "tiny.gguf"))


@pytest.fixture(scope="module")
def report(model: str) -> Any:
    done = CliRunner().invoke(command.bench, [model, "--quick", "--rounds", "2", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "round 2 of 2" in done.stderr
    return json.loads(done.stdout)


def test_json_has_every_figure_of_every_round(report: Any) -> None:
    assert report["rounds"] == 2
    assert [metric["title"] for metric in report["metrics"]] == [
        "prefill, 64 tokens",
        "prefill, 256 tokens",
        "decode, depth 0",
        "decode, depth 256",
        "first token of a new process",
        "peak memory of that process",
        "peak memory at 256 tokens",
    ]
    for metric in report["metrics"]:
        assert list(metric["of"]) == ["edgellm", "bare loop"]
        values = {name: of["values"] for name, of in metric["of"].items()}
        assert all(len(v) == 2 and min(v) > 0 for v in values.values())
        ours, theirs = values["edgellm"], values["bare loop"]
        pairs = zip(theirs, ours, strict=True) if metric["lower_is_better"] else zip(ours, theirs, strict=True)
        assert metric["of"]["bare loop"]["ratio"]["values"] == pytest.approx([a / b for a, b in pairs])


def test_both_contestants_do_the_same_work_and_settings(report: Any) -> None:
    assert report["same_answers"] == {"bare loop": True}
    ours, bare = report["contestants"]["edgellm"], report["contestants"]["bare loop"]
    assert (ours["threads"], ours["n_ctx"]) == (bare["threads"], bare["n_ctx"])


def test_the_share_of_the_bandwidth_is_weights_times_speed(report: Any) -> None:
    bandwidth = report["bandwidth"]
    speed = report["metrics"][2]["of"]["edgellm"]["median"]
    expected = bandwidth["weight_bytes_per_token"] * speed / bandwidth["median"]
    assert bandwidth["decode_share"]["edgellm"] == pytest.approx(expected)


def test_the_table_fits_80_columns(report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["edgellm", "bare loop", "llama_cpp", "llama_cpp tuned", "xllamacpp", "openvino-genai", "mistralrs"]
    of = {"median": 12345.6, "values": [1], "ratio": {"median": 123.4, "low": 10.12, "high": 1234.5, "values": [1, 2]}}
    metrics = [{**metric, "of": dict.fromkeys(names, of)} for metric in report["metrics"]]
    command._show({**report, "metrics": metrics})
    _title, table, _remarks = capsys.readouterr().out.split("\n\n")
    assert len(table.splitlines()) == 1 + len(names) * len(metrics)
    assert max(map(len, table.splitlines())) <= 80


def test_a_missing_ratio_and_a_noisy_contestant_are_told(report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    absent = {"openvino-genai": "cannot run this file"}
    idle, same = {"edgellm": 0.0, "bare loop": 0.5}, {"bare loop": False}
    command._show({**report, "absent": absent, "idle_cpu_share": idle, "same_answers": same})
    out = capsys.readouterr().out
    assert "openvino-genai: cannot run this file" in out
    assert "bare loop used 50% of a core while the others were measured" in out
    assert "bare loop gave other tokens than edgellm" in out


def test_ctrl_c_prints_the_complete_rounds(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_round(self: measure.Bench, count: int) -> Any:
        yield 0
        self.samples = self._round(1)
        self.bandwidths = [1e9]
        raise KeyboardInterrupt

    monkeypatch.setattr(measure.Bench, "rounds", one_round)
    done = CliRunner().invoke(command.bench, [model, "--quick", "--json"])
    assert done.exit_code == 1  # the group turns the KeyboardInterrupt into 130
    assert json.loads(done.stdout)["rounds"] == 1


def test_a_model_with_a_small_context_is_refused(tmp_path: Path) -> None:
    from edgellm.errors import Unsupported

    small = tiny("llama").write(tmp_path / "small.gguf")
    with pytest.raises(Unsupported, match="context of 512 tokens here, and this measurement needs 2113"):
        CliRunner().invoke(command.bench, [str(small)], catch_exceptions=False)
