"""Export: a Hugging Face folder as ONNX by way of optimum, for families that edgellm does not describe itself.

optimum runs the model in PyTorch and records the graph, so it takes the memory of the whole model and some minutes, and
it pins old versions of transformers: the extra `edgellm[optimum]`. It works in a child process.
https://huggingface.co/docs/optimum-onnx
"""

from __future__ import annotations

import importlib
import math
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from edgellm.child import Child, Parent
from edgellm.errors import BackendFailed, ModelNotFound, NotEnoughMemory, Unsupported
from edgellm.formats.strict_json import read_object
from edgellm.formats.tensor import Tensor
from edgellm.formats.writing import write_files, writing

from .. import verify
from ..folder.source import MAX_CONFIG
from ..gguf.target import runnable
from ..job import Progress
from ..model import Model
from ..numbers import WIDTH
from ..params import OptimumParams
from ..plan import Plan, Planned, of_source

INSTALL = "pip install 'edgellm[optimum]'"
NEEDS = (("optimum-onnx", None), ("torch", None), ("transformers", (4, 58)))  # and below which version
_SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_LARGE = 1 << 30  # bytes: of a graph beyond them the weights go into a file of their own; a protobuf holds two of these
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Export:
    """A conversion that optimum does; what it makes of each tensor is not known before."""

    def __init__(self, model: Model, params: OptimumParams) -> None:
        if model.transformers is None:
            raise Unsupported(f"{model.path}: optimum exports Hugging Face folders; leave out the exporter for others")
        self._model, self._folder = model, model.transformers
        self._quantize: Literal["int8"] | None = "int8" if params.quant == "int8" else None
        kind = model.config.get("model_type")
        tensors = tuple(self._planned(name, tensor) for name, tensor in model.tensors.items())
        self.plan = Plan(
            **of_source(model),
            architecture=kind if isinstance(kind, str) else "unknown",
            format="onnx",
            recipe=self._quantize or "f32",
            tensors=tensors,
            left_out=(),
            notes=("optimum decides what each tensor becomes: types, bytes and the size are guesses beforehand",),
            file_bytes=sum(tensor.nbytes for tensor in tensors),
        )

    def _planned(self, name: str, tensor: Tensor) -> Planned:
        small = self._quantize is not None and len(tensor.shape) > 1
        nbytes = math.prod(tensor.shape) * (1 if small else 4)
        exact = not small and tensor.stored in WIDTH and tensor.stored != "F64"
        return Planned(name, tuple(tensor.shape), tensor.stored, "INT8" if small else "F32", nbytes, exact)

    def write(self, path: Path, _space: Path, report: Progress) -> None:
        """Write the folder; the plan has its size then. Raises what `export` raises."""
        report("exporting with optimum", 0, 1)
        export(self._folder, path, quantize=self._quantize)
        report("exporting with optimum", 1, 1)
        write_files(path, self._model.origin.files)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        self.plan = replace(self.plan, file_bytes=size)

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        """Whether it runs, and how far from the source where that is known to run too: the weights of a recorded graph
        have names and orders of their own."""
        nothing = verify.Compared(0, 0, 0.0, 0.0, "")
        return verify.run(nullcontext(path), runnable(self._model, space, report), nothing, report)


def export(folder: Path, target: Path, quantize: Literal["int8"] | None = None) -> None:
    """Write the folder `target`: model.onnx, or model_quantized.onnx with weights of 8 bits, and the other files.

    Only safetensors are read, and no code that comes with the model is run. The graph is what the class in config.json
    is for: it generates text with a cache, or else gives features (`last_hidden_state`).

    Raises ModelNotFound, Unsupported (the extra is missing or too new, or optimum cannot export this model: in its own
    words), NotEnoughMemory (the child was killed), CannotWrite.
    """
    job = {"source": str(folder.resolve()), "target": str(target), "task": _task(folder), "quantize": quantize}
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise Unsupported(f"{folder}: neither {' nor '.join(_WEIGHTS)}; weights in other formats are not opened")
    _check_installed()
    _in_child(folder, job)
    with writing(target):
        for name in _SENTENCES:
            if (folder / name).is_file() and not (target / name).exists():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, target / name)


def _task(folder: Path) -> str:
    config = read_object(folder / "config.json", MAX_CONFIG)
    if config is None:
        raise ModelNotFound(f"{folder}: no config.json; give the folder of a Hugging Face checkpoint")
    classes = config.get("architectures")
    named = str(classes[0]) if isinstance(classes, list) and classes else ""
    return "text-generation-with-past" if named.endswith(("ForCausalLM", "LMHeadModel")) else "feature-extraction"


def _check_installed() -> None:
    """Raises Unsupported."""
    for package, limit in NEEDS:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise Unsupported(f"exporting with optimum needs {package}, which is not installed: {INSTALL}") from None
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if limit is not None and numbers >= limit:
            newest = ".".join(map(str, limit))
            raise Unsupported(
                f"exporting with optimum needs {package} below {newest}, and {version} is installed; use an "
                f"environment of its own: python -m venv optimum, and in it {INSTALL}"
            )


def _in_child(folder: Path, job: dict[str, Any]) -> None:
    """Run optimum; what it prints is kept for the error. Raises Unsupported, NotEnoughMemory."""
    starved = f"{folder}: optimum ran out of memory; it takes about three times the size of the weights"
    with Child(f"{__spec__.name}:run_child", job, environment=_QUIET) as child:
        try:
            answer = child.receive()
        except NotEnoughMemory:
            raise NotEnoughMemory(starved) from None
        except BackendFailed as error:
            if "DefaultCPUAllocator" in str(error):
                raise NotEnoughMemory(starved) from None
            raise Unsupported(f"{folder}: optimum could not export this model: {str(error)[:500]}") from error
        if answer is None:
            if child.end.killed:
                raise NotEnoughMemory(starved)
            raise Unsupported(f"{folder}: optimum could not export this model: its process {child.end}")


def run_child(parent: Parent, source: str, target: str, task: str, quantize: str | None) -> None:
    """What happens in the child process."""
    importlib.import_module("optimum.exporters.onnx").main_export(
        source,
        Path(target),
        task=task,
        library_name="transformers",
        local_files_only=True,
        trust_remote_code=False,
        do_validation=False,
    )
    if quantize:
        _quantize(Path(target))
    parent.say(done=True)


def _quantize(folder: Path) -> None:
    """Replace the graph with one whose matrices have 8 bits, a scale per column; activations are rounded on the fly."""
    kinds = importlib.import_module("optimum.onnxruntime.configuration").AutoQuantizationConfig
    quantizer = importlib.import_module("optimum.onnxruntime").ORTQuantizer.from_pretrained(folder, "model.onnx")
    graphs = [path for path in folder.iterdir() if path.name.startswith("model.onnx")]
    large = sum(path.stat().st_size for path in graphs) > _LARGE
    made = folder / "quantized"
    quantizer.quantize(kinds.avx2(is_static=False), save_dir=made, use_external_data_format=large)
    for path in graphs:
        path.unlink()
    for path in made.iterdir():
        if path.name.startswith("model_quantized.onnx"):
            os.replace(path, folder / path.name)
    shutil.rmtree(made)
