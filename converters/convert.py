"""convert: a checkpoint becomes a GGUF file, an ONNX folder or a Hugging Face folder; plan: what it would become.

    open ─▶ plan ─▶ write into a folder beside the target ─▶ verify there ─▶ rename

The target gets its name only when it is complete, on disk and verified; whatever happens before leaves nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgellm
from edgellm.errors import CannotWrite, InvalidModelFile, InvalidParameter, Unsupported, UnsupportedArchitecture
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import gguf_bytes
from edgellm.formats.writing import writing

from . import gguf_target, kv_scales, onnx_target, safetensors_target, verify
from .calibrate import collect, read_text
from .checkpoint import GGUF, HuggingFace, open_checkpoint
from .description import Source
from .gguf_target import Draft
from .onnx import recipes as onnx_recipes
from .onnx.decoder import KVScales
from .onnx_source import ONNXFolder
from .optimum import Export
from .plan import (
    KEEP,
    LARGEST_CTX,
    ConvertParams,
    Plan,
    Planned,
    choose_types,
    facts_of,
    file_type,
    is_exact,
    memory_needed,
    work_bytes,
)
from .quant.imatrix import ImportanceMatrix
from .quant.recipes import Choice
from .safetensors_target import Folder
from .tensor import Tensor, blocked

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Conversion:
    """What was done. verified: None where it was not asked for. seconds: all of it."""

    path: Path
    plan: Plan
    verified: verify.Verification | None
    seconds: float


def plan(source: str | os.PathLike[str], params: ConvertParams | None = None) -> Plan:
    """What `convert` would make of a source (see `open_checkpoint`); of its weights only vectors are read.

    An importance matrix counts as one that has an entry for every tensor. Raises what `convert` raises beforehand.
    """
    with closing(open_checkpoint(Path(source))) as checkpoint:
        return _job(checkpoint, params or ConvertParams()).plan


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    params: ConvertParams | None = None,
    *,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a source (see `open_checkpoint`). An exception from `progress` stops it.

    Memory: some chunks of rows, whatever the model's size; loading the result to verify it takes what running it takes.
    Calibrating a Hugging Face folder takes a temporary q8_0 file beside the target: only a GGUF file can be run.

    Raises InvalidParameter (a target that exists, options that contradict each other), CannotWrite (no space, ...),
    Unsupported, UnsupportedArchitecture, ModelNotFound, InvalidModelFile (a damaged source, a result that does not say
    what the source says), BackendFailed.
    """
    started = time.monotonic()
    source, target, params = Path(source), Path(target), params or ConvertParams()
    report = progress or (lambda what, done, total: None)
    with closing(open_checkpoint(source)) as checkpoint:
        _check_target(checkpoint, target, params)
        job = _job(checkpoint, params)
        with _workspace(target) as space:
            _check_space(target, job.plan.file_bytes)
            written = space / target.name
            job.write(written, space, report)
            verified = job.verify(written, report) if params.verify else None
            with writing(target):
                os.replace(written, target)
    return Conversion(target, job.plan, verified, time.monotonic() - started)


def _job(checkpoint: Source, params: ConvertParams) -> _ToGGUF | _ToONNX | _ToFolder | Export:
    if params.to == "gguf":
        return _ToGGUF(checkpoint, params)
    if params.to == "onnx":
        return Export(checkpoint, params) if params.exporter == "optimum" else _ToONNX(checkpoint, params)
    if isinstance(checkpoint, HuggingFace):
        raise Unsupported(f"{checkpoint.path}: is safetensors already; only GGUF files are converted to them")
    if isinstance(checkpoint, ONNXFolder):
        raise Unsupported(f"{checkpoint.path}: safetensors are made of GGUF files; convert it to GGUF first")
    if params.pre is not None or params.strict:
        raise InvalidParameter("pre and strict have no meaning for safetensors; leave them out")
    return _ToFolder(checkpoint, params)


class _ToGGUF:
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
        record = {**_record(self._checkpoint), "target": asked, "recipe": recipe}
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
        advance = _counter("converting", self.plan.tensor_bytes, report)
        gguf_target.write(path, metadata, self._draft.tensors, self._choices, matrix, advance)

    def importance(self, text: Path, space: Path, report: Progress) -> ImportanceMatrix:
        """What the model's weights multiply while it reads the text."""
        if isinstance(self._checkpoint, GGUF):
            return collect(self._checkpoint.path, text, progress=lambda done, of: report("calibrating", done, of))
        runnable = _ToGGUF(self._checkpoint, ConvertParams(quant="q8_0", pre=self._params.pre))
        _check_space(space, runnable.plan.file_bytes + self.plan.file_bytes)
        path = space / "calibration.gguf"
        advance = _counter("writing a temporary q8_0 file to calibrate with", runnable.plan.tensor_bytes, report)
        gguf_target.write(
            path,
            runnable._metadata("q8_0", runnable._choices, None),
            self._draft.tensors,
            runnable._choices,
            None,
            advance,
        )
        matrix = collect(path, text, progress=lambda done, of: report("calibrating", done, of))
        path.unlink()
        return matrix

    def verify(self, path: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        with closing(GGUF(path)) as written:
            advance = _counter("verifying", self.plan.tensor_bytes, report)
            weighted = self._params.has_importance
            compared = verify.compare(self._draft.tensors, written.tensors, self.plan.tensors, advance, weighted)
            if os.path.getsize(path) != self.plan.file_bytes:
                raise InvalidModelFile(
                    f"{path.name}: has not the {self.plan.file_bytes} bytes planned; please report this"
                )
        runnable = None if isinstance(self._checkpoint, HuggingFace) else self._checkpoint.path
        return verify.run(path, runnable, compared)


class _ToONNX:
    """A conversion whose result is an ONNX folder."""

    def __init__(self, checkpoint: Source, params: ConvertParams) -> None:
        self._checkpoint, self._params = checkpoint, params
        try:
            self._draft = onnx_target.draft(checkpoint, params.max_context)
        except UnsupportedArchitecture as error:
            if isinstance(checkpoint, HuggingFace):
                raise UnsupportedArchitecture(f"{error}; optimum may export it: --exporter optimum") from None
            raise
        self._matrix = ImportanceMatrix.read(params.imatrix) if params.imatrix is not None else None
        self._kv_scales = kv_scales.unknown(self._draft.hyper) if params.kv == "int8" else None  # until it is measured
        recipe, self._choices = self._choose()
        fallen = [choice for choice in self._choices if choice.fallback_from]
        if params.strict and fallen:
            raise Unsupported(
                f"strict: {len(fallen)} tensors cannot be stored as {recipe} wants, as {fallen[0].name} with rows of "
                f"{fallen[0].shape[-1]} ({fallen[0].label} instead of {fallen[0].fallback_from})"
            )
        self._recipe = recipe
        self.plan = self._plan(self._make(None, self._kv_scales))

    def _choose(self) -> tuple[str, list[onnx_recipes.Choice]]:
        """What each tensor is stored as; under a size, less is asked for until all files together fit."""
        if self._params.fit is None:
            return self._params.quant, onnx_recipes.choose(self._params.quant, self._draft.tensors)
        budget = self._params.fit
        while True:
            recipe, self._choices = onnx_recipes.choose_under(budget, self._draft.tensors)
            self._recipe = recipe
            excess = self._make(None, self._kv_scales).nbytes - self._params.fit
            if excess <= 0:
                return recipe, self._choices
            budget -= max(excess // 8, budget // 256)

    def _make(self, matrix: ImportanceMatrix | None, scales: KVScales | None) -> onnx_target.Made:
        record = {**_record(self._checkpoint), "target": self._params.quant, "recipe": self._recipe}
        exact = self._params.exact
        return onnx_target.make(self._draft, self._choices, record, exact=exact, matrix=matrix, kv_scales=scales)

    def _plan(self, made: onnx_target.Made) -> Plan:
        draft, hyper = self._draft, self._draft.hyper
        ctx = min(LARGEST_CTX, draft.n_ctx)
        cache = ctx * self._kv_bytes(self._params.kv) if hyper.causal else 0
        memory = made.nbytes + cache + work_bytes(ctx, hyper.n_head, hyper.n_embd, hyper.n_ff)
        return Plan(
            source=str(self._checkpoint.path),
            source_format=self._checkpoint.format,
            source_fingerprint=self._checkpoint.fingerprint,
            architecture=draft.architecture.model_type,
            format="onnx",
            recipe=self._recipe,
            tensors=tuple(
                Planned(
                    choice.name,
                    choice.shape,
                    draft.tensors[choice.name].stored,
                    choice.label,
                    choice.nbytes,
                    onnx_target.is_lossless(draft.tensors[choice.name], choice),
                    choice.fallback_from,
                )
                for choice in self._choices
            ),
            left_out=draft.left_out,
            notes=(*draft.notes, *self._notes()),
            file_bytes=made.nbytes,
            memory=memory,
            memory_ctx=ctx,
        )

    def _kv_bytes(self, kind: str) -> int:
        """Of the keys and values of a token."""
        hyper = self._draft.hyper
        return {"f32": 8, "int8": 2}[kind] * hyper.n_layer * hyper.n_head_kv * hyper.head_dim

    def _notes(self) -> list[str]:
        notes = []
        if not self._params.exact and not all(isinstance(choice.storage, str) for choice in self._choices):
            notes.append("products round what they multiply to 8 bits, which is fast; --exact computes in float32")
        if self._params.kv == "int8":
            text = (
                self._params.calibrate.name if self._params.calibrate is not None else "a short text of edgellm's own"
            )
            size, whole = self._kv_bytes("int8"), self._kv_bytes("f32")
            notes.append(
                f"keys and values are kept in 8 bits, {size} bytes a token instead of {whole}, with scales from "
                f"running the model over {text}; transformers.js, which keeps floats, runs no such graph"
            )
        return notes

    def write(self, path: Path, space: Path, report: Progress) -> None:
        """Write the folder; space: a folder for what it takes on the way."""
        matrix = self._matrix
        if self._params.calibrate is not None and self._params.has_importance:
            calibrating = ConvertParams(quant="q4_0", calibrate=self._params.calibrate)
            matrix = _ToGGUF(self._checkpoint, calibrating).importance(self._params.calibrate, space, report)
        with writing(path):
            path.mkdir()
        onnx_target.write(path, self._make(matrix, None), _counter("converting", self.plan.tensor_bytes, report))
        if self._kv_scales is not None:
            onnx_target.write_graph(path, self._make(matrix, self._measured(path, report)))

    def _measured(self, path: Path, report: Progress) -> KVScales:
        """Scales for the keys and values that the folder, with a KV cache in float32, computes."""
        given = self._params.calibrate
        text = verify.TEXT if given is None else read_text(given).decode()
        return kv_scales.measure(
            path, text, self._draft.hyper, lambda done, of: report("measuring keys and values", done, of)
        )

    def verify(self, path: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        with closing(ONNXFolder(path)) as written:
            advance = _counter("verifying", self.plan.tensor_bytes, report)
            weighted = self._params.has_importance
            compared = verify.compare(self._draft.ordered, written.tensors, self.plan.tensors, advance, weighted)
        runnable = None if isinstance(self._checkpoint, HuggingFace) else self._checkpoint.path
        return verify.run(path, runnable, compared, kv_rounded=self._params.kv == "int8")


class _ToFolder:
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
            file_bytes=sum(tensor.nbytes for tensor in tensors) + sum(len(t.encode()) for t in made.texts.values()),
        )

    def write(self, path: Path, _space: Path, report: Progress) -> None:
        """Write the folder."""
        with writing(path):
            path.mkdir()
        record = {**_record(self._checkpoint), "target": self.plan.recipe}
        safetensors_target.write(path, self._made, record, _counter("converting", self.plan.tensor_bytes, report))

    def verify(self, path: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile."""
        safetensors_target.check_tokenizer(path, self._made)
        with closing(HuggingFace(path)) as written:
            advance = _counter("verifying", self.plan.tensor_bytes, report)
            compared = verify.compare(self._made.tensors, written.tensors, self.plan.tensors, advance)
        return verify.Verification(**asdict(compared), ran="its tokenizer says the same")


def _planned(draft: Draft, choice: Choice) -> Planned:
    tensor = draft.tensors[choice.name]
    source = "computed" if choice.name in draft.computed else tensor.stored
    kept = blocked(tensor) and tensor.type is choice.type and tensor.exact
    exact = (kept or is_exact(tensor.stored, choice.type.name)) and choice.name not in draft.rounded
    fallback = choice.fallback_from.name if choice.fallback_from else None
    return Planned(choice.name, choice.shape, source, choice.type.name, choice.nbytes, exact, fallback)


def _bytes(tensor: Tensor, made: Folder) -> int:
    return GGMLType[made.dtype].nbytes(tensor.shape)


def _record(checkpoint: Source) -> dict[str, Any]:
    """What a converted file says of its origin."""
    return {"version": edgellm.__version__, "source": checkpoint.format, "source_fingerprint": checkpoint.fingerprint}


def _counter(what: str, total: int, report: Progress) -> Callable[[int], None]:
    """A function that adds up and reports."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report(what, done, total)

    report(what, 0, total)
    return advance


def _check_target(checkpoint: Source, target: Path, params: ConvertParams) -> None:
    if not os.path.lexists(target):
        return
    sources = checkpoint.file.paths if isinstance(checkpoint, GGUF) else [checkpoint.path]
    if any(target.exists() and os.path.samefile(path, target) for path in sources):
        raise InvalidParameter(f"{target}: is the source itself; choose another name")
    if target.is_dir():
        raise InvalidParameter(f"{target}: a folder of this name exists; choose another name, or remove it")
    if not params.force:
        raise InvalidParameter(f"{target}: exists; choose another name, or replace it with force (--force)")
    if params.to != "gguf":
        raise InvalidParameter(f"{target}: is a file, and a folder would be written; choose another name")


def _check_space(target: Path, needed: int) -> None:
    with writing(target):
        free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise CannotWrite(f"{target}: needs {needed} bytes, the disk has {free}; free some space, or write elsewhere")


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A new folder beside the target, on the same disk; it goes with all that is left in it."""
    with writing(target):
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
