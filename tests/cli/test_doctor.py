from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import edgellm
from edgellm import machine
from edgellm.cli.doctor import doctor, findings

GOOD: dict[str, Any] = {
    "machine": {
        "platform": "linux",
        "cpu": "A CPU",
        "features": ["avx", "avx2", "f16c", "fma"],
        "cores": {"usable": 2, "logical": 8, "allowed": 6, "physical": 3, "quota": 2.5},
        "memory": {"total": 16 << 30, "available": 8 << 30, "limit": None},
    },
    "engines": [
        {
            "name": "llama.cpp",
            "package": "llama-cpp-python",
            "version": "0.3.36",
            "library": "/lib/libllama.so",
            "features": {"CPU": {"AVX": "1", "AVX2": "1", "FMA": "1", "F16C": "1", "REPACK": "1"}},
            "gpu_offload": False,
            "devices": [{"name": "CPU", "description": "A CPU", "kind": "cpu", "free": 8 << 30, "total": 16 << 30}],
            "extra_buffers": {"use": True, "without_amx": True, "amx": "absent", "reason": "no AMX"},
            "rebuild": "pip install something",
        },
        {"name": "ONNX Runtime", "package": "onnxruntime", "version": None},
        {"name": "edgellm's own", "kernel_sets": ["avx2", "scalar"]},
    ],
    "state": {"folder": "/home/me/edgellm", "writable": True, "problem": "", "disk_free": 50 << 30},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value, found by a path such as `engines.0.version`, replaced."""
    report = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place: Any = report
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return report


def extra(amx: str, use: bool) -> dict[str, Any]:
    return {"use": use, "without_amx": True, "amx": amx, "reason": f"AMX is left out: it {amx}"}


def test_a_good_machine_has_no_findings() -> None:
    assert findings(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "level", "problem", "mend"),
    [
        (
            "engines.0.features",
            {"CPU": {"AVX": "1", "FMA": "1", "F16C": "1"}},
            "warning",
            "without AVX2",
            "pip install",
        ),
        ("engines.0.error", "libllama.so is missing; reinstall", "error", "does not run here", "reinstall"),
        (
            "engines.0.extra_buffers",
            extra("crashes", True),
            "note",
            "crashes",
            "this would build it without AMX: pip install something",
        ),
        ("engines.0.extra_buffers", extra("unproven", True), "note", "unproven", "pip install something"),
        ("engines.0.extra_buffers", extra("crashes", False), "warning", "crashes", "pip install something"),
        ("machine.memory.available", 500 << 20, "warning", "of memory are available", "Close other programs."),
        ("state.disk_free", 1 << 30, "warning", "are free", "edgellm rm"),
        ("state.writable", False, "error", "cannot be written", "EDGELLM_HOME"),
    ],
)
def test_what_is_wrong_and_the_mend(path: str, value: Any, level: str, problem: str, mend: str) -> None:
    (found,) = findings(changed(path, value))
    assert found["level"] == level
    assert problem in found["problem"]
    assert mend in f"{found['mend']} {found['command']}"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on a made-up machine."""

    def show(report: dict[str, Any], *arguments: str) -> Any:
        monkeypatch.setattr(machine, "describe", lambda: report["machine"])
        monkeypatch.setattr(edgellm, "engines", lambda: report["engines"], raising=False)
        return CliRunner().invoke(doctor, arguments)

    return show


def test_the_screen_says_why_it_is_that_many_cores(shown: Any) -> None:
    result = shown(GOOD)
    assert result.exit_code == 0
    why = (
        "2 usable: 8 hardware threads, 6 in this process's affinity mask, 3 physical cores behind them, a quota of 2.5"
    )
    assert why in result.output
    assert "Nothing is wrong." in result.output
    assert "\x1b" not in result.output


def test_an_error_is_the_exit_code(shown: Any) -> None:
    report = changed("engines", [{"name": "llama.cpp", "package": "p", "version": None, "error": "broken; mend it"}])
    result = shown(report)
    assert result.exit_code == 1
    assert "ERROR: llama.cpp does not run here. broken; mend it\n" in result.output


def test_a_state_folder_that_cannot_be_made(shown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "file" / "home"))
    result = shown(GOOD)
    assert result.exit_code == 1
    assert "the state folder cannot be written" in result.output


def test_kernels_of_the_own_engine_are_named(shown: Any) -> None:
    assert "kernels: avx2; it could use scalar\n" in shown(GOOD).output
    output = shown(changed("engines.2.kernel_sets", ["scalar"])).output
    assert "kernels: scalar\n" in output
    assert "NOTE: edgellm's own engine has no kernels" in output


def test_gpus_are_named(shown: Any) -> None:
    gpus = [
        {"name": "CUDA0", "description": "NVIDIA A10", "kind": "gpu", "free": 20 * 10**9, "total": 24 * 10**9},
        {"name": "Vulkan1", "description": "Intel Arc", "kind": "igpu", "free": 0, "total": 0},
    ]
    assert "GPU: none that this build can use" in shown(GOOD).output
    output = shown(changed("engines.0.devices", [*GOOD["engines"][0]["devices"], *gpus])).output
    assert "GPU: CUDA0, NVIDIA A10, 20.00 GB free of 24.00 GB\n" in output
    assert "GPU: Vulkan1, Intel Arc\n" in output
    assert "GPU: CPU" not in output


def test_json_of_this_machine() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    report = json.loads(result.stdout)
    assert report["machine"] == {**machine.describe(), "memory": report["machine"]["memory"]}
    assert [engine["name"] for engine in report["engines"]] == ["llama.cpp", "ONNX Runtime", "edgellm's own"]
    assert report["engines"][2]["kernel_sets"][-1] == "scalar"
    assert report["state"]["writable"] is True
    assert report["engines"][0]["features"]["CPU"]
    [processor] = [each for each in report["engines"][0]["devices"] if each["kind"] == "cpu"]
    assert processor["name"] == "CPU"
    assert processor["total"] >= processor["free"] > 0
    assert result.exit_code == 0
