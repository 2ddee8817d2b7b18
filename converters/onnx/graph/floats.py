"""FloatMatrix: a matrix as floating-point numbers.

It is stored by rows, (N, K), so that it streams from the checkpoint and one copy serves for looking up rows as well as
for multiplying. ONNX Runtime packs what FusedMatMul is given once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.onnx_graph import DATA_TYPES
from edgellm.formats.tensor import Tensor, check_finite, chunks

from ...quant.ggml import quantize
from .builder import GraphBuilder
from .matrix import Matrix

Floats = Literal["F32", "F16", "BF16"]
_STORED = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}


class FloatMatrix(Matrix):
    """dtype: of the stored numbers; they are multiplied as float32 all the same.

    F16 and BF16 are widened when the model is loaded: they halve the file, not the memory.
    """

    def __init__(self, name: str, tensors: Sequence[Tensor], dtype: Floats = "F32") -> None:
        super().__init__(name, tensors)
        self._dtype = dtype

    def multiply(self, graph: GraphBuilder, x: str, bias: str | None = None) -> str:
        weight = self._stored(graph)
        if self._dtype != "F32":
            stored = weight
            weight = graph.once(("widened", self._name), lambda: _widened(graph, stored))
        product = graph.microsoft("FusedMatMul", x, weight, transB=1)
        return product if bias is None else graph.node("Add", product, bias)

    def gather(self, graph: GraphBuilder, ids: str) -> str:
        found = graph.node("Gather", self._stored(graph), ids)
        return found if self._dtype == "F32" else _widened(graph, found)

    def _stored(self, graph: GraphBuilder) -> str:
        return graph.tensor(self._name, _STORED[self._dtype], self.shape, self._data)

    def _data(self) -> Iterator[NDArray[np.generic]]:
        for tensor in self._tensors:
            for part in chunks(tensor):
                values = tensor.rows(part)
                check_finite(self._name, values)
                try:
                    yield quantize(GGMLType[self._dtype], values)
                except InvalidModelFile as error:
                    raise InvalidModelFile(f"tensor {self._name!r}: {error}") from None


def _widened(graph: GraphBuilder, name: str) -> str:
    return graph.nodes("Cast", (name,), ("*",), to=DATA_TYPES["FLOAT"])[0]
