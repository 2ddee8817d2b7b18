"""ToONNX: a conversion whose result is an ONNX folder."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path

from edgellm.budget import default_context, work_bytes
from edgellm.errors import Unsupported, UnsupportedArchitecture
from edgellm.formats.writing import writing

from .. import verify
from ..calibrate import read_text
from ..description import Source
from ..folder.source import HuggingFace
from ..gguf.target import ToGGUF, runnable
from ..job import Progress, counter, record_of, weight_bytes
from ..plan import ConvertParams, Plan, Planned
from ..quant.imatrix import ImportanceMatrix
from ..yardstick import TEXT
from . import kv_scales
from . import recipes as onnx_recipes
from . import write as onnx_target
from .graph.decoder import KVScales
from .source import ONNXFolder


class ToONNX:
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
        record = {**record_of(self._checkpoint), "target": self._params.quant, "recipe": self._recipe}
        exact = self._params.exact
        return onnx_target.make(self._draft, self._choices, record, exact=exact, matrix=matrix, kv_scales=scales)

    def _plan(self, made: onnx_target.Made) -> Plan:
        draft, hyper = self._draft, self._draft.hyper
        ctx = default_context(draft.n_ctx)
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
            source_bytes=weight_bytes(self._checkpoint),
            file_bytes=made.nbytes,
            memory=memory,
            memory_ctx=ctx,
        )

    def _kv_bytes(self, kind: str) -> int:
        """Of the keys and values of a token."""
        hyper = self._draft.hyper
        return {"f32": 8, "int8": 2}[kind] * hyper.n_layer * hyper.n_head_kv * hyper.head_dim

    @property
    def _rounds(self) -> bool:
        """Whether products round what they multiply."""
        return not self._params.exact and not all(isinstance(choice.storage, str) for choice in self._choices)

    def _notes(self) -> list[str]:
        notes = []
        if self._rounds:
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
            matrix = ToGGUF(self._checkpoint, calibrating).importance(self._params.calibrate, space, report)
        with writing(path):
            path.mkdir()
        onnx_target.write(path, self._make(matrix, None), counter("converting", self.plan.tensor_bytes, report))
        if self._kv_scales is not None:
            onnx_target.write_graph(path, self._make(matrix, self._measured(path, report)))

    def _measured(self, path: Path, report: Progress) -> KVScales:
        """Scales for the keys and values that the folder, with a KV cache in float32, computes."""
        given = self._params.calibrate
        text = TEXT if given is None else read_text(given).decode()
        return kv_scales.measure(
            path, text, self._draft.hyper, lambda done, of: report("measuring keys and values", done, of)
        )

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        with closing(ONNXFolder(path)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            weighted = self._params.has_importance
            compared = verify.compare(self._draft.ordered, written.tensors, self.plan.tensors, advance, weighted)
        rounded = self._rounds or self._params.kv == "int8"
        source = runnable(self._checkpoint, space, report)
        return verify.run(nullcontext(path), source, compared, report, rounded=rounded)
