"""Model: what a source holds, in one form whatever its format; targets are made of it. `read` opens one.

    GGUF (gguf/source.py)    HuggingFace (folder/source.py)    ONNXFolder (onnx/source.py)

Opening one reads headers and configurations. The rest is found out when it is asked for: a GGUF file of a family that
nobody describes can still be copied, and a folder of one be exported by others.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgellm.architectures import Architecture, Hyper, Relation, to_gguf
from edgellm.formats.joined import Joined, height
from edgellm.formats.tensor import Tensor

from .origin import Origin
from .tokens import Vocabulary

ROTATED = re.compile(r"blk\.\d+\.attn_[qk]\.(weight|bias)$")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor of the source that the result does not have, and why nothing is lost by that."""

    name: str
    why: str


@dataclass(frozen=True)
class Description:
    """A model's family, its numbers, and how each of its tensors is written on both sides.

    left_out: tensors that nothing is lost without; notes: what else is to be known.
    """

    architecture: Architecture
    hyper: Hyper
    relations: tuple[Relation, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What a GGUF file of a model holds, in order, before types are chosen.

    metadata: the key-values, but those that depend on the types. file_type: `general.file_type` of a GGUF file.
    computed: tensors that the source does not have. rounded: tensors whose numbers change a little even in F32 (a norm
    to which 1 is added).
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    file_type: int | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    computed: frozenset[str] = frozenset()
    rounded: frozenset[str] = frozenset()


class Model(ABC):
    """A source, opened.

    path: as it was given. tensors: as the source names and orders them. names: whose names and order these
    are. runs: the engine that runs the source as it is, None where none does. transformers: the
    folder, where the library of that name loads it. weight_files: what holds the weights. adapted: the adapters that
    are merged into them, as NAME or NAME=SCALE.

    What is asked for raises UnsupportedArchitecture, Unsupported, InvalidModelFile: for whatever would be lost, is
    missing, or contradicts the configuration.
    """

    format: ClassVar[Literal["huggingface", "gguf", "onnx"]]
    runs: ClassVar[Literal["llamacpp", "onnx"] | None]
    names: Literal["huggingface", "gguf"]
    path: Path
    tensors: Mapping[str, Tensor]
    transformers: Path | None = None
    weight_files: Sequence[Path]
    adapted: Sequence[str] = ()

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """32 hex digits that a copy shares and another configuration or other weights change."""

    @property
    @abstractmethod
    def description(self) -> Description:
        """Its family, numbers and tensors."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Its tokens."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """What config.json says."""

    @property
    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The other small files of a folder, by name: of the tokenizer, the card, the licence, and how an encoder's
        vectors become one."""

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """Whose model it is."""

    @property
    @abstractmethod
    def contents(self) -> Contents:
        """The model as a GGUF file."""

    @abstractmethod
    def close(self) -> None:
        """Unmap the files."""

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors under GGUF's names, with rows in GGUF's order; but those that are computed from the numbers."""
        return {name: tensor for relation in self.description.relations for name, tensor in self._made(relation)}

    @cached_property
    def unrotated(self) -> dict[str, Tensor]:
        """The weights, with the rows of q and k where Hugging Face has them: halves of a head, not pairs."""
        found = dict(self.weights)
        for relation in self.description.relations:
            if relation.inverse is None or not all(ROTATED.match(part.name) for part in relation.gguf):
                continue
            if self.names == "huggingface":
                found |= self._made(replace(relation, order=None))
            else:
                for part in relation.gguf:
                    rows = [(self.tensors[part.name], 0, height(part.shape))]
                    found[part.name] = Joined(rows, relation.inverse, part.shape)
        return found

    def _made(self, relation: Relation) -> list[tuple[str, Tensor]]:
        if self.names == "gguf":
            return [(part.name, self.tensors[part.name]) for part in relation.gguf]
        return [(part.name, tensor) for part, tensor in to_gguf(relation, self.tensors)]
