"""merge: a checkpoint's tensors with adapters in them.

module of transformers ── places.py ──▶ tensors of the checkpoint ──▶ Merged, Replaced
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Architecture, Hyper
from edgellm.errors import Unsupported
from edgellm.formats.joined import Joined
from edgellm.formats.tensor import Tensor, check_finite

from ..folder.configured import equal
from .merged import Merged, Replaced
from .places import Place, Places

if TYPE_CHECKING:
    from .peft import Adapter, Change

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Adapted:
    """tensors: of the checkpoint, those that adapters change being float32 sums. untied: whether the output was the
    embedding and no longer is; then it is in tensors. notes: what is to be known."""

    tensors: dict[str, Tensor]
    untied: bool
    notes: tuple[str, ...]


def merge(
    adapters: Sequence[Adapter], architecture: Architecture, hyper: Hyper, tensors: Mapping[str, Tensor]
) -> Adapted:
    """The tensors with all adapters in them, in turn. Of the weights only an output that may be the embedding is read.

    Raises InvalidModelFile for what does not fit, Unsupported for what the model does not have.
    """
    merging = _Merging(architecture, hyper, tensors)
    for adapter in adapters:
        merging.add(adapter)
    return Adapted(merging.tensors, merging.untied(), tuple(merging.notes))


class _Merging:
    def __init__(self, architecture: Architecture, hyper: Hyper, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.notes = dict(tensors), list[str]()
        self._architecture = architecture
        self._pair = architecture.tied_pair(tensors) if hyper.tied else None
        self._had_output = self._pair is not None and self._pair[0] in tensors
        if self._pair is not None:  # so that both can be changed
            self.tensors.setdefault(self._pair[0], tensors[self._pair[1]])
            hyper = replace(hyper, tied=False)
        self._places = Places(architecture, hyper, self.tensors)
        self._changed: set[str] = set()
        self._alone: set[str] = set()  # what only one adapter may change: its order among others would matter

    def add(self, adapter: Adapter) -> None:
        """Whole tensors first: what the adapter adds was trained beside them."""
        changed, alone = set[str](), set[str]()
        for name, tensor in adapter.whole.items():
            alone.add(self._replace(adapter, name, tensor))
        for change in adapter.changes:
            names = self._add(adapter, change)
            changed |= names
            alone |= names if change.magnitude is not None else set()
        changed |= alone
        if twice := sorted(changed & self._changed & (alone | self._alone)):
            raise Unsupported(
                f"{adapter.folder}: changes {twice[0]!r}, as an adapter before it does, and one of them takes its "
                "place or scales it (DoRA); merge one of them alone"
            )
        self._changed |= changed
        self._alone |= alone
        said = "" if adapter.scale == 1 else f", {adapter.scale:g} times as strong"
        self.notes.append(f"adapter {adapter.name}: changes {len(changed)} tensor{'s' * (len(changed) != 1)}{said}")
        if adapter.whole and adapter.scale != 1:
            some = ", ".join(list(adapter.whole)[:4])
            self.notes.append(f"adapter {adapter.name}: tensors that it has whole are taken as they are: {some}")

    def untied(self) -> bool:
        if self._pair is None:
            return False
        output, embedding = self._pair
        if not {output, embedding} & self._changed or equal(self.tensors[output], self.tensors[embedding]):
            if not self._had_output:
                del self.tensors[output]
            return False
        if False not in self._architecture.expect.get("tie_word_embeddings", (False,)):
            raise Unsupported(
                f"an adapter makes two matrices of embedding and output, and a model of the type "
                f"{self._architecture.model_type} has one; train it for neither, or for both (ensure_weight_tying)"
            )
        self.notes.append("embedding and output were one matrix, and are two: an adapter changes one of them alone")
        return True

    def _replace(self, adapter: Adapter, name: str, tensor: Tensor) -> str:
        place = self._places.tensor(name)
        if place is None:
            raise Unsupported(
                f"{adapter.folder}: has {name!r} as a whole, which the model has not; is it another one's?"
            )
        base = self.tensors[place]
        if tuple(tensor.shape) != tuple(base.shape):
            why = "they are not of the same model"
            if tensor.shape[1:] == base.shape[1:] and len(base.shape) == 2:
                why = "its vocabulary was changed: resize the model's in transformers, and save the merged model there"
            raise adapter.error(f"{name!r} has the shape {tensor.shape}, the model's {base.shape}; {why}")
        self.tensors[place] = Replaced(base, tensor)
        return place

    def _add(self, adapter: Adapter, change: Change) -> set[str]:
        if change.embedding:
            columns, rows = change.b.shape[0], change.a.shape[1]
        else:
            columns, rows = change.a.shape[1], change.b.shape[0]
        places = self._places.of(change.module, rows, columns)
        if not places:
            raise Unsupported(
                f"{adapter.folder}: changes {change.module!r}, and this {self._architecture.model_type} model has no "
                f"weight of that name for {columns} numbers in and {rows} out; is it another model's adapter?"
            )
        rank, left_over = divmod(change.a.shape[0], places[0].of)
        if left_over:
            raise adapter.error(f"{change.module!r}: a rank of {change.a.shape[0]} in all for {places[0].of} experts")
        scaling = adapter.scaling(places[0].key, rank)
        if change.magnitude is not None and (places[0].of > 1 or change.magnitude.shape != change.b.shape[:1]):
            raise adapter.error(
                f"{change.module!r}: {change.magnitude.shape} lengths (DoRA) for {change.b.shape[0]} outputs"
            )
        names = {place.name for place in places}
        for name in names:
            mine = [place for place in places if place.name == name]
            self.tensors[name] = self._merged(adapter, change, mine, scaling)
        if change.bias is not None:
            names.add(self._add_bias(adapter, change, scaling))
        return names

    def _merged(self, adapter: Adapter, change: Change, places: Sequence[Place], scaling: float) -> Tensor:
        base = self.tensors[places[0].name]
        where = f"{adapter.folder}: {change.module}"

        def one(tensor: Tensor, place: Place) -> Merged:
            factors = partial(_factors, where, change, place)
            lengths = None if change.magnitude is None else partial(_vector, where, change.magnitude)
            return Merged(
                where, tensor, factors, scaling, lengths, upright=not place.transposed and not change.embedding
            )

        if len(places) == 1:
            return one(base, places[0])
        height, width = base.shape[-2:]  # of an expert
        parts = [Joined([(base, p.expert * height, (p.expert + 1) * height)], shape=(height, width)) for p in places]
        return Joined([(one(part, p), 0, height) for part, p in zip(parts, places, strict=True)], shape=base.shape)

    def _add_bias(self, adapter: Adapter, change: Change, scaling: float) -> str:
        assert change.bias is not None
        place = self._places.tensor(change.module + ".bias")
        if place is None or self.tensors[place].shape != change.bias.shape:
            raise adapter.error(
                f"{change.module!r} has no bias of shape {change.bias.shape}, to which one could be added"
            )
        where = f"{adapter.folder}: {change.module}"
        read = partial(_vector, where, change.bias)

        def factors() -> tuple[Floats, Floats]:
            return np.ones((1, 1), np.float32), read()[None]

        self.tensors[place] = Merged(where, self.tensors[place], factors, scaling)
        return place


def _factors(where: str, change: Change, place: Place) -> tuple[Floats, Floats]:
    """Left and right of Merged, (rows, r) and (r, columns)."""
    a, b = (_finite(where, tensor) for tensor in (change.a, change.b))
    if place.of > 1:  # (experts · r, in) and (out, r · experts)
        a = a.reshape(place.of, -1, a.shape[1])[place.expert]
        b = b.reshape(b.shape[0], -1, place.of)[:, :, place.expert][place.start : place.stop]
    left, right = (a.T, b.T) if change.embedding or place.transposed else (b, a)
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def _vector(where: str, tensor: Tensor) -> Floats:
    first: Floats = _finite(where, tensor)[0]
    return first


def _finite(where: str, tensor: Tensor) -> Floats:
    """All of a small tensor."""
    values = tensor.rows(slice(None))
    check_finite(where, values)
    return values
