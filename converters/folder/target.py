"""ToFolder: a conversion whose result is a Hugging Face folder."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.tensor import Tensor
from edgellm.formats.writing import writing

from .. import verify
from ..gguf.target import runnable
from ..job import Progress, counter, record_of
from ..model import Model
from ..params import SafetensorsParams
from ..plan import Plan, Planned
from . import write
from .source import HuggingFace
from .write import Folder


class ToFolder:
    """A conversion whose result is a Hugging Face folder."""

    def __init__(self, model: Model, params: SafetensorsParams) -> None:
        self._model = model
        self._made = made = write.folder_of(model, params.quant)
        tensors = tuple(
            Planned(name, tensor.shape, tensor.stored, made.dtype, _bytes(tensor, made), name in made.exact)
            for name, tensor in made.tensors.items()
        )
        self.plan = Plan(
            source=str(model.path),
            source_format=model.format,
            source_fingerprint=model.fingerprint,
            architecture=model.description.architecture.model_type,
            format="safetensors",
            recipe=made.dtype.lower(),
            tensors=tensors,
            left_out=model.description.left_out,
            notes=model.vocabulary.notes,
            source_bytes=model.weight_bytes,
            file_bytes=sum(tensor.nbytes for tensor in tensors) + sum(map(len, made.files.values())),
        )

    def write(self, path: Path, _space: Path, report: Progress) -> None:
        """Write the folder."""
        with writing(path):
            path.mkdir()
        record = {**record_of(self._model), "target": self.plan.recipe}
        write.write(path, self._made, record, counter("converting", self.plan.tensor_bytes, report))

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        write.check_tokenizer(path, self._model.vocabulary)
        with closing(HuggingFace(path, self._model.vocabulary.pre)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            compared = verify.compare(self._made.tensors, written.tensors, self.plan.tensors, advance)
            done = verify.Verification(**asdict(compared), ran="its tokenizer says the same")
            if done.lossless:
                return done
            result = runnable(written, space, report)
            return verify.run(result, runnable(self._model, space, report), compared, report)


def _bytes(tensor: Tensor, made: Folder) -> int:
    return GGMLType[made.dtype].nbytes(tensor.shape)
