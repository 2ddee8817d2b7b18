"""The ONNX engine's execution providers: which is chosen, and why."""

from __future__ import annotations

import onnxruntime
import pytest

from edgellm.backends import engines
from edgellm.backends.onnx import library
from edgellm.errors import Unsupported


def test_why_a_provider_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self) -> None:
            self.providers: list[str] = []

        def get_available_providers(self) -> list[str]:
            return self.providers

    fake = Fake()
    monkeypatch.setattr(library, "load_library", lambda: fake)
    assert library.providers(0, "f32")[0] == [library.CPU]
    assert library.providers("auto", "f32")[0] == [library.CPU]
    with pytest.raises(Unsupported, match="onnxruntime-gpu"):
        library.providers(4, "f32")
    fake.providers = [library.CUDA, library.CPU]
    assert library.providers("auto", "f16")[0] == [library.CUDA, library.CPU]
    assert library.providers("auto", "f32")[0] == [library.CPU]
    assert library.providers(1, "f32")[0] == [library.CUDA, library.CPU]
    fake.providers = [library.COREML, library.CPU]
    assert library.providers("auto", "f16")[0] == [library.CPU]
    assert library.providers(1, "f16")[0] == [library.COREML, library.CPU]


def test_the_report_names_the_build() -> None:
    report = next(report for report in engines() if report["name"] == "ONNX Runtime")
    assert report["version"] == onnxruntime.__version__
    assert "CPUExecutionProvider" in report["providers"]
    assert report["kernels"] == library.kernel_names()
