"""ToGGUF: a conversion whose result is a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import gguf_bytes
from edgellm.formats.tensor import blocked

from .. import verify
from ..calibrate import collect
from ..job import Progress, check_space, counter, record_of
from ..model import Contents, Model
from ..numbers import ADAPTED, is_exact
from ..params import KEEP, GGUFParams
from ..plan import Plan, Planned, memory_needed, of_source
from ..quant.imatrix import ImportanceMatrix
from ..quant.recipes import QUANTIZATION_VERSION, Choice
from . import write
from .source import GGUF
from .types import choose_types, facts_of, file_type


class ToGGUF:
    """A conversion whose result is a GGUF file."""

    def __init__(self, model: Model, params: GGUFParams) -> None:
        self._model, self._params = model, params
        self._contents = model.contents
        self._matrix = ImportanceMatrix.read(params.imatrix) if params.imatrix is not None else None
        if params.calibrate is not None:  # until it is collected: what the key-values will say takes as many bytes
            self._matrix = ImportanceMatrix({}, 0, 0, (params.calibrate.name,))
        facts = facts_of(self._contents.metadata, params.has_importance)
        recipe, self._choices = choose_types(self._contents.tensors, facts, params, self._header_bytes())
        metadata = self._metadata(recipe, self._choices, self._matrix)
        size = gguf_bytes(metadata, [(c.name, c.shape, c.type) for c in self._choices])
        memory, ctx = memory_needed(metadata, size)
        self.plan = Plan(
            **of_source(model),
            architecture=str(metadata["general.architecture"]),
            format="gguf",
            recipe=recipe,
            tensors=tuple(_planned(self._contents, choice) for choice in self._choices),
            left_out=self._contents.left_out,
            notes=self._contents.notes,
            file_bytes=size,
            memory=memory,
            memory_ctx=ctx,
        )

    def _header_bytes(self) -> int:
        """Bytes of the file without its tensors, at most."""
        kinds = [(name, tensor.shape) for name, tensor in self._contents.tensors.items()]
        listed = [Choice(name, shape, GGMLType.F32) for name, shape in kinds]
        with_everything = self._metadata("longest", listed, self._matrix)
        sizes = gguf_bytes(with_everything, [(c.name, c.shape, c.type) for c in listed])
        return sizes - sum(-(-c.nbytes // 32) * 32 for c in listed)

    def _metadata(self, recipe: str, choices: Sequence[Choice], matrix: ImportanceMatrix | None) -> Mapping[str, Any]:
        """The key-values, with those that depend on the choice of types."""
        kind = file_type(choices, recipe)
        if recipe == KEEP and self._contents.file_type is not None:
            kind = self._contents.file_type
        asked = self._params.quant if self._params.fit is None else f"fit {self._params.fit}"
        fallbacks = sum(choice.fallback_from is not None for choice in choices)
        pairs: dict[str, Any] = {"general.file_type": kind, "general.quantization_version": QUANTIZATION_VERSION}
        given = self._params.imatrix or self._params.calibrate
        if matrix is not None:
            pairs["quantize.imatrix.file"] = given.name if given else ""
            if matrix.datasets:
                pairs["quantize.imatrix.dataset"] = matrix.datasets[0]
            pairs["quantize.imatrix.entries_count"] = np.int32(len(matrix.entries))
            pairs["quantize.imatrix.chunks_count"] = np.int32(matrix.chunk_count)
        pairs |= record_of(self._model, target=asked, recipe=recipe, fallbacks=fallbacks)
        return {**self._contents.metadata, **pairs}

    def write(self, path: Path, space: Path, report: Progress) -> None:
        matrix = self._matrix
        if self._params.calibrate is not None:
            matrix = importance(self._model, self._params.calibrate, space, report, self.plan.file_bytes)
        metadata = self._metadata(self.plan.recipe, self._choices, matrix)
        advance = counter("converting", self.plan.tensor_bytes, report)
        write.write(path, metadata, self._contents.tensors, self._choices, matrix, advance)

    @contextmanager
    def temporary(self, purpose: str, space: Path, report: Progress) -> Iterator[Path]:
        """The file, for as long as the block takes."""
        path = space / f"temporary-{self.plan.recipe}.gguf"
        kind = "exact" if self.plan.recipe in (KEEP, "f32") else self.plan.recipe
        check_space(space, self.plan.file_bytes)
        advance = counter(f"writing a temporary {kind} file to {purpose}", self.plan.tensor_bytes, report)
        try:
            metadata = self._metadata(self.plan.recipe, self._choices, None)
            write.write(path, metadata, self._contents.tensors, self._choices, None, advance)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        with closing(GGUF(path)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            weighted = self._params.has_importance
            compared = verify.compare(self._contents.tensors, written.tensors, self.plan.tensors, advance, weighted)
            if os.path.getsize(path) != self.plan.file_bytes:
                raise InvalidModelFile(
                    f"{path.name}: has not the {self.plan.file_bytes} bytes planned; please report this"
                )
        source = runnable(self._model, space, report)
        return verify.run(nullcontext(path), source, compared, report)


def importance(model: Model, text: Path, space: Path, report: Progress, file_bytes: int) -> ImportanceMatrix:
    """What the model's weights multiply while it reads the text; file_bytes: room that must be left in `space`."""
    read = partial(report, "calibrating")
    if model.runs == "llamacpp":
        return collect(model.path, text, progress=read)
    smaller = ToGGUF(model, GGUFParams(quant="q8_0"))
    check_space(space, smaller.plan.file_bytes + file_bytes)
    with smaller.temporary("calibrate with", space, report) as path:
        return collect(path, text, progress=read)


@contextmanager
def runnable(model: Model, space: Path, report: Progress) -> Iterator[Path]:
    """What an engine can run in a source's place: itself, or a GGUF file with the same weights, which is written into
    `space` and goes with the block.

    Raises, when it is entered, Unsupported, InvalidModelFile, CannotWrite (no room for it).
    """
    if model.runs is not None:
        yield model.path
        return
    sums = any(tensor.stored.endswith(ADAPTED) for tensor in model.tensors.values())
    with ToGGUF(model, GGUFParams(quant="f32" if sums else KEEP)).temporary("measure with", space, report) as path:
        yield path


def _planned(contents: Contents, choice: Choice) -> Planned:
    tensor = contents.tensors[choice.name]
    source = "computed" if choice.name in contents.computed else tensor.stored
    kept = blocked(tensor) and tensor.type is choice.type and tensor.exact
    exact = (kept or is_exact(tensor.stored, choice.type.name)) and choice.name not in contents.rounded
    fallback = choice.fallback_from.name if choice.fallback_from else None
    return Planned(choice.name, choice.shape, source, choice.type.name, choice.nbytes, exact, fallback)
