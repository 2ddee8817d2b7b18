"""QuantizedMatrix: a matrix in blocks of a Carrier, as nodes of MatMulNBits and GatherBlockQuantized.

    NAME.q       (N, K/b, b * bits / 8) uint8       NAME.zp     (N, ceil(K/b / 2)) uint8, of carriers with zero points
    NAME.scale   (N, K/b) float32                   NAME.corr   (K/b, N) float32, of carriers with a correction

One copy of the codes serves both for multiplying and for looking up: GatherBlockQuantized takes three dimensions as
well as two, and then gives a row as (K/b, b), so that the codes need no other shape (which ONNX Runtime would make
into a second copy of them when it loads the model; it does so with the scales, a tenth to a quarter of the codes).

accuracy_level 4 rounds activations to 8 bits for each block. 0 computes in float32, which only codes of 4 bits have a
kernel for: those of 8 are then stored as two matrices (NAME.hi and NAME.lo, q = 16 hi + lo), in as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidParameter
from edgellm.formats.tensor import Tensor, blocked, check_finite, chunks

from .blocks import Bytes
from .builder import GraphBuilder
from .carrier import Carrier, Packed, carrier_of, quantize, transcode, unpaired
from .matrix import Matrix

_CODES = ("q", "hi", "lo")


@runtime_checkable
class Mapped(Protocol):
    """A Tensor over a file in memory, whose `raw` may be a part of that."""

    def release(self) -> None:
        """What `raw` gave is no longer needed."""
        ...


def lossless(tensor: Tensor, carrier: Carrier) -> bool:
    """Whether the carrier takes over the tensor's stored blocks, number for number; otherwise its rows are rounded."""
    return blocked(tensor) and tensor.exact and carrier_of(tensor.type) == carrier


class QuantizedMatrix(Matrix):
    """Its rows are moved over or rounded (see `lossless`). importance: (K,), for those that are rounded.

    Its arrays are made a chunk of rows at a time. When the codes are written, the other arrays (a tenth to the half
    of the codes' bytes) are kept until it is their turn, so that nothing is computed twice, but for the codes of 8 bits
    that are stored as two matrices.

    Raises InvalidParameter where the shapes do not fit; writing it, InvalidModelFile for weights that are not finite.
    """

    def __init__(
        self,
        name: str,
        tensors: Sequence[Tensor],
        carrier: Carrier,
        *,
        accuracy_level: Literal[0, 4] = 4,
        importance: NDArray[np.float32] | None = None,
    ) -> None:
        if accuracy_level not in (0, 4):
            raise InvalidParameter(f"{name}: accuracy_level is 0 (float32) or 4 (8-bit activations)")
        if len({tensor.shape[-1] for tensor in tensors}) != 1:
            raise InvalidParameter(f"{name}: only matrices with rows of one length can be put one after the other")
        for tensor in tensors:
            carrier.check(tensor.shape)
        super().__init__(name, tensors)
        self._carrier, self._importance = carrier, importance
        self._level: int = accuracy_level
        self._halves = carrier.bits == 8 and accuracy_level == 0
        self._small: list[str] = []
        self._kept: dict[str, list[NDArray[np.generic]]] = {}

    def multiply(self, graph: GraphBuilder, x: str, bias: str | None = None) -> str:
        if self._halves:
            n, count = self._blocks
            none = _filled(graph, (n, -(-count // 2)), 0)
            high, low = self._product(graph, x, "hi", ""), self._product(graph, x, "lo", none, bias)
            product = graph.node("Add", graph.node("Mul", high, graph.constant(16.0)), low)
        else:
            points = self._array(graph, "zp") if self._carrier.zero_points else ""
            product = self._product(graph, x, "q", points, bias)
        if self._carrier.correction:
            product = graph.node("Add", product, graph.node("MatMul", self._sums(graph, x), self._array(graph, "corr")))
        return product

    def gather(self, graph: GraphBuilder, ids: str) -> str:
        n, count = self._blocks
        flat = graph.node("Reshape", ids, graph.constant([-1], "INT64"))
        if self._halves:
            high = self._rows(graph, flat, "hi", _filled(graph, (n, count, 1), 8))
            low = self._rows(graph, flat, "lo", _filled(graph, (n, count, 1), 0))
            rows = graph.node("Add", graph.node("Mul", high, graph.constant(16.0)), low)
        elif self._carrier.zero_points:
            rows = self._rows(graph, flat, "q", self._array(graph, "zeros"))
        else:
            rows = self._rows(graph, flat, "q", _filled(graph, (n, count, 1), 1 << self._carrier.bits - 1))
        if self._carrier.correction:
            found = graph.node("Gather", self._array(graph, "corr"), flat, axis=1)
            upright = graph.node("Transpose", found, perm=(1, 0))
            rows = graph.node("Add", rows, graph.node("Unsqueeze", upright, graph.constant([2], "INT64")))
        shape = graph.node("Concat", graph.node("Shape", ids), graph.constant([self.shape[1]], "INT64"), axis=0)
        return graph.node("Reshape", rows, shape)

    @property
    def _blocks(self) -> tuple[int, int]:
        n, k = self.shape
        return n, k // self._carrier.block

    def _product(self, graph: GraphBuilder, x: str, codes: str, points: str, bias: str | None = None) -> str:
        inputs = [x, self._array(graph, codes), self._array(graph, "scale"), points, "", bias or ""]
        while not inputs[-1]:
            inputs.pop()
        n, k = self.shape
        bits = self._carrier.bits if codes == "q" else 4
        return graph.microsoft(
            "MatMulNBits", *inputs, K=k, N=n, bits=bits, block_size=self._carrier.block, accuracy_level=self._level
        )

    def _rows(self, graph: GraphBuilder, ids: str, codes: str, points: str) -> str:
        """(ids, K/b, b). The zero points are given even where they are in the middle: not all engines default to it."""
        stored, scale = self._array(graph, codes), self._array(graph, "scale")
        upright = graph.once(
            ("upright", scale),
            lambda: graph.node("Reshape", scale, graph.constant([*self._blocks, 1], "INT64")),
        )
        bits = self._carrier.bits if codes == "q" else 4
        return graph.microsoft(
            "GatherBlockQuantized", stored, ids, upright, points,
            bits=bits, block_size=self._carrier.block, gather_axis=0, quantize_axis=2,
        )  # fmt: skip

    def _sums(self, graph: GraphBuilder, x: str) -> str:
        """x summed over each block: (batch, sequence, K/b). Matrices with the same input share it.

        The axis counts from the front: counted from the back, ORT 1.31 leaves an empty x as it is.
        """

        def make() -> str:
            parts = graph.node("Reshape", x, graph.constant([0, 0, self._blocks[1], self._carrier.block], "INT64"))
            return graph.node("ReduceSum", parts, graph.constant([3], "INT64"), keepdims=0)

        return graph.once(("block sums", x, self._carrier.block), make)

    # Arrays

    def _array(self, graph: GraphBuilder, part: str) -> str:
        """The initializer of one of the arrays; the codes come first, as the others are made along with them."""
        n, count = self._blocks
        width = self._carrier.block * (self._carrier.bits if part == "q" else 4) // 8
        shape = {"scale": (n, count), "zp": (n, -(-count // 2)), "zeros": (n, count, 1), "corr": (count, n)}
        first = "hi" if self._halves else "q"
        if part != first:
            self._array(graph, first)
        if part not in (*_CODES, *self._small):
            self._small.append(part)
        return graph.tensor(
            f"{self._name}.{part}",
            "FLOAT" if part in ("scale", "corr") else "UINT8",
            shape.get(part, (n, count, width)),
            partial(self._data, part),
        )

    def _data(self, part: str) -> Iterator[NDArray[np.generic]]:
        pieces: Iterator[NDArray[np.generic]]
        if part in self._kept:
            pieces = iter(self._kept.pop(part))
        elif part in ("q", "hi"):
            self._kept = {small: [] for small in self._small}
            pieces = self._keeping(part)
        else:
            pieces = (_take(packed, part) for packed in self._packed())
        if part == "corr":  # by blocks, as MatMul takes it
            pieces = iter([np.concatenate(list(pieces)).T])
        yield from pieces

    def _keeping(self, part: str) -> Iterator[NDArray[np.generic]]:
        for packed in self._packed():
            for small, pieces in self._kept.items():
                pieces.append(_take(packed, small))
            yield _take(packed, part)

    def _packed(self) -> Iterator[Packed]:
        for tensor in self._tensors:
            for part in chunks(tensor):
                if lossless(tensor, self._carrier) and blocked(tensor) and tensor.type is not None:
                    packed = transcode(tensor.type, tensor.raw(part), tensor.shape[-1])
                    if isinstance(tensor, Mapped):
                        tensor.release()
                    check_finite(self._name, packed.scales)
                    yield packed
                else:
                    rows = tensor.rows(part)
                    check_finite(self._name, rows)
                    yield quantize(rows, self._carrier, self._importance)


def _take(packed: Packed, part: str) -> NDArray[np.generic]:
    """One array of rows. zeros: the zero points, one in a byte."""
    data, scales, points, correction = packed
    if part in ("hi", "lo"):
        words = data.view("<u2") >> (4 if part == "hi" else 0)
        halves: Bytes = ((words & 15) | (words >> 4 & 0xF0)).astype(np.uint8)
        return halves
    if part == "zeros" and points is not None:
        return unpaired(points)[:, : scales.shape[1], None]
    if part == "zp" and points is not None:
        return points
    if part == "corr" and correction is not None:
        return correction
    return data if part == "q" else scales


def _filled(graph: GraphBuilder, shape: tuple[int, ...], value: int) -> str:
    """Bytes that all are `value`, made when the model is loaded: zero points that are the same everywhere."""
    return graph.once(
        ("filled", shape, value),
        lambda: graph.node(
            "ConstantOfShape", graph.constant(list(shape), "INT64"), value=np.asarray([value], np.uint8)
        ),
    )
