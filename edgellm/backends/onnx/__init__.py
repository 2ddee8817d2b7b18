"""ONNX models through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.backends.base import ModelInfo
from edgellm.formats import onnx_folder
from edgellm.formats.reading import reading
from edgellm.params import LoadParams

if TYPE_CHECKING:
    from edgellm.backends.onnx.backend import OnnxBackend


def open_onnx(path: Path, params: LoadParams, progress: Callable[[float], None] | None = None) -> OnnxBackend:
    """Open a folder with an ONNX model, or the .onnx file itself. ONNX Runtime tells nothing while it loads: `progress`
    is called with 0 and 1 alone; an exception it raises stops the load.

    Raises ModelNotFound, InvalidModelFile, ModelLoadError, UnsupportedArchitecture, NotEnoughMemory, Unsupported.
    """
    from edgellm.backends.onnx import loading
    from edgellm.backends.onnx.backend import OnnxBackend

    report = progress or (lambda share: None)
    report(0.0)
    with reading(path):
        plan = loading.plan(onnx_folder.find(path), params)
    backend = OnnxBackend(plan, loading.session(plan))
    try:
        report(1.0)
    except BaseException:
        backend.close()
        raise
    return backend


def inspect_onnx(path: Path) -> ModelInfo:
    """What the files of a model say, without loading it; all are checked: the graph's data lies in its folder, whole.

    Raises ModelNotFound, InvalidModelFile, UnsupportedArchitecture, Unsupported.
    """
    from edgellm.backends.onnx import loading
    from edgellm.formats.onnx import ONNXFile

    with reading(path):
        folder = onnx_folder.find(path)
        with ONNXFile.open(folder.model) as file:
            return loading.describe(file, folder)[0]
