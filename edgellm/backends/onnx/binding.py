"""Binding: what a run reads and writes, by address."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Binding:
    """An IOBinding over arrays in host memory, which it keeps alive and does not bind twice.

    A step of one token has some sixty tensors, and all but the mask are where they were.
    """

    def __init__(self, session: Any) -> None:
        self.native = session.io_binding()
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._places: dict[str, tuple[tuple[int, ...], int]] = {}

    def input(self, name: str, kind: int, array: NDArray[np.generic]) -> None:
        """Feed a contiguous array; kind: its TensorProto.DataType."""
        self._bind(self.native.bind_input, name, kind, array)

    def output(self, name: str, kind: int, array: NDArray[np.generic]) -> None:
        """Have an output written into a contiguous array."""
        self._bind(self.native.bind_output, name, kind, array)

    def _bind(self, bind: Any, name: str, kind: int, array: NDArray[np.generic]) -> None:
        place = array.shape, array.__array_interface__["data"][0]
        self._arrays[name] = array
        if self._places.get(name) != place:
            bind(name, "cpu", 0, kind, *place)
            self._places[name] = place
