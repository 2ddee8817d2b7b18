"""Matrices of weights and their products, against gguf's dequantization in float64."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from edgellm import _native

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"]
FLOATS = ("F16", "BF16", "F32")
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2)}
SCALES_AT |= {"Q5_1": (0, 2)}
SETS = _native.kernel_sets()


def block(name: str) -> tuple[int, int]:
    return GGML_QUANT_SIZES[GGMLQuantizationType[name]]


def tensor(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Bytes of a tensor, (rows, bytes of a row): any codes, scales about 1 / 50."""
    rng = np.random.default_rng([seed, rows, columns])
    if name in FLOATS:
        numbers = rng.standard_normal((rows, columns)).astype(np.float32) / 50
        return quants.quantize(numbers, GGMLQuantizationType[name]).view(np.uint8).reshape(rows, -1)
    numbers, size = block(name)
    data = rng.integers(0, 256, (rows, columns // numbers, size), np.uint8)
    for at in SCALES_AT.get(name, (0,)):
        scales = (rng.standard_normal(data.shape[:2]) / 50).astype(np.float16)
        data[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def weights(name: str, data: np.ndarray) -> np.ndarray:
    return np.asarray(quants.dequantize(data, GGMLQuantizationType[name]), np.float32).reshape(len(data), -1)


def matrix(name: str, data: np.ndarray, columns: int, **more: object) -> _native.KernelMatrix:
    rows = more.pop("rows", len(data))
    return _native.KernelMatrix(GGMLQuantizationType[name], rows, columns, np.ascontiguousarray(data).ravel(), **more)


def as_read(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of X that a product with the type reads, and the steps between them."""
    if name in FLOATS:
        return x.astype(np.float64), np.zeros(x.shape)
    size = min(block(name)[0], 256)
    blocks = x.reshape(-1, size)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    codes = np.rint(blocks * np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most)))
    scales = np.broadcast_to(most / np.float32(127), codes.shape)
    return (codes.astype(np.float64) * scales).reshape(x.shape), scales.reshape(x.shape).astype(np.float64)


def product(
    name: str, instructions: str, found: _native.KernelMatrix, x: np.ndarray, rows: int, **more: object
) -> np.ndarray:
    y = np.full((len(x), rows), np.float32(np.nan))
    _native.multiply(instructions, found, x, y, **more)
    return y


def inputs(count: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).standard_normal((count, columns)).astype(np.float32)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", TYPES)
def test_products(name: str, instructions: str) -> None:
    numbers = block(name)[0]
    shapes = [(1, 1, 1), (16, 3, 2), (35, 1, 3), (53, 5, 9), (33, 2, 13), (16, 4, 64)]
    if name in FLOATS:
        shapes = [(1, 1, 1), (35, 33, 4), (48, 64, 7), (17, 95, 64)]
    for rows, blocks, count in shapes:
        columns = blocks * numbers
        data, x = tensor(name, rows, columns), inputs(count, columns)
        w = weights(name, data).astype(np.float64)
        read, steps = as_read(name, x)
        y = product(name, instructions, matrix(name, data, columns), x, rows)
        rounding = 3e-6 * (np.abs(read) @ np.abs(w).T)
        assert (np.abs(y - read @ w.T) <= rounding).all(), (rows, columns, count)
        assert (np.abs(y - x.astype(np.float64) @ w.T) <= 0.5001 * (steps @ np.abs(w).T) + rounding).all()


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", TYPES)
def test_bits_of_a_row_are_its_own(name: str, instructions: str) -> None:
    rows, columns = 83, 3 * max(block(name)[0], 32)
    data, x = tensor(name, rows, columns), inputs(64, columns)
    found = matrix(name, data, columns)
    alone = np.concatenate([product(name, instructions, found, x[i : i + 1], rows) for i in range(64)])
    for count in [*range(2, 28), 64]:
        assert (product(name, instructions, found, x[-count:], rows) == alone[-count:]).all(), count
    for count in (1, 5, 30):
        parts = np.full((count, rows), np.float32(np.nan))
        for first, last in ((0, 1), (1, 4), (4, 5), (5, 6)):
            _native.multiply(instructions, found, x[:count], parts, first=first, last=last)
        assert (parts == alone[:count]).all(), count


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "F16"])
def test_more_rows_than_a_cache_holds(name: str, instructions: str) -> None:
    rows, columns, count = 35, 8192, 61
    data, x = tensor(name, rows, columns), inputs(count, columns)
    found, w = matrix(name, data, columns), weights(name, data).astype(np.float64)
    y = product(name, instructions, found, x, rows)
    read = as_read(name, x)[0]
    assert (np.abs(y - read @ w.T) <= 3e-6 * (np.abs(read) @ np.abs(w).T)).all()
    for i in (0, 23, 24, 60):
        assert (product(name, instructions, found, x[i : i + 1], rows) == y[i]).all()


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "F16"])
def test_bias_and_sums(name: str, instructions: str) -> None:
    rows, columns = 37, 256
    found, x = matrix(name, tensor(name, rows, columns), columns), inputs(14, columns)
    bias = inputs(1, rows, 1)[0]
    plain = product(name, instructions, found, x, rows)
    assert (product(name, instructions, found, x, rows, bias=bias) == plain + bias).all()
    y = inputs(14, rows, 2)
    expected = y + 0.5 * (plain + bias).astype(np.float64)
    _native.multiply(instructions, found, x, y, bias=bias, scale=0.5)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_rows_are_those_of_the_file(name: str) -> None:
    columns = 3 * max(block(name)[0], 32)
    data = tensor(name, 50, columns)
    expected, row = weights(name, data), np.empty(columns, np.float32)
    for order in (None, np.random.default_rng(0).permutation(50)[:21], np.arange(7, 40)):
        rows = 50 if order is None else len(order)
        found = matrix(name, data, columns, rows=rows, order=order, threads=2)
        for i in range(rows):
            found.read_row(i, row)
            assert (row == expected[i if order is None else order[i]]).all()


@pytest.mark.parametrize("name", TYPES)
def test_memory_is_the_file_and_three_hundredths(name: str) -> None:
    data = tensor(name, 64, 512)
    assert data.nbytes <= matrix(name, data, 512).bytes <= 1.03 * data.nbytes


@pytest.mark.parametrize("name", TYPES)
def test_what_is_not_finite_is_an_error(name: str) -> None:
    columns = max(block(name)[0], 32)
    good = tensor(name, 20, columns)
    bad_numbers = {"F32": (0x7F800000, 0xFFC00001), "BF16": (0x7F80, 0xFF81)}.get(name, (0x7C00, 0xFC00, 0x7E01))
    for bad in bad_numbers:
        for at in SCALES_AT.get(name, (0,)):
            data = good.copy()
            size = 4 if name == "F32" else 2
            data[17, at : at + size] = np.frombuffer(bad.to_bytes(size, "little"), np.uint8)
            with pytest.raises(ValueError, match="not finite"):
                matrix(name, data, columns, threads=2)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_are_an_error_or_numbers(name: str, instructions: str) -> None:
    rng = np.random.default_rng(5)
    columns = max(block(name)[0], 32)
    x = np.full((3, columns), np.float32(np.inf))
    x[1], x[2] = np.nan, 1
    found = 0
    for _ in range(40):
        data = rng.integers(0, 256, (2, columns // block(name)[0] * block(name)[1]), np.uint8)
        if name in FLOATS:  # few of them would have no bad number
            data[:, 1 if name != "F32" else 3 :: 2 if name != "F32" else 4] &= 0xBB
        try:
            y = product(name, instructions, matrix(name, data, columns), x, 2)
        except ValueError:
            continue
        found += 1
        expected = as_read(name, x[2:])[0] @ weights(name, data).astype(np.float64).T
        span = np.abs(weights(name, data)).sum(axis=1)
        assert (np.abs(y[2] - expected[0]) <= 1e-5 * span).all()
    assert found > 10


def test_shapes_that_cannot_be_are_errors() -> None:
    data = np.zeros(4096, np.uint8)
    q4_0 = GGMLQuantizationType.Q4_0
    for type, rows, columns in (
        (q4_0, 4, 48),
        (q4_0, 0, 32),
        (q4_0, 4, 0),
        (q4_0, 1000, 32),
        (99, 4, 32),
        (q4_0, 4, 2**62),
    ):
        with pytest.raises(ValueError, match=r"matrix|rows|match|type"):
            _native.KernelMatrix(type, rows, columns, data)
    with pytest.raises(ValueError, match=r"matrix|rows|match|type"):
        _native.KernelMatrix(q4_0, 2, 32, data, order=np.array([0, -1]))
    found = _native.KernelMatrix(q4_0, 4, 32, data)
    for x, y in (((2, 64), (2, 4)), ((2, 32), (3, 4)), ((2, 32), (2, 5))):
        with pytest.raises(ValueError, match=r"matrix|rows|match|type"):
            _native.multiply(SETS[0], found, np.zeros(x, np.float32), np.zeros(y, np.float32))
    with pytest.raises(ValueError, match=r"matrix|rows|match|type"):
        found.read_row(4, np.zeros(32, np.float32))
    for wrong in (np.zeros((2, 32)), np.zeros((2, 64), np.float32)[:, ::2]):  # whose copy would be written into
        with pytest.raises(TypeError):
            _native.multiply(SETS[0], found, np.zeros((2, 32), np.float32), wrong[:, :4])
        with pytest.raises(TypeError):
            found.read_row(0, wrong[0])
    for bytes_of in (data.astype(np.int64), data[::2]):
        with pytest.raises(TypeError):
            _native.KernelMatrix(q4_0, 4, 32, bytes_of)
    with pytest.raises(TypeError):
        _native.KernelMatrix(q4_0, 2, 32, data, order=np.array([0.5, 1.5]))


def test_tiles_that_are_not_there_are_not_computed() -> None:
    found = _native.KernelMatrix(GGMLQuantizationType.Q4_0, 4, 32, np.zeros(72, np.uint8))
    y = np.ones((2, 4), np.float32)
    for first, last in ((1, 2), (2**31, 2**32), (2**63, 2**64 - 1), (1, 0)):
        for name in SETS:
            _native.multiply(name, found, np.ones((2, 32), np.float32), y, first=first, last=last)
    assert (y == 1).all()
