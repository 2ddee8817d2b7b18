"""ToONNX: a conversion whose result is an ONNX folder, written in one streaming pass.

tensors of the model ── rows in Hugging Face's order ──▶ carriers, some MB at a time ──▶ onnx/model_q4.onnx_data
its numbers               ── graph, constructed ──▶ onnx/model_q4.onnx
"""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgellm import arguments
from edgellm.budget import default_context, work_bytes
from edgellm.errors import InvalidParameter, Unsupported, UnsupportedArchitecture
from edgellm.formats.onnx_graph import Graph
from edgellm.formats.onnx_writer import onnx_bytes, write_onnx
from edgellm.formats.tensor import Tensor
from edgellm.formats.writing import counted, write_files, writing

from .. import verify
from ..gguf.target import importance, runnable
from ..job import Progress, counter, record_of
from ..model import Model
from ..numbers import is_exact
from ..params import ONNXParams
from ..plan import Plan, Planned, of_source
from ..quant.imatrix import ImportanceMatrix
from ..yardstick import TEXT
from . import files, kv_scales
from . import recipes as onnx_recipes
from .graph.carrier import Carrier
from .graph.decoder import KVScales
from .graph.model import model_graph
from .graph.quantized import lossless
from .graph.weights import Weights
from .source import OURS, ONNXFolder


@dataclass(frozen=True)
class _Made:
    """A folder, ready to be written. texts: all small files; graph_file: the path of the graph in the folder."""

    graph: Graph
    metadata: dict[str, str]
    texts: dict[str, bytes]
    graph_file: str

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        parts = onnx_bytes(self.graph, self.metadata, name=Path(self.graph_file).name)
        return sum(parts) + sum(map(len, self.texts.values()))


class ToONNX:
    """A conversion whose result is an ONNX folder."""

    def __init__(self, model: Model, params: ONNXParams) -> None:
        self._model, self._params = model, params
        try:
            self._hyper = hyper = model.description.hyper
        except UnsupportedArchitecture as error:
            if model.transformers is not None:
                raise UnsupportedArchitecture(f"{error}; optimum may export it: --exporter optimum") from None
            raise
        self._n_ctx = params.max_context or hyper.n_ctx_train
        if params.max_context is not None and not hyper.causal:
            raise InvalidParameter("max_context: an encoder has a weight for each of its positions; leave it out")
        if self._n_ctx > hyper.n_ctx_train:
            raise InvalidParameter(f"max_context={self._n_ctx}: the model was made for {hyper.n_ctx_train} tokens")
        self._matrix = ImportanceMatrix.read(params.imatrix) if params.imatrix is not None else None
        self._kv_scales = kv_scales.unknown(self._hyper) if params.kv == "int8" else None  # until it is measured
        self._choose()
        fallen = [choice for choice in self._choices if choice.fallback_from]
        if params.strict and fallen:
            raise Unsupported(
                f"strict: {len(fallen)} tensors cannot be stored as {self._recipe} wants, as {fallen[0].name} with "
                f"rows of {fallen[0].shape[-1]} ({fallen[0].label} instead of {fallen[0].fallback_from})"
            )
        self.plan = self._plan(self._make(None, self._kv_scales))

    def _choose(self) -> None:
        """What each tensor is stored as; under a size, less is asked for until all files together fit."""
        if self._params.fit is None:
            self._recipe = self._params.quant
            self._choices = onnx_recipes.choose(self._recipe, self._model.unrotated)
            return
        budget = self._params.fit
        while True:
            self._recipe, self._choices = onnx_recipes.choose_under(budget, self._model.unrotated)
            excess = self._make(None, self._kv_scales).nbytes - self._params.fit
            if excess <= 0:
                return
            budget -= max(excess // 8, budget // 256)

    def _make(self, matrix: ImportanceMatrix | None, scales: KVScales | None) -> _Made:
        """The folder with these choices. scales: of a KV cache in 8 bits; the data file is the same without."""
        model, tensors = self._model, self._model.unrotated
        if matrix is not None and not any(name in matrix.entries for name in tensors):
            raise InvalidParameter(
                "the importance matrix has no entry for any tensor of this model; it is another model's"
            )
        weights = Weights(tensors, self._choices, 0 if self._params.exact else 4, matrix)
        graph = model_graph(self._hyper, weights, n_ctx=self._n_ctx, kv_scales=scales)
        unused = sorted(set(tensors) - set(weights.manifest))
        if unused:
            raise InvalidParameter(
                f"tensors that the graph has no place for: {', '.join(unused[:8])}; please report this"
            )
        record = record_of(model, target=self._params.quant, recipe=self._recipe)
        metadata = {**model.origin.record, **record}
        metadata[OURS] = json.dumps(weights.manifest)
        name = files.model_file(self._choices)
        external = onnx_bytes(graph, metadata)[1] > 0
        return _Made(graph, metadata, files.small_files(model, self._n_ctx, name, external=external), name)

    def _plan(self, made: _Made) -> Plan:
        found, hyper, tensors = self._model.description, self._hyper, self._model.unrotated
        ctx = default_context(self._n_ctx)
        cache = ctx * self._kv_bytes(self._params.kv) if hyper.causal else 0
        memory = made.nbytes + cache + work_bytes(ctx, hyper.n_head, hyper.n_embd, hyper.n_ff)
        return Plan(
            **of_source(self._model),
            architecture=found.architecture.model_type,
            format="onnx",
            recipe=self._recipe,
            tensors=tuple(
                Planned(
                    choice.name,
                    choice.shape,
                    tensors[choice.name].stored,
                    choice.label,
                    choice.nbytes,
                    _is_exact(tensors[choice.name], choice),
                    choice.fallback_from,
                )
                for choice in self._choices
            ),
            left_out=found.left_out,
            notes=(*found.notes, *self._notes()),
            file_bytes=made.nbytes,
            memory=memory,
            memory_ctx=ctx,
        )

    def _kv_bytes(self, kind: str) -> int:
        """Of the keys and values of a token."""
        hyper = self._hyper
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
        matrix = self._matrix
        if self._params.calibrate is not None and self._params.has_importance:
            matrix = importance(self._model, self._params.calibrate, space, report, self.plan.file_bytes)
        made = self._make(matrix, None)
        write_files(path, made.texts)
        file = path / made.graph_file
        with writing(file):
            file.parent.mkdir(exist_ok=True)
        advance = counter("converting", self.plan.tensor_bytes, report)
        initializers = tuple(replace(each, data=counted(each.data, advance)) for each in made.graph.initializers)
        write_onnx(file, replace(made.graph, initializers=initializers), metadata=made.metadata)
        if self._kv_scales is not None:  # the data file stays
            given = self._params.calibrate
            text = TEXT if given is None else arguments.utf8_file("the calibration text", given).decode()
            scales = kv_scales.measure(path, text, self._hyper, partial(report, "measuring keys and values"))
            made = self._make(matrix, scales)
            write_onnx(file, made.graph, metadata=made.metadata, keep_data=True)

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        with closing(ONNXFolder(path)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            weighted = self._params.has_importance
            compared = verify.compare(self._model.weights, written.tensors, self.plan.tensors, advance, weighted)
        rounded = self._rounds or self._params.kv == "int8"
        source = runnable(self._model, space, report)
        return verify.run(nullcontext(path), source, compared, report, rounded=rounded)


def _is_exact(tensor: Tensor, choice: onnx_recipes.Choice) -> bool:
    if isinstance(choice.storage, Carrier):
        return lossless(tensor, choice.storage)
    return is_exact(tensor.stored, choice.storage)
