"""Weights: what a graph takes of a model's tensors: matrices that it multiplies with, and vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.formats.joined import Joined
from edgellm.formats.tensor import Tensor, n_rows

from ...quant.imatrix import ImportanceMatrix
from ..recipes import Choice
from .floats import FloatMatrix
from .matrix import Matrix
from .quantized import QuantizedMatrix

_EXPERT = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight")


class Weights:
    """The tensors of a model under their GGUF names, with the rows of q and k as Hugging Face orders them, each stored
    as was chosen.

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
        """Whether `matrix` can put these into one: all are here, stored alike and of rows that are equally long."""
        if not all(name in self._tensors for name in names):
            return False
        kinds = {(self._choices[name].storage, self._choices[name].shape[-1]) for name in names}
        return len(kinds) == 1

    def matrix(self, *names: str) -> Matrix:
        """One matrix; of several names their rows, one after the other."""
        if names not in self._made:
            self._made[names] = self._matrix(names)
        return self._made[names]

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight or a bias, (n,) float32."""
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
