"""The kernels over rows of floats, of every instruction set of this machine, against numpy in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm import _native

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SETS = _native.kernel_sets()
SIZES = [1, 2, 15, 16, 17, 31, 64, 100, 576, 1003]
STRANGE = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 1.0, -20.0, 90.0, -90.0, 105.0, -105.0, 3e38, -3e38, math.inf, -math.inf]

pytestmark = pytest.mark.parametrize("kernels", SETS)
sizes = pytest.mark.parametrize("n", SIZES)


def normal(n: int, seed: int, scale: float = 1.0) -> Floats:
    """So many normal numbers, four bytes behind a multiple of 64."""
    memory = np.zeros(n + 32, np.float32)
    start = (-memory.ctypes.data % 64) // 4 + 1
    row = memory[start : start + n]
    row[:] = np.random.default_rng(seed).normal(0, scale, n)
    return row


def guarded(n: int) -> tuple[Floats, Floats]:
    """Where a result goes, and that with what lies around it, which is 7."""
    around = np.full(n + 40, 7, np.float32)
    return around[17 : 17 + n], around


def units(found: Floats, expected: Doubles) -> float:
    """The largest error in units in the last place of what is expected, no unit being below those of 1e-30."""
    unit = np.spacing(np.maximum(np.abs(expected), 1e-30).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - expected) / unit))


def erfc(x: Doubles) -> Doubles:
    return np.array([math.erfc(v) for v in x])


def act(gate: str, x: Doubles) -> Doubles:
    if gate == "silu":
        return x / (1 + np.exp(-x))
    if gate == "gelu":
        return x / 2 * erfc(-x / math.sqrt(2))
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@sizes
def test_rms_norm(kernels: str, n: int) -> None:
    x, weight = normal(n, 1, 3), normal(n, 2)
    y, around = guarded(n)
    scale = 1 / math.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5)
    _native.rms_norm(kernels, x, weight, 1e-5, y)
    assert units(y, x * scale * weight.astype(np.float64)) < 8
    assert np.all(around[:17] == 7)
    assert np.all(around[17 + n :] == 7)
    _native.rms_norm(kernels, x, None, 1e-5, y)
    assert units(y, x * scale) < 8
    _native.rms_norm(kernels, x, None, 1e-5, x)
    assert np.array_equal(x, y)


@sizes
def test_centered(kernels: str, n: int) -> None:
    x = normal(n, 4, 3) + np.float32(2)
    y, around = guarded(n)
    _native.centered(kernels, x, y)
    np.testing.assert_allclose(y, x - np.mean(x.astype(np.float64)), rtol=0, atol=3e-6)
    assert np.all(around[:17] == 7)
    assert np.all(around[17 + n :] == 7)
    _native.centered(kernels, x, x)
    assert np.array_equal(x, y)


def test_the_norm_of_zeros_and_of_what_is_no_number(kernels: str) -> None:
    y = np.ones(40, np.float32)
    _native.rms_norm(kernels, np.zeros(40, np.float32), None, 1e-6, y)
    assert np.all(y == 0)
    x = normal(40, 3)
    x[33] = np.nan
    _native.rms_norm(kernels, x, None, 1e-6, y)
    assert np.all(np.isnan(y))


@sizes
@pytest.mark.parametrize("gate", ["silu", "gelu_tanh", "gelu"])
def test_gates(kernels: str, gate: str, n: int) -> None:
    x, up = normal(n, 4, 3), normal(n, 5)
    y, around = guarded(n)
    _native.gated(kernels, gate, x, up, y)
    assert units(y, act(gate, x.astype(np.float64)) * up) < 60  # of what is small on the negative side
    assert np.all(around[:17] == 7)
    assert np.all(around[17 + n :] == 7)
    _native.gated(kernels, gate, x, up, x)
    assert np.array_equal(x, y)


@pytest.mark.parametrize(("gate", "most"), [("silu", 4), ("gelu_tanh", 16), ("gelu", 8)])
def test_gates_are_near_what_they_stand_for(kernels: str, gate: str, most: float) -> None:
    x = np.linspace(-2, 100, 100_001, dtype=np.float32)
    y = np.empty_like(x)
    _native.gated(kernels, gate, x, None, y)
    assert units(y, act(gate, x.astype(np.float64))) < most


@pytest.mark.parametrize("gate", ["silu", "gelu_tanh", "gelu"])
def test_gates_of_strange_numbers(kernels: str, gate: str) -> None:
    x = np.array([*STRANGE[:-1], math.nan], np.float32)
    y = np.empty_like(x)
    _native.gated(kernels, gate, x, np.ones_like(x), y)
    with np.errstate(over="ignore"):
        expected = act(gate, x.astype(np.float64)).astype(np.float32)
    assert np.allclose(y, expected, rtol=1e-5, atol=1e-37, equal_nan=True)


def test_silu_far_below_0_is_the_exponential(kernels: str) -> None:
    """x e^x of -80 to -20: what is behind the gates is e^x within a few units."""
    x = np.linspace(-80, -20, 50_001, dtype=np.float32)
    y = np.empty_like(x)
    _native.gated(kernels, "silu", x, np.ones_like(x), y)
    assert float(np.max(np.abs(y / act("silu", x.astype(np.float64)) - 1))) < 3.5e-7


@sizes
def test_rotation(kernels: str, n: int) -> None:
    head, angle = normal(2 * n + 5, 6), normal(n, 7, 100)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = head[:n].astype(np.float64), head[n : 2 * n].astype(np.float64)
    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin, head[2 * n :]])
    _native.rotate(kernels, head, cos, sin)
    assert np.max(np.abs(head - expected)) < 1e-6
    assert np.array_equal(head[2 * n :], expected[2 * n :])


def test_soft_caps_are_near_tanh(kernels: str) -> None:
    small = np.geomspace(1e-30, 20, 60_001, dtype=np.float32)
    for x in (small, -small):
        y = x.copy()
        _native.soft_cap(kernels, y, 1.0)
        assert units(y, np.tanh(x.astype(np.float64))) < 4


@sizes
def test_soft_caps(kernels: str, n: int) -> None:
    x = normal(n, 8, 60)
    expected = 50 * np.tanh(x.astype(np.float64) / 50)
    _native.soft_cap(kernels, x, 50.0)
    assert units(x, expected) < 6


def test_soft_caps_of_strange_numbers(kernels: str) -> None:
    x = np.array([*STRANGE, math.nan], np.float32)
    expected = 30 * np.tanh(x.astype(np.float64) / 30)
    _native.soft_cap(kernels, x, 30.0)
    assert np.allclose(x, expected, rtol=1e-6, atol=1e-37, equal_nan=True)


@sizes
def test_scaled(kernels: str, n: int) -> None:
    x, before = normal(n, 9), normal(n, 10)
    y, around = guarded(n)
    _native.scaled(kernels, x, 0.3, False, y)
    assert np.array_equal(y, x * np.float32(0.3))
    y[:] = before
    _native.scaled(kernels, x, 0.3, True, y)
    exact = before + x.astype(np.float64) * float(np.float32(0.3))
    assert np.max(np.abs(y - exact)) < 3e-7
    assert np.all(around[:17] == 7)
    assert np.all(around[17 + n :] == 7)


BLOCKS = {
    "bytes32": np.dtype([("codes", "i1", 32), ("scale", "f4"), ("sum", "i4")]),
    "bytes256": np.dtype(
        [
            ("codes", "i1", 256), ("sums", "i4", 16), ("high_16", "i1", 16), ("low_16", "i1", 16),
            ("high_32", "i1", 8), ("low_32", "i1", 8), ("scale", "f4"),
        ]
    ),
}  # fmt: skip


def prepared(kernels: str, form: str, x: Floats, step: int = 5) -> NDArray[np.void]:
    return np.frombuffer(_native.prepare(kernels, form, x, step), BLOCKS[form]).reshape(len(x), -1)


@pytest.mark.parametrize("form", BLOCKS)
def test_rows_in_bytes(kernels: str, form: str) -> None:
    x = np.random.default_rng(11).normal(0, 5, (29, 768)).astype(np.float32)
    x[3] = 0
    x[4, :256] = 1e-38
    x[5] = 4  # every code is the largest
    x[6] = -4
    blocks = prepared(kernels, form, x)
    size = blocks["codes"].shape[2]
    cut = x.reshape(len(x), -1, size).astype(np.float64)
    largest = np.abs(cut).max(2)
    assert np.allclose(blocks["scale"], np.where(largest > 1e-36, largest, 0) / 127, rtol=2e-7, atol=0)
    read = blocks["codes"] * blocks["scale"][..., None].astype(np.float64)
    assert np.all(np.abs(read - cut) <= largest[..., None] / 127 * 0.50001 + 1e-36)
    assert np.abs(blocks["codes"].astype(int)).max() == 127
    sums = blocks["codes"].reshape(len(x), -1, size // 16, 16).astype(int).sum(3)
    if form == "bytes32":
        assert np.array_equal(blocks["sum"], -8 * sums.sum(2))
        return
    assert np.array_equal(blocks["sums"], -32 * sums)
    assert np.array_equal(64 * blocks["high_16"].astype(int) + blocks["low_16"], sums)
    pairs = sums.reshape(len(x), -1, 8, 2).sum(3)
    assert np.array_equal(64 * blocks["high_32"].astype(int) + blocks["low_32"], pairs)
    assert blocks["low_16"].min() >= 0
    assert blocks["low_32"].min() >= 0


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 25, 37])
def test_a_row_in_bytes_depends_on_nothing_else(kernels: str, form: str, count: int) -> None:
    x = np.random.default_rng(12).normal(0, 5, (count, 512)).astype(np.float32)
    together = prepared(kernels, form, x)
    for row, blocks in zip(x, together, strict=True):
        assert blocks.tobytes() == prepared(kernels, form, row[None]).tobytes()


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_the_scale_of_what_is_no_number_is_none(kernels: str, form: str, strange: float) -> None:
    x = np.ones((1, 512), np.float32)
    x[0, 300] = strange
    blocks = prepared(kernels, form, x)[0]
    bad = 300 // blocks["codes"].shape[1]
    assert math.isnan(blocks["scale"][bad])
    assert np.isfinite(np.delete(blocks["scale"], bad)).all()


def test_what_does_not_fit_is_refused(kernels: str) -> None:
    x, short = np.ones(32, np.float32), np.ones(31, np.float32)
    for call in (
        lambda: _native.rms_norm(kernels, x, None, 1e-5, short),
        lambda: _native.rms_norm(kernels, x, short, 1e-5, x),
        lambda: _native.centered(kernels, x, short),
        lambda: _native.gated(kernels, "silu", x, short, x),
        lambda: _native.gated(kernels, "relu", x, x, x),
        lambda: _native.rotate(kernels, x, short, short),
        lambda: _native.scaled(kernels, x, 1.0, True, short),
        lambda: _native.prepare(kernels, "bytes256", x[None], 1),
        lambda: _native.prepare(kernels, "floats", x[None], 1),
        lambda: _native.scaled(f"{kernels}?", x, 1.0, True, x),
    ):
        with pytest.raises(ValueError, match=r"numbers|gate|rotated|prepared|no kernels"):
            call()


@pytest.mark.parametrize("y", [np.ones(32), np.ones(64, np.float32)[::2]], ids=["float64", "every other"])
def test_nothing_is_written_into_a_copy(kernels: str, y: NDArray[np.float32]) -> None:
    x = np.ones(32, np.float32)
    for call in (
        lambda: _native.rms_norm(kernels, x, None, 1e-5, y),
        lambda: _native.gated(kernels, "silu", x, x, y),
        lambda: _native.rotate(kernels, y, x[:8], x[:8]),
        lambda: _native.soft_cap(kernels, y, 2.0),
        lambda: _native.scaled(kernels, x, 2.0, False, y),
    ):
        with pytest.raises(TypeError):
            call()
