"""Matrix: a weight of (N, K) as an ONNX graph holds it, whatever its storage: multiplied with, or looked up in."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .builder import GraphBuilder


class Matrix(Protocol):
    """shape: (N, K), N outputs of K inputs each."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def multiply(self, graph: GraphBuilder, x: str, bias: str | None = None) -> str:
        """x (batch, sequence, K) float32 becomes x @ W.T + bias, (batch, sequence, N) float32; neither need be of any
        length. bias: the name of a (N,) float32 value."""
        ...

    def gather(self, graph: GraphBuilder, ids: str) -> str:
        """The rows of ids (...) int64: (..., K) float32."""
        ...


class Weights(Protocol):
    """The tensors of a model under their GGUF names, with the rows of q and k as Hugging Face orders them."""

    def __contains__(self, name: str) -> bool: ...

    def matrix(self, *names: str) -> Matrix:
        """One matrix; of several names their rows, one after the other."""
        ...

    def stackable(self, *names: str) -> bool:
        """Whether `matrix` can put these into one: they are stored alike."""
        ...

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight or a bias, (n,) float32."""
        ...
