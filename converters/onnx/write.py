"""A model as an ONNX folder, written in one streaming pass.

tensors of the model ── rows in Hugging Face's order ──▶ carriers, some MB at a time ──▶ onnx/model_q4.onnx_data
its numbers               ── graph, constructed ──▶ onnx/model_q4.onnx
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidParameter
from edgellm.formats.joined import Joined
from edgellm.formats.onnx_graph import Graph
from edgellm.formats.onnx_writer import onnx_bytes, write_onnx
from edgellm.formats.tensor import Tensor, n_rows
from edgellm.formats.writing import counted, write_files, writing

from ..model import Model
from ..quant.imatrix import ImportanceMatrix
from . import files
from .graph.carrier import Carrier
from .graph.decoder import KVScales
from .graph.floats import FloatMatrix
from .graph.matrix import Matrix
from .graph.model import model_graph
from .graph.quantized import QuantizedMatrix, lossless
from .recipes import Choice

Advance = Callable[[int], None]  # bytes that were written since the last call
MANIFEST = "edgellm.tensors"  # metadata: where each tensor is; see `Weights.manifest`
_EXPERT = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight")


class Weights:
    """The tensors of a model, each stored as was chosen. See `onnx.matrix.Weights`.

    manifest: where each one is, its rows one part after the other:
    {"blk.0.attn_q.weight": {"carrier": "INT4/32", "shape": [576, 576], "parts": [[NAME, 0, 576]]}};
    NAME is what the initializers' names begin with.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        choices: Sequence[Choice],
        level: Literal[0, 4],
        matrix: ImportanceMatrix | None,
    ) -> None:
        self._tensors, self._importance = tensors, matrix
        self._level: Literal[0, 4] = level
        self._choices = {choice.name: choice for choice in choices}
        self._made: dict[tuple[str, ...], Matrix] = {}
        self.manifest: dict[str, dict[str, Any]] = {}

    def __contains__(self, name: str) -> bool:
        return self._planned(name)[0] in self._tensors

    def stackable(self, *names: str) -> bool:
        """Whether they are all here, stored alike and of rows that are equally long."""
        if not all(name in self._tensors for name in names):
            return False
        kinds = {(self._choices[name].storage, self._choices[name].shape[-1]) for name in names}
        return len(kinds) == 1

    def matrix(self, *names: str) -> Matrix:
        """See `onnx.matrix.Weights`."""
        if names not in self._made:
            self._made[names] = self._matrix(names)
        return self._made[names]

    def vector(self, name: str) -> NDArray[np.float32]:
        """See `onnx.matrix.Weights`."""
        values: NDArray[np.float32] = self._tensors[name].rows(slice(0, 1))[0]
        self._note(name, name, 0, values.size)
        return values

    def _matrix(self, names: tuple[str, ...]) -> Matrix:
        base, start = _stacked(names), 0
        tensors: list[Tensor] = []
        for name in names:
            planned, expert = self._planned(name)
            whole = self._tensors[planned]
            if expert is not None:
                rows, columns = whole.shape[1:]
                whole = Joined([(whole, expert * rows, (expert + 1) * rows)], shape=(rows, columns))
            tensors.append(whole)
            self._note(planned, base, start, start := start + n_rows(tensors[-1]))
        choice = self._choices[self._planned(names[0])[0]]
        if isinstance(choice.storage, str):
            return FloatMatrix(base, tensors, choice.storage)
        known = self._known(names)
        return QuantizedMatrix(base, tensors, choice.storage, accuracy_level=self._level, importance=known)

    def _known(self, names: Sequence[str]) -> NDArray[np.float32] | None:
        """The importance of the columns: matrices that are one product multiply the same, so any of them may know."""
        if self._importance is None:
            return None
        for name in names:
            planned, expert = self._planned(name)
            found = self._importance.of(planned, self._choices[planned].shape)
            if found is not None:
                return found if expert is None else found[expert]
        return None

    def _planned(self, name: str) -> tuple[str, int | None]:
        """The tensor that holds it, and which of its experts that is."""
        match = _EXPERT.fullmatch(name)
        return (f"{match[1]}_exps.weight", int(match[2])) if match else (name, None)

    def _note(self, name: str, base: str, start: int, stop: int) -> None:
        """Write down where a tensor, or its next part, is."""
        choice = self._choices[name]
        entry = {"carrier": choice.label, "shape": list(choice.shape), "parts": []}
        parts: list[list[Any]] = self.manifest.setdefault(name, entry)["parts"]
        if [base, start, stop] not in parts:
            parts.append([base, start, stop])


def _stacked(names: Sequence[str]) -> str:
    """blk.0.attn_q.weight, blk.0.attn_k.weight: blk.0.attn_q+attn_k."""
    plain = [name.removesuffix(".weight") for name in names]
    return "+".join([plain[0], *(name.rpartition(".")[2] for name in plain[1:])])


@dataclass(frozen=True)
class Made:
    """A folder, ready to be written. texts: all small files; graph_file: the path of the graph in the folder."""

    graph: Graph
    metadata: dict[str, str]
    texts: dict[str, bytes]
    graph_file: str

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(onnx_bytes(self.graph, self.metadata, name=Path(self.graph_file).name)) + sum(
            map(len, self.texts.values())
        )


def make(
    model: Model,
    choices: Sequence[Choice],
    record: Mapping[str, Any],
    n_ctx: int,
    *,
    exact: bool,
    matrix: ImportanceMatrix | None = None,
    kv_scales: KVScales | None = None,
) -> Made:
    """The folder that a model becomes with these choices. n_ctx: tokens that the graph has room for. exact: activations
    stay float32 in products of 4 bits too.

    kv_scales: of a KV cache in 8 bits; the data file is the same with and without.
    """
    tensors = model.unrotated
    if matrix is not None and not any(name in matrix.entries for name in tensors):
        raise InvalidParameter("the importance matrix has no entry for any tensor of this model; it is another model's")
    weights = Weights(tensors, choices, 0 if exact else 4, matrix)
    graph = model_graph(model.description.hyper, weights, n_ctx=n_ctx, kv_scales=kv_scales)
    unused = sorted(set(tensors) - set(weights.manifest))
    if unused:
        raise InvalidParameter(f"tensors that the graph has no place for: {', '.join(unused[:8])}; please report this")
    metadata = model.origin.record | {f"edgellm.convert.{key}": str(value) for key, value in record.items()}
    metadata[MANIFEST] = json.dumps(weights.manifest)
    name = files.model_file(choices)
    external = onnx_bytes(graph, metadata)[1] > 0
    texts = files.small_files(model, n_ctx, name, external=external)
    return Made(graph, metadata, texts, name)


def write(folder: Path, made: Made, advance: Advance) -> None:
    """Write all files. Raises InvalidModelFile (weights not finite), CannotWrite."""
    write_files(folder, made.texts)
    path = folder / made.graph_file
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    initializers = tuple(replace(each, data=counted(each.data, advance)) for each in made.graph.initializers)
    write_onnx(path, replace(made.graph, initializers=initializers), metadata=made.metadata)


def write_graph(folder: Path, made: Made) -> None:
    """Replace the graph alone by one with the same initializers; the data file stays. Raises CannotWrite."""
    write_onnx(folder / made.graph_file, made.graph, metadata=made.metadata, keep_data=True)


def is_lossless(tensor: Tensor, choice: Choice) -> bool:
    """Whether every number stays what it is: a quantized one what ggml's dequantize gives."""
    if isinstance(choice.storage, Carrier):
        return lossless(tensor, choice.storage)
    return tensor.stored == choice.storage or (choice.storage == "F32" and tensor.stored != "F64")
