"""Matrices in ONNX: the blocks of ggml moved over, float32 rows rounded, and what ONNX Runtime computes with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.converters.gguf.source import GGUF
from edgellm.converters.onnx.graph.builder import GraphBuilder
from edgellm.converters.onnx.graph.carrier import BLOCKS, Carrier, Packed, carrier_of, quantize, transcode, unpaired
from edgellm.converters.onnx.graph.quantized import QuantizedMatrix, lossless
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.onnx_writer import write_onnx

HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
"""The types with an exact carrier, and where their blocks hold float16."""

SUBNORMAL = 128 * 2.0**-149  # what the rounding of a scale so small can cost a weight

Level = Literal[0, 4]


def stored_rows(kind: GGMLType, n: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rows of blocks whose bits are all random, but for scales of an ordinary size."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (n * columns // kind.block_size, kind.block_bytes)).astype(np.uint8)
    for at in HALVES[kind.name]:
        blocks[:, at : at + 2] = (random.normal(size=(len(blocks), 1)) / 50).astype("<f2").view(np.uint8)
    if kind is GGMLType.MXFP4:
        blocks[:, 0] = 118 + blocks[:, 0] % 6
    return blocks.reshape(n, -1)


def of_ggml(kind: GGMLType, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    quants = pytest.importorskip("gguf").quants
    values: NDArray[np.float32] = quants.dequantize(raw, pytest.importorskip("gguf").GGMLQuantizationType[kind.name])
    return values


class Blocks:
    """A tensor that is stored in blocks."""

    exact = True

    def __init__(self, kind: GGMLType, raw: NDArray[np.uint8], columns: int) -> None:
        self.type, self.stored, self.shape = kind, kind.name, (len(raw), columns)
        self.reads = 0
        self._raw = raw

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        self.reads += 1
        return self._raw[which]

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return of_ggml(self.type, self._raw[which])


class Numbers:
    """A tensor of float32."""

    stored = "F32"

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.shape, self._values = values.shape, values.reshape(-1, values.shape[-1])
        self.reads = 0

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        self.reads += 1
        return self._values[which]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(
    folder: Path, matrices: list[QuantizedMatrix], x: NDArray[np.float32], ids: NDArray[np.int64], bias: Any = None
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """What ONNX Runtime gives for each: the products with x, and the rows of ids. x: (rows, K), or in a batch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = GraphBuilder("matrices")
    graph.input("x", "FLOAT", ["a", "b", x.shape[-1]])
    graph.input("ids", "INT64", ["c", "d"])
    added = None if bias is None else graph.array("bias", bias)
    outputs = []
    for i, matrix in enumerate(matrices):
        for what, value in (("y", matrix.multiply(graph, "x", added)), ("e", matrix.gather(graph, "ids"))):
            graph.node("Identity", value, to=f"{what}{i}")
            graph.output(f"{what}{i}", "FLOAT", ["", "", ""])
            outputs.append(f"{what}{i}")
    write_onnx(folder / "model.onnx", graph.build())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    found = session.run(outputs, {"x": x.reshape(-1, *x.shape[-2:]), "ids": ids})
    return [product.reshape(*x.shape[:-1], -1) for product in found[::2]], found[1::2]


def worst(found: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """The largest error, as a share of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", HALVES)
def test_stored_blocks_are_moved_over_number_for_number(name: str) -> None:
    kind = GGMLType[name]
    raw = stored_rows(kind, 150, 1024)
    carrier, packed = carrier_of(kind), transcode(kind, raw, 1024)
    assert carrier is not None
    found, expected = dequantize(packed, 1024), of_ggml(kind, raw)
    if carrier.correction:
        # minimum + middle * scale is rounded once more than ggml rounds; of Q4_1 and others it happens to be exact
        peak = np.abs(expected).reshape(150, -1, carrier.block).max(-1, keepdims=True)
        error = np.abs(found - expected).reshape(peak.shape[0], -1, carrier.block)
        scale = np.abs(packed.scales)[..., None] * 2 ** (carrier.bits - 1)
        assert (error <= 2.0**-22 * np.maximum(peak, scale)).all()
    else:
        np.testing.assert_array_equal(found, expected)
    assert carrier.nbytes((150, 1024)) == sum(array.nbytes for array in packed if array is not None)


def test_every_scale_of_mxfp4_is_moved_over() -> None:
    raw = np.zeros((254, 17), np.uint8)
    raw[:, 0], raw[:, 1:] = np.arange(254), np.arange(16) * 17
    packed = transcode(GGMLType.MXFP4, raw, 32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(dequantize(packed, 32), of_ggml(GGMLType.MXFP4, raw))


def test_only_types_with_an_exact_form_have_a_carrier() -> None:
    assert {kind.name for kind in GGMLType if carrier_of(kind) is not None} == set(HALVES)
    with pytest.raises(Unsupported, match="IQ3_S has no exact form"):
        transcode(GGMLType.IQ3_S, np.zeros((1, 110), np.uint8), 256)
    with pytest.raises(InvalidParameter, match=r"\(2, 33\) are no rows of 64 Q8_0"):
        transcode(GGMLType.Q8_0, np.zeros((2, 33), np.uint8), 64)


@pytest.mark.parametrize("bits", get_args(Literal[4, 8]))
@pytest.mark.parametrize("block", BLOCKS)
def test_a_carrier_has_a_name(bits: Literal[4, 8], block: int) -> None:
    assert Carrier(bits, block).name == f"INT{bits}/{block}"
    assert Carrier(bits, block, correction=True).name == f"INT{bits}/{block}+min"
    assert Carrier(4, block, zero_points=True).name == f"INT4/{block}+zp"


@pytest.mark.parametrize("wrong", [(5, 32), (4, 48), (8, 32, True), (4, 32, True, True)])
def test_a_carrier_that_no_kernel_reads_is_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidParameter, match=r"there is no such carrier|zero points go with 4 bits"):
        Carrier(*wrong)


def test_rows_must_be_whole_blocks() -> None:
    carrier = Carrier(4, 32)
    carrier.check((7, 64))
    for shape in ((64, 40), (3, 0), ()):
        with pytest.raises(InvalidParameter, match="no whole blocks of 32"):
            carrier.check(shape)
    with pytest.raises(InvalidParameter, match="rows of 40 are no whole blocks of 32"):
        quantize(normal(2, 40), carrier)
    with pytest.raises(InvalidParameter, match="rows of 40"):
        QuantizedMatrix("m", [Numbers(normal(2, 40))], carrier)
    with pytest.raises(InvalidParameter, match="minima come from stored blocks"):
        quantize(normal(2, 64), Carrier(4, 32, correction=True))


def by_onnxruntime(rows: NDArray[np.float32], carrier: Carrier) -> Packed:
    """What ONNX Runtime's own quantizer makes of them."""
    state = pytest.importorskip("onnxruntime.capi._pybind_state")
    (n, columns), bits = rows.shape, carrier.bits
    count = columns // carrier.block
    data = np.zeros((n, count, carrier.block * bits // 8), np.uint8)
    scales, points = np.zeros(n * count, np.float32), np.zeros(n * -(-count * bits // 8), np.uint8)
    function = state.quantize_matmul_4bits if bits == 4 else state.quantize_matmul_8bits
    symmetric = not carrier.zero_points
    function(data, np.ascontiguousarray(rows.T), scales, points, carrier.block, n, columns, symmetric)
    return Packed(data, scales.reshape(n, count), None if symmetric else points.reshape(n, -1))


CARRIERS = [
    Carrier(4, 32),
    Carrier(4, 32, True),
    Carrier(4, 16),
    Carrier(4, 128),
    Carrier(4, 128, True),
    Carrier(8, 32),
]


def dequantize(packed: Packed, columns: int) -> NDArray[np.float32]:
    """The rows (n, columns) that the operators compute with: (q - z) * scale + correction, in float32."""
    n, count, width = packed.data.shape
    bits = 8 * width * count // columns
    codes = packed.data if bits == 8 else unpaired(packed.data)
    zero: NDArray[np.float32] | float = 2.0 ** (bits - 1)
    if packed.zero_points is not None:
        zero = unpaired(packed.zero_points)[:, :count, None].astype(np.float32)
    values = (codes.astype(np.float32) - zero) * packed.scales[..., None]
    if packed.correction is not None:
        values += packed.correction[..., None]
    return values.reshape(n, columns)


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.name)
def test_rounding_errs_less_than_onnxruntime_s_own(carrier: Carrier, smollm2: Path) -> None:
    source = GGUF(smollm2)
    try:
        real = source.tensors["blk.3.ffn_up.weight"].rows(slice(0, 256))[:, :512]
    finally:
        source.close()
    heavy = np.random.default_rng(2).standard_t(3, size=(200, 512)).astype(np.float32)
    for rows in (normal(200, 512), heavy, np.ascontiguousarray(real)):
        ours = ((dequantize(quantize(rows, carrier), 512) - rows) ** 2).mean()
        theirs = ((dequantize(by_onnxruntime(rows, carrier), 512) - rows) ** 2).mean()
        assert 0 < ours < 0.99 * theirs


@pytest.mark.parametrize("carrier", [Carrier(4, 32), Carrier(4, 32, True), Carrier(8, 16)], ids=lambda c: c.name)
def test_importance_moves_the_error_to_where_it_costs_less(carrier: Carrier) -> None:
    rows = normal(150, 512)
    importance = np.random.default_rng(3).random(512).astype(np.float32) ** 6
    importance[:32] = 0  # no input there: any scale would do, but the weights stay about what they are
    plain, weighted = (dequantize(quantize(rows, carrier, each), 512) - rows for each in (None, importance))
    assert (weighted**2 * importance).mean() < 0.95 * (plain**2 * importance).mean()
    assert (weighted[:, :32] ** 2).mean() < 1.01 * (plain[:, :32] ** 2).mean()
    np.testing.assert_array_equal(
        quantize(rows, carrier, importance * np.float32(2.0**100)).data, quantize(rows, carrier, importance).data
    )
    assert np.isfinite(quantize(rows, carrier, importance * 0).scales).all()
    for wrong in (importance[1:], -importance, importance * np.nan):
        with pytest.raises(InvalidParameter, match="importance"):
            quantize(rows, carrier, wrong)


@settings(max_examples=60)
@given(
    st.integers(0, 7), st.integers(1, 5), st.sampled_from(BLOCKS), st.sampled_from([(4, False), (4, True), (8, False)]),
    st.sampled_from([1e-38, 1e-20, 1.0, 1e20, 5e37]), st.integers(0, 99), st.booleans(),
    st.sampled_from(["normal", "positive", "constant", "zero", "spike"]),
)  # fmt: skip
def test_a_weight_is_off_by_little_whatever_its_block_holds(
    n: int, count: int, block: int, kind: tuple[Literal[4, 8], bool], size: float, seed: int, weigh: bool, shape: str
) -> None:
    carrier = Carrier(kind[0], block, kind[1])
    columns = count * block
    rows = np.clip(normal(n, columns, seed=seed), -3, 3)
    if shape == "positive":
        rows = np.abs(rows) + 1
    elif shape == "constant":
        rows[:] = rows[:, :1]
    elif shape == "zero":
        rows[:] = 0
    elif shape == "spike":
        rows[:, 1:] *= 1e-6
    rows = (rows * np.float32(size)).astype(np.float32)
    packed = quantize(rows, carrier, np.linspace(0, 1, columns, dtype=np.float32) if weigh else None)
    found = dequantize(packed, columns)
    peak = np.abs(rows).reshape(n, count, block).max(-1).repeat(block, -1)
    # a step is at most a seventh of the peak (a range of two peaks in 15 steps, with zero points); the range may be cut
    allowed = peak * {4: 0.45, 8: 0.02}[carrier.bits] + SUBNORMAL
    assert packed.data.shape == (n, count, block * carrier.bits // 8)
    assert packed.scales.shape == (n, count)
    assert (np.abs(found.astype(np.float64) - rows) <= allowed).all()
    if shape in ("constant", "zero"):
        np.testing.assert_allclose(found, rows, rtol=1e-5, atol=SUBNORMAL)
    assert carrier.nbytes((n, columns)) == sum(array.nbytes for array in packed if array is not None)


@pytest.mark.parametrize("level", get_args(Level))
@pytest.mark.parametrize("name", HALVES)
def test_onnxruntime_multiplies_and_looks_up_stored_blocks(name: str, level: Level, tmp_path: Path) -> None:
    kind, columns = GGMLType[name], 768
    first, second = (
        Blocks(kind, stored_rows(kind, 41, columns), columns),
        Blocks(kind, stored_rows(kind, 30, columns, 1), columns),
    )
    carrier = carrier_of(kind)
    assert carrier is not None
    assert lossless(first, carrier)
    matrix = QuantizedMatrix("w", [first, second], carrier, accuracy_level=level)
    assert matrix.shape == (71, columns)
    x, ids, bias = normal(2, 3, columns), np.asarray([[0, 70, 41], [40, 3, 3]]), normal(71, seed=5)
    (product,), (rows,) = run(tmp_path, [matrix], x, ids, bias)
    weights = np.concatenate([tensor.rows(slice(None)) for tensor in (first, second)])
    expected = x.astype(np.float64) @ weights.T.astype(np.float64) + bias
    assert worst(product, expected) < (1e-5 if level == 0 else 0.015)
    assert worst(rows, weights[ids].astype(np.float64)) < 4e-7
    if not carrier.correction and not (carrier.bits == 8 and level == 0):
        np.testing.assert_array_equal(rows, weights[ids])
    assert first.reads == (2 if carrier.bits == 8 and level == 0 else 1)


@pytest.mark.parametrize("level", get_args(Level))
@pytest.mark.parametrize(
    "carrier", [*CARRIERS, Carrier(4, 16, True), Carrier(4, 256), Carrier(8, 64)], ids=lambda c: c.name
)
def test_onnxruntime_multiplies_and_looks_up_rounded_rows(carrier: Carrier, level: Level, tmp_path: Path) -> None:
    columns = carrier.block * 3  # an odd number of blocks: the last zero point of a row is alone in its byte
    values = normal(7, 5, columns, seed=9)
    matrix = QuantizedMatrix("w", [Numbers(values)], carrier, accuracy_level=level)
    x, ids = normal(4, columns), np.asarray([[34, 0, 17]])
    (product,), (rows,) = run(tmp_path, [matrix], x, ids)
    weights = dequantize(quantize(values.reshape(35, columns), carrier), columns)
    assert worst(product, x.astype(np.float64) @ weights.T.astype(np.float64)) < (1e-5 if level == 0 else 0.015)
    assert worst(rows, weights[ids].astype(np.float64)) < 2e-7


def test_matrices_of_one_input_share_the_sums_of_its_blocks(tmp_path: Path) -> None:
    kind = GGMLType.Q4_1
    tensors = [Blocks(kind, stored_rows(kind, 8, 64, seed), 64) for seed in (1, 2)]
    carrier = Carrier(4, 32, correction=True)
    matrices = [QuantizedMatrix(f"w{i}", [tensor], carrier, accuracy_level=0) for i, tensor in enumerate(tensors)]
    graph = GraphBuilder("shared")
    graph.input("x", "FLOAT", ["a", 64])
    for matrix in matrices:
        matrix.multiply(graph, "x")
    assert [node.op for node in graph.build().nodes].count("ReduceSum") == 1
    x = normal(3, 64)
    products, _ = run(tmp_path, matrices, x, np.asarray([[1]]))
    for product, tensor in zip(products, tensors, strict=True):
        assert worst(product, x.astype(np.float64) @ tensor.rows(slice(None)).T.astype(np.float64)) < 1e-5


def test_a_tied_matrix_is_stored_once_and_computed_once() -> None:
    tensor = Numbers(normal(64, 64))
    matrix = QuantizedMatrix("embedding", [tensor], Carrier(4, 32, True))
    graph = GraphBuilder("tied")
    graph.input("x", "FLOAT", ["a", 64])
    graph.input("ids", "INT64", ["a"])
    matrix.gather(graph, "ids")
    matrix.multiply(graph, "x")
    stored = {each.name: each for each in graph.build().initializers if each.name.startswith("embedding")}
    assert set(stored) == {"embedding.q", "embedding.scale", "embedding.zp", "embedding.zeros"}
    first = {name: b"".join(piece.tobytes() for piece in each.data()) for name, each in stored.items()}
    assert tensor.reads == 1
    assert all(len(first[name]) == each.nbytes for name, each in stored.items())
    again = {name: b"".join(piece.tobytes() for piece in stored[name].data()) for name in reversed(stored)}
    assert again == first


def test_blocks_of_another_type_are_rounded() -> None:
    tensor = Blocks(GGMLType.Q6_K, stored_rows(GGMLType.Q6_K, 4, 256), 256)
    assert lossless(tensor, Carrier(8, 16))
    assert not lossless(tensor, Carrier(4, 32))
    assert not lossless(Numbers(normal(2, 32)), Carrier(4, 32))
    matrix, graph = QuantizedMatrix("w", [tensor], Carrier(4, 32)), GraphBuilder("rounded")
    matrix.multiply(graph, "x")
    codes = next(iter(graph.build().initializers[0].data()))
    np.testing.assert_array_equal(codes, quantize(tensor.rows(slice(None)), Carrier(4, 32)).data)


def test_weights_that_are_not_finite_are_refused() -> None:
    values = normal(3, 64)
    values[2, 1] = np.nan
    raw = stored_rows(GGMLType.Q4_0, 2, 64)
    raw[1, :2] = np.asarray([np.inf], "<f2").view(np.uint8)
    for tensor in (Numbers(values), Blocks(GGMLType.Q4_0, raw, 64)):
        matrix, graph = QuantizedMatrix("blk.0", [tensor], Carrier(4, 32)), GraphBuilder("damaged")
        matrix.multiply(graph, "x")
        with pytest.raises(InvalidModelFile, match=r"blk\.0"):
            list(graph.build().initializers[0].data())


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="one length"):
        QuantizedMatrix("w", [Numbers(normal(2, 32)), Numbers(normal(2, 64))], Carrier(4, 32))
    level: Any = 2
    with pytest.raises(InvalidParameter, match="accuracy_level"):
        QuantizedMatrix("w", [Numbers(normal(2, 32))], Carrier(4, 32), accuracy_level=level)


def test_the_blocks_of_a_model_are_moved_over(smollm2: Path) -> None:
    source = GGUF(smollm2)
    try:
        kinds = {tensor.type: tensor for tensor in source.tensors.values() if carrier_of(tensor.type) is not None}
        assert kinds
        for kind, tensor in kinds.items():
            carrier = carrier_of(kind)
            assert carrier is not None
            assert lossless(tensor, carrier)
            part = slice(0, 64)
            found = dequantize(transcode(kind, tensor.raw(part), tensor.shape[-1]), tensor.shape[-1])
            expected = tensor.rows(part)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-22 * float(np.abs(expected).max()))
    finally:
        source.close()
