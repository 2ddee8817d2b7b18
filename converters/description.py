"""describe: what a checkpoint is: its family, its numbers, and how each of its tensors is written on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.architectures import Architecture, Hyper, Relation, from_config, from_metadata, to_hf
from edgellm.formats.confined import path_in
from edgellm.formats.strict_json import parse_object
from edgellm.formats.tensor import Tensor, chunks

from .folder.source import HuggingFace
from .gguf.source import GGUF
from .onnx.source import ONNXFolder
from .plan import LeftOut

Source = HuggingFace | GGUF | ONNXFolder
"""Any checkpoint, opened."""


@dataclass(frozen=True)
class Description:
    """left_out: tensors that nothing is lost without; notes: what else is to be known."""

    architecture: Architecture
    hyper: Hyper
    relations: tuple[Relation, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def describe(checkpoint: Source) -> Description:
    """Read the numbers of a checkpoint and find its tensors.

    Raises UnsupportedArchitecture, Unsupported, InvalidModelFile: for whatever would be lost, is missing, or
    contradicts the configuration.
    """
    stored: Mapping[str, Tensor] = checkpoint.tensors
    if isinstance(checkpoint, GGUF):
        architecture, hyper = from_metadata(checkpoint.file)
        extra = (name for name, _ in architecture.extra(hyper) if name in stored)
        left_out = [LeftOut(name, "computed from the numbers") for name in extra]
        relations = tuple(architecture.relations(hyper, list(stored)))
        _check_all_there(relations, stored)
        return Description(architecture, hyper, relations, tuple(left_out))
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}  # already applied
    architecture, hyper = from_config(config, pooling_file(checkpoint.folder))
    left_out = [*checkpoint.left_out]
    left_out += [LeftOut(name, "a scale for 8-bit activations, which are not used") for name in checkpoint.dropped]
    left_out += [LeftOut(name, "no part of the model that is converted") for name in stored if architecture.skips(name)]
    notes = [*checkpoint.notes]
    for name, other in architecture.duplicates(hyper, list(stored)):
        if _equal(stored[name], stored[other]):
            left_out.append(LeftOut(name, f"equal to {other}, which serves as both"))
        else:  # some checkpoints store one that differs, and that is what they were trained with
            notes.append(f"{name} differs from {other} although config.json says that they are one: it is kept")
            hyper = replace(hyper, tied=False)
    relations = tuple(architecture.relations(hyper, list(stored)))
    if checkpoint.names == "gguf":
        _check_all_there(relations, stored)
    return Description(architecture, hyper, relations, tuple(left_out), tuple(notes))


def _check_all_there(relations: Sequence[Relation], stored: Mapping[str, Tensor]) -> None:
    """Raises InvalidModelFile where a tensor under GGUF's names is missing or has another shape."""
    for relation in relations:
        to_hf(relation, stored)


def pooling_file(folder: Path) -> dict[str, Any] | None:
    """1_Pooling/config.json of a sentence-transformers folder; None without one. Raises InvalidModelFile."""
    path = path_in(folder, "1_Pooling/config.json")
    return parse_object(path.read_bytes(), str(path)) if path.is_file() else None


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.rows(part), other.rows(part)) for part in chunks(one))
