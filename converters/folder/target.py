"""ToFolder: a conversion whose result is a Hugging Face folder."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.tensor import Tensor
from edgellm.formats.writing import writing

from .. import verify
from ..gguf.source import GGUF
from ..gguf.target import runnable
from ..job import Progress, counter, record_of, weight_bytes
from ..plan import ConvertParams, Plan, Planned
from . import write as safetensors_target
from .source import HuggingFace
from .write import Folder


class ToFolder:
    """A conversion whose result is a Hugging Face folder."""

    def __init__(self, checkpoint: GGUF, params: ConvertParams) -> None:
        self._checkpoint = checkpoint
        self._made = made = safetensors_target.from_gguf(checkpoint, params.quant)
        tensors = tuple(
            Planned(name, tensor.shape, tensor.stored, made.dtype, _bytes(tensor, made), name in made.exact)
            for name, tensor in made.tensors.items()
        )
        self.plan = Plan(
            source=str(checkpoint.path),
            source_format=checkpoint.format,
            source_fingerprint=checkpoint.fingerprint,
            architecture=made.architecture,
            format="safetensors",
            recipe=made.dtype.lower(),
            tensors=tensors,
            left_out=made.left_out,
            notes=made.notes,
            source_bytes=weight_bytes(checkpoint),
            file_bytes=sum(tensor.nbytes for tensor in tensors) + sum(len(t.encode()) for t in made.texts.values()),
        )

    def write(self, path: Path, _space: Path, report: Progress) -> None:
        """Write the folder."""
        with writing(path):
            path.mkdir()
        record = {**record_of(self._checkpoint), "target": self.plan.recipe}
        safetensors_target.write(path, self._made, record, counter("converting", self.plan.tensor_bytes, report))

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        safetensors_target.check_tokenizer(path, self._made)
        with closing(HuggingFace(path)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            compared = verify.compare(self._made.tensors, written.tensors, self.plan.tensors, advance)
            done = verify.Verification(**asdict(compared), ran="its tokenizer says the same")
            if done.lossless:
                return done
            result = runnable(written, space, report, self._made.vocabulary.pre)
            return verify.run(result, nullcontext(self._checkpoint.path), compared, report)


def _bytes(tensor: Tensor, made: Folder) -> int:
    return GGMLType[made.dtype].nbytes(tensor.shape)
