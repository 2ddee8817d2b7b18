"""Matrix: a weight of (N, K) as an ONNX graph holds it, whatever its storage: multiplied with, or looked up in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from edgellm.formats.tensor import Tensor, n_rows

from .builder import GraphBuilder


class Matrix(ABC):
    """The rows of some tensors, one after the other; those of three dimensions count as rows of their last one."""

    def __init__(self, name: str, tensors: Sequence[Tensor]) -> None:
        self._name, self._tensors = name, tuple(tensors)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), N outputs of K inputs each."""
        return sum(map(n_rows, self._tensors)), self._tensors[0].shape[-1]

    @abstractmethod
    def multiply(self, graph: GraphBuilder, x: str, bias: str | None = None) -> str:
        """x (batch, sequence, K) float32 becomes x @ W.T + bias, (batch, sequence, N) float32; neither need be of any
        length. bias: the name of a (N,) float32 value."""

    @abstractmethod
    def gather(self, graph: GraphBuilder, ids: str) -> str:
        """The rows of ids (...) int64: (..., K) float32."""
