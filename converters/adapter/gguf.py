"""for_gguf: a PEFT adapter as a GGUF model has it: rows in its order, under its names."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Relation, from_metadata
from edgellm.errors import Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.reading import reading
from edgellm.formats.tensor import check_finite

from .peft import Adapter, Change

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
_MERGE = "merge it into the model (edgellm convert CHECKPOINT --adapter)"


def for_gguf(folder: Path, scale: float, base: GGUFFile) -> tuple[str, dict[str, Pair]]:
    """What identifies the adapter and its strength; and (r, in) and (out, r) of each GGUF tensor that it changes, the
    strength worked in.

    Raises ModelNotFound, InvalidModelFile, UnsupportedArchitecture, and Unsupported for what is more than a product to
    add to a matrix: DoRA, tensors that are replaced, experts, embeddings.
    """
    architecture, hyper = from_metadata(base)
    relations = architecture.relations(hyper, base.tensors)
    single = {one.hf[0].name: one for one in relations if len(one.hf) == len(one.gguf) == 1}
    found: dict[str, Pair] = {}
    with reading(folder), closing(Adapter(folder, scale)) as adapter:
        if adapter.whole:
            raise Unsupported(f"{folder}: has {next(iter(adapter.whole))!r} as a whole; {_MERGE}")
        for change in adapter.changes:
            name = architecture.stored_as(change.module + ".weight", single)
            if change.magnitude is not None or change.bias is not None or change.embedding:
                what = (
                    "DoRA" if change.magnitude is not None else "a bias" if change.bias is not None else "an embedding"
                )
                raise Unsupported(f"{folder}: {change.module!r} is changed by more than a product ({what}); {_MERGE}")
            if name is None or len(single[name].gguf[0].shape) != 2:
                raise Unsupported(
                    f"{folder}: changes {change.module!r}, which is no matrix of this model alone; {_MERGE}"
                )
            scaling = adapter.scaling(change.module, change.a.shape[0])
            found[single[name].gguf[0].name] = _pair(f"{folder}: {change.module}", change, single[name], scaling)
        return adapter.fingerprint, found


def _pair(where: str, change: Change, relation: Relation, scaling: float) -> Pair:
    a, b = change.a.rows(slice(None)), change.b.rows(slice(None))
    for values in (a, b):
        check_finite(where, values)
    if relation.order is not None and len(relation.order) == len(b):
        b = b[relation.order]
    return a, np.ascontiguousarray(b * np.float32(scaling))
