"""A checkpoint as an ONNX folder: what it will hold (Draft), and writing it in one streaming pass.

tensors of the checkpoint ── rows in Hugging Face's order ──▶ carriers, some MB at a time ──▶ onnx/model_q4.onnx_data
its numbers               ── graph, constructed ──▶ onnx/model_q4.onnx
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Architecture, Hyper, Relation, to_gguf
from edgellm.errors import InvalidParameter
from edgellm.formats.onnx_graph import Graph, Initializer
from edgellm.formats.onnx_writer import onnx_bytes, write_onnx
from edgellm.formats.tensor import Tensor, blocked, n_rows
from edgellm.formats.writing import whole_file, writing

from ..description import Source, describe
from ..origin import origin_of
from ..plan import LeftOut
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
_ROTATED = re.compile(r"blk\.\d+\.attn_[qk]\.(weight|bias)$")


class Unrotated:
    """A tensor whose rows go back to where Hugging Face has them: halves of a head, not pairs."""

    def __init__(self, tensor: Tensor, order: NDArray[np.int64]) -> None:
        self.shape, self.stored = tensor.shape, tensor.stored
        self.type, self.exact = (tensor.type, tensor.exact) if blocked(tensor) else (None, False)
        self._tensor, self._order = tensor, order

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """See Blocked."""
        assert blocked(self._tensor)  # it has a type
        return self._tensor.raw(self._order[which])

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor; a vector's elements are its rows."""
        if len(self.shape) == 1:
            return np.ascontiguousarray(self._tensor.rows(slice(0, 1))[:, self._order])[which]
        return self._tensor.rows(self._order[which])


@dataclass(frozen=True)
class Draft:
    """What an ONNX folder will hold, before types are chosen. tensors: under GGUF names, with the rows of q and k as
    Hugging Face orders them; ordered: the same as GGUF orders them; texts: the small files that name no graph; record:
    whose model it is, for the graph's metadata; n_ctx: tokens that the graph has room for."""

    architecture: Architecture
    hyper: Hyper
    tensors: dict[str, Tensor]
    ordered: dict[str, Tensor]
    texts: dict[str, bytes]
    record: dict[str, str]
    n_ctx: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def draft(checkpoint: Source, max_context: int | None) -> Draft:
    """What a checkpoint becomes. max_context: tokens to make room for; None: as many as the model was trained for.

    Raises UnsupportedArchitecture, Unsupported, InvalidModelFile, InvalidParameter.
    """
    found = describe(checkpoint)
    hyper = found.hyper
    tensors: dict[str, Tensor] = {}
    ordered: dict[str, Tensor] = {}
    for relation in found.relations:
        if checkpoint.names == "gguf":
            made: dict[str, Tensor] = {part.name: checkpoint.tensors[part.name] for part in relation.gguf}
        else:
            made = {part.name: tensor for part, tensor in to_gguf(relation, checkpoint.tensors)}
        ordered |= made
        tensors |= _unrotated(relation, checkpoint, made)
    if max_context is not None and not hyper.causal:
        raise InvalidParameter("max_context: an encoder has a weight for each of its positions; leave it out")
    if max_context is not None and max_context > hyper.n_ctx_train:
        raise InvalidParameter(f"max_context={max_context}: the model was made for {hyper.n_ctx_train} tokens")
    n_ctx = max_context or hyper.n_ctx_train
    origin = origin_of(checkpoint)
    texts = origin.files | files.texts_of(checkpoint, found.architecture, hyper, origin.config)
    return Draft(found.architecture, hyper, tensors, ordered, texts, origin.record, n_ctx, found.left_out, found.notes)


def _unrotated(relation: Relation, checkpoint: Source, made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a relation with the rows of q and k where Hugging Face has them."""
    if relation.inverse is None or not all(_ROTATED.match(name) for name in made):
        return made
    if checkpoint.names == "huggingface":
        plain = replace(relation, order=None)
        return {part.name: tensor for part, tensor in to_gguf(plain, checkpoint.tensors)}
    return {name: Unrotated(checkpoint.tensors[name], relation.inverse) for name in made}


class Expert:
    """One of the matrices of a tensor of three dimensions."""

    def __init__(self, tensor: Tensor, number: int) -> None:
        self.shape, self.stored = tensor.shape[1:], tensor.stored
        self.type, self.exact = (tensor.type, tensor.exact) if blocked(tensor) else (None, False)
        self._tensor, self._first = tensor, number * self.shape[0]

    def _mine(self, which: slice | NDArray[np.int64]) -> slice | NDArray[np.int64]:
        if not isinstance(which, slice):
            return which + self._first
        start, stop, _ = which.indices(self.shape[0])
        return slice(start + self._first, stop + self._first)

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """See Blocked."""
        assert blocked(self._tensor)  # it has a type
        return self._tensor.raw(self._mine(which))

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor."""
        return self._tensor.rows(self._mine(which))


class Weights:
    """The tensors of a draft, each stored as was chosen. See `onnx.matrix.Weights`.

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
            tensors.append(whole if expert is None else Expert(whole, expert))
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
    draft: Draft,
    choices: Sequence[Choice],
    record: Mapping[str, Any],
    *,
    exact: bool,
    matrix: ImportanceMatrix | None = None,
    kv_scales: KVScales | None = None,
) -> Made:
    """The folder that a draft becomes with these choices. exact: activations stay float32 in products of 4 bits too.

    kv_scales: of a KV cache in 8 bits; the data file is the same with and without.
    """
    if matrix is not None and not any(name in matrix.entries for name in draft.tensors):
        raise InvalidParameter("the importance matrix has no entry for any tensor of this model; it is another model's")
    weights = Weights(draft.tensors, choices, 0 if exact else 4, matrix)
    graph = model_graph(draft.hyper, weights, n_ctx=draft.n_ctx, kv_scales=kv_scales)
    unused = sorted(set(draft.tensors) - set(weights.manifest))
    if unused:
        raise InvalidParameter(f"tensors that the graph has no place for: {', '.join(unused[:8])}; please report this")
    metadata = draft.record | {f"edgellm.convert.{key}": str(value) for key, value in record.items()}
    metadata[MANIFEST] = json.dumps(weights.manifest)
    name = files.model_file(choices)
    external = onnx_bytes(graph, metadata)[1] > 0
    texts = files.finished(draft.texts, draft.architecture, draft.hyper, draft.n_ctx, name, external=external)
    return Made(graph, metadata, texts, name)


def write(folder: Path, made: Made, advance: Advance) -> None:
    """Write all files into a folder that is there. Raises InvalidModelFile (weights not finite), CannotWrite."""
    for name, text in made.texts.items():
        path = folder / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            file.write(text)
    path = folder / made.graph_file
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    counted = tuple(_counted(initializer, advance) for initializer in made.graph.initializers)
    write_onnx(path, replace(made.graph, initializers=counted), metadata=made.metadata)


def write_graph(folder: Path, made: Made) -> None:
    """Replace the graph alone by one with the same initializers; the data file stays. Raises CannotWrite."""
    write_onnx(folder / made.graph_file, made.graph, metadata=made.metadata, keep_data=True)


def _counted(initializer: Initializer, advance: Advance) -> Initializer:
    def data() -> Iterator[NDArray[np.generic]]:
        for piece in initializer.data():
            yield piece
            advance(piece.nbytes)

    return replace(initializer, data=data)


def is_lossless(tensor: Tensor, choice: Choice) -> bool:
    """Whether every number stays what it is: a quantized one what ggml's dequantize gives."""
    if isinstance(choice.storage, Carrier):
        return lossless(tensor, choice.storage)
    return tensor.stored == choice.storage or (choice.storage == "F32" and tensor.stored != "F64")
