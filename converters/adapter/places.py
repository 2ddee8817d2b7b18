"""Places: which tensors of a checkpoint the modules of transformers are.

Checkpoints leave out the model's prefix, or have another, and hold experts one by one where transformers has one
parameter for all of them: the family's table has both spellings.

    mlp.experts.gate_up_proj (experts, 2 ff, embd)    experts.0.w1 (ff, embd)   experts.0.w3 (ff, embd)   experts.1.w1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgellm.architectures import Architecture, Hyper, Part
from edgellm.formats.tensor import Tensor


@dataclass(frozen=True)
class Place:
    """A tensor that a module's weight is, or is a part of.

    name: in the checkpoint. key: what PEFT calls the whole. outputs: how many the module has. transposed: stored (in,
    out). expert: which one of how many (`of`); start, stop: the outputs, of all of an expert, that the tensor has.
    """

    name: str
    key: str
    outputs: int
    transposed: bool = False
    expert: int = 0
    of: int = 1
    start: int = 0
    stop: int | None = None


class Places:
    """The tensors of a checkpoint of these numbers."""

    def __init__(self, architecture: Architecture, hyper: Hyper, tensors: Mapping[str, Tensor]) -> None:
        self._architecture, self._hyper = architecture, hyper
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        relations = architecture.relations(hyper, tensors)
        self._transposed = {part.name for one in relations if one.transposed for part in one.hf}
        self._spellings = {
            part.name: self._pieces(part, groups) for part, groups in architecture.spellings(hyper, tensors)
        }

    def _pieces(self, part: Part, groups: list[tuple[Part, ...]]) -> list[Place]:
        """Where the checkpoint holds what transformers has as one parameter: `groups` by what, then by expert."""
        if len(part.shape) < 3:
            return [Place(one.name, part.name, part.shape[0]) for (one,) in groups]
        n, outputs, _ = part.shape
        if part.name in self._shapes:
            return [Place(part.name, part.name, outputs, False, e, n) for e in range(n)]
        step = outputs // len(groups)
        return [
            Place(one.name, part.name, outputs, False, e, n, g * step, (g + 1) * step)
            for g, group in enumerate(groups)
            for e, one in enumerate(group)
        ]

    def tensor(self, name: str) -> str | None:
        """What the checkpoint calls a tensor of transformers; None where it has none."""
        found = self._architecture.stored_as(name, self._shapes)
        if found is None and (other := self._architecture.stored_as(name, self._spellings)):
            pieces = self._spellings[other]
            found = pieces[0].name if len(pieces) == 1 else None
        return found

    def of(self, module: str, outputs: int, inputs: int) -> list[Place]:
        """The tensors that hold the weight of a module, or those of its parameter that has these numbers, where it
        holds experts; none where there is no such thing."""
        name = self.tensor(module + ".weight")
        if name is not None:
            transposed = name in self._transposed
            stored = (inputs, outputs) if transposed else (outputs, inputs)
            return [Place(name, module, outputs, transposed)] if self._shapes[name] == stored else []
        for parameter, pieces in self._spellings.items():
            key = f"{module}.{parameter.rpartition('.')[2]}"
            if self._architecture.stored_as(key, self._spellings) != parameter:
                continue
            if pieces[0].outputs == outputs and self._shapes[pieces[0].name][-1] == inputs:
                return [replace(piece, key=key) for piece in pieces]
        return []
