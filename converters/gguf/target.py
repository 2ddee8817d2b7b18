"""ToGGUF: a conversion whose result is a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidModelFile, InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import gguf_bytes
from edgellm.formats.tensor import blocked

from .. import verify
from ..calibrate import collect
from ..description import Source
from ..folder.source import HuggingFace
from ..gguf.source import GGUF
from ..job import Progress, check_space, counter, record_of, weight_bytes
from ..plan import KEEP, ConvertParams, Plan, Planned, choose_types, facts_of, file_type, is_exact, memory_needed
from ..quant.imatrix import ImportanceMatrix
from ..quant.recipes import Choice
from . import write as gguf_target
from .write import Draft


class ToGGUF:
    """A conversion whose result is a GGUF file."""

    def __init__(self, checkpoint: Source, params: ConvertParams) -> None:
        self._checkpoint, self._params = checkpoint, params
        if not isinstance(checkpoint, GGUF):
            self._draft = gguf_target.from_folder(checkpoint, params.pre)
        elif params.pre is not None:
            raise InvalidParameter("pre has no meaning for a GGUF file, which names its pre-tokenizer; leave it out")
        else:
            self._draft = gguf_target.from_gguf(checkpoint)
        self._matrix = ImportanceMatrix.read(params.imatrix) if params.imatrix is not None else None
        if params.calibrate is not None:  # until it is collected: what the key-values will say takes as many bytes
            self._matrix = ImportanceMatrix({}, 0, 0, (params.calibrate.name,))
        facts = facts_of(self._draft.metadata, params.has_importance)
        recipe, self._choices = choose_types(self._draft.tensors, facts, params, self._header_bytes())
        self.plan = self._plan(recipe)

    def _header_bytes(self) -> int:
        """Bytes of the file without its tensors, at most."""
        kinds = [(name, tensor.shape) for name, tensor in self._draft.tensors.items()]
        listed = [Choice(name, shape, GGMLType.F32) for name, shape in kinds]
        with_everything = self._metadata("longest", listed, self._matrix)
        sizes = gguf_bytes(with_everything, [(c.name, c.shape, c.type) for c in listed])
        return sizes - sum(-(-c.nbytes // 32) * 32 for c in listed)

    def _metadata(self, recipe: str, choices: Sequence[Choice], matrix: ImportanceMatrix | None) -> Mapping[str, Any]:
        kind = file_type(choices, recipe)
        if recipe == KEEP and isinstance(self._checkpoint, GGUF):
            kind = self._checkpoint.file.get("general.file_type", int, kind)
        asked = self._params.quant if self._params.fit is None else f"fit {self._params.fit}"
        record = {**record_of(self._checkpoint), "target": asked, "recipe": recipe}
        record["fallbacks"] = sum(choice.fallback_from is not None for choice in choices)
        given = self._params.imatrix or self._params.calibrate
        more = gguf_target.type_metadata(kind, record, matrix, given.name if given else "")
        return {**self._draft.metadata, **more}

    def _plan(self, recipe: str) -> Plan:
        draft = self._draft
        metadata = self._metadata(recipe, self._choices, self._matrix)
        size = gguf_bytes(metadata, [(c.name, c.shape, c.type) for c in self._choices])
        memory, ctx = memory_needed(metadata, size)
        return Plan(
            source=str(self._checkpoint.path),
            source_format=self._checkpoint.format,
            source_fingerprint=self._checkpoint.fingerprint,
            architecture=str(metadata["general.architecture"]),
            format="gguf",
            recipe=recipe,
            tensors=tuple(_planned(draft, choice) for choice in self._choices),
            left_out=draft.left_out,
            notes=draft.notes,
            source_bytes=weight_bytes(self._checkpoint),
            file_bytes=size,
            memory=memory,
            memory_ctx=ctx,
        )

    def write(self, path: Path, space: Path, report: Progress) -> None:
        """Write the file; space: a folder for what it takes on the way."""
        matrix = self._matrix
        if self._params.calibrate is not None:
            matrix = self.importance(self._params.calibrate, space, report)
        metadata = self._metadata(self.plan.recipe, self._choices, matrix)
        advance = counter("converting", self.plan.tensor_bytes, report)
        gguf_target.write(path, metadata, self._draft.tensors, self._choices, matrix, advance)

    def importance(self, text: Path, space: Path, report: Progress) -> ImportanceMatrix:
        """What the model's weights multiply while it reads the text."""

        def read(done: int, of: int) -> None:
            report("calibrating", done, of)

        if isinstance(self._checkpoint, GGUF):
            return collect(self._checkpoint.path, text, progress=read)
        smaller = ToGGUF(self._checkpoint, ConvertParams(quant="q8_0", pre=self._params.pre))
        check_space(space, smaller.plan.file_bytes + self.plan.file_bytes)
        with smaller._temporary("calibrate with", space, report) as path:
            return collect(path, text, progress=read)

    @contextmanager
    def _temporary(self, purpose: str, space: Path, report: Progress) -> Iterator[Path]:
        """The file, for as long as the block takes."""
        path = space / f"temporary-{self.plan.recipe}.gguf"
        kind = "exact" if self.plan.recipe == KEEP else self.plan.recipe
        check_space(space, self.plan.file_bytes)
        advance = counter(f"writing a temporary {kind} file to {purpose}", self.plan.tensor_bytes, report)
        try:
            metadata = self._metadata(self.plan.recipe, self._choices, None)
            gguf_target.write(path, metadata, self._draft.tensors, self._choices, None, advance)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        with closing(GGUF(path)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            weighted = self._params.has_importance
            compared = verify.compare(self._draft.tensors, written.tensors, self.plan.tensors, advance, weighted)
            if os.path.getsize(path) != self.plan.file_bytes:
                raise InvalidModelFile(
                    f"{path.name}: has not the {self.plan.file_bytes} bytes planned; please report this"
                )
        source = runnable(self._checkpoint, space, report, self._params.pre)
        return verify.run(nullcontext(path), source, compared, report)


@contextmanager
def runnable(checkpoint: Source, space: Path, report: Progress, pre: str | None = None) -> Iterator[Path]:
    """What an engine can run in a source's place: itself, or of a Hugging Face folder a GGUF file with the same
    weights, which is written into `space` and goes with the block.

    Raises, when it is entered, Unsupported, InvalidModelFile, CannotWrite (no room for it).
    """
    if not isinstance(checkpoint, HuggingFace):
        yield checkpoint.path
        return
    with ToGGUF(checkpoint, ConvertParams(pre=pre))._temporary("measure with", space, report) as path:
        yield path


def _planned(draft: Draft, choice: Choice) -> Planned:
    tensor = draft.tensors[choice.name]
    source = "computed" if choice.name in draft.computed else tensor.stored
    kept = blocked(tensor) and tensor.type is choice.type and tensor.exact
    exact = (kept or is_exact(tensor.stored, choice.type.name)) and choice.name not in draft.rounded
    fallback = choice.fallback_from.name if choice.fallback_from else None
    return Planned(choice.name, choice.shape, source, choice.type.name, choice.nbytes, exact, fallback)
