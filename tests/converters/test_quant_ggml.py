"""The quantizers of ggml called directly, against the `gguf` package. llama.cpp's bytes: see test_quant_recipes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.quant import ggml
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType

KINDS = sorted(ggml.QUANTIZED | ggml.FLOATS)
# relative error of Gaussian rows, with some room; the order is the point
WORST = {
    "F32": 0.0, "F16": 3e-4, "BF16": 3e-3, "Q8_0": 0.006, "Q6_K": 0.02, "Q5_K": 0.04, "Q5_1": 0.045, "Q5_0": 0.047,
    "Q4_K": 0.08, "IQ4_NL": 0.085, "IQ4_XS": 0.085, "Q4_1": 0.085, "Q4_0": 0.095, "Q3_K": 0.17, "Q2_K": 0.33,
}  # fmt: skip


def gaussian(n: int = 16, columns: int = 512) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((n, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_round_trip_against_the_gguf_package(kind: GGMLType) -> None:
    rows = gaussian()
    stored = ggml.quantize(kind, rows)
    assert stored.shape == (16, kind.nbytes((512,)))
    back = ggml.dequantize(kind, stored, 512)
    theirs = gguf.dequantize(stored, gguf.GGMLQuantizationType(kind))
    np.testing.assert_allclose(back, theirs.reshape(16, 512), rtol=1e-6, atol=1e-7)
    assert np.linalg.norm(back - rows) / np.linalg.norm(rows) <= WORST[kind.name]


@pytest.mark.parametrize("kind", [GGMLType.Q8_0, GGMLType.Q4_0], ids=lambda kind: kind.name)
def test_the_gguf_package_quantizes_alike(kind: GGMLType) -> None:
    rows = gaussian()
    theirs = gguf.quantize(rows, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(ggml.quantize(kind, rows), theirs)


@pytest.mark.parametrize("kind", [GGMLType.IQ2_XXS, GGMLType.IQ3_S, GGMLType.MXFP4, GGMLType.TQ1_0], ids=str)
def test_types_that_are_only_read(kind: GGMLType) -> None:
    raw = np.random.default_rng(2).integers(0, 60, kind.nbytes((4, 256)), np.uint8)
    theirs = gguf.dequantize(raw.reshape(4, -1), gguf.GGMLQuantizationType(kind))
    np.testing.assert_allclose(ggml.dequantize(kind, raw, 256), theirs, rtol=1e-6, atol=1e-9)
    with pytest.raises(Unsupported, match=f"{kind.name} is not offered"):
        ggml.quantize(kind, gaussian(1, 256))


@pytest.mark.parametrize("kind", [GGMLType.Q4_K, GGMLType.Q4_0, GGMLType.IQ4_XS], ids=lambda kind: kind.name)
def test_importance_lowers_the_error_where_it_says(kind: GGMLType) -> None:
    rows = gaussian(64)
    importance = (np.random.default_rng(3).standard_normal(512) ** 4).astype(np.float32)

    def cost(weights: NDArray[np.float32] | None) -> float:
        error = ggml.dequantize(kind, ggml.quantize(kind, rows, weights), 512) - rows
        return float((importance * error**2).sum())

    assert cost(importance) < 0.9 * cost(None)


def test_not_a_number_stays_that() -> None:
    rows = np.array([[0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x3F800000]], np.uint32).view(np.float32)
    for kind in (GGMLType.BF16, GGMLType.F16):
        back = ggml.dequantize(kind, ggml.quantize(kind, rows), 4)
        assert np.isnan(back[0, :3]).all()
        assert back[0, 3] == 1
    quiet = ggml.quantize(GGMLType.BF16, rows).view(np.uint16)
    assert (quiet[0, :3] & 0x7FC0 == 0x7FC0).all()


def every_kind_of_float() -> NDArray[np.float32]:
    """Random bit patterns, ties, subnormals, the ends of the range."""
    patterns = np.random.default_rng(4).integers(0, 1 << 32, 20_000, np.uint64).astype(np.uint32)
    ties = (np.arange(2000, dtype=np.uint32) << 16) | 0x8000
    ends = np.array([0, 1, 0x8000, 0x18000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x80000000], np.uint32)
    return np.concatenate([patterns, ties, ends]).view(np.float32)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.BF16], ids=lambda kind: kind.name)
def test_floats_round_as_ggml_does(kind: GGMLType) -> None:
    rows = every_kind_of_float()
    if kind is GGMLType.F16:
        rows = rows[np.isinf(rows) | (np.abs(rows) < 65504)]
    in_range = rows.reshape(1, -1)
    theirs = np.empty((1, in_range.shape[1]), np.uint16)
    ggml.quantize_at(kind, in_range.ctypes.data, theirs.ctypes.data, in_range.shape, 0)
    np.testing.assert_array_equal(ggml.quantize(kind, in_range).view(np.uint16), theirs)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidModelFile, match=r'magnitude 70000 does not fit F16; choose "bf16"'):
        ggml.quantize(GGMLType.F16, np.array([[1.0, -7e4]], np.float32))
    large = np.full((1, 32), 3e38, np.float32)
    with pytest.raises(InvalidModelFile, match="Q8_0"):
        ggml.quantize(GGMLType.Q8_0, large)
    with pytest.raises(InvalidParameter, match="rows of 300 cannot be Q4_K: it takes multiples of 256"):
        ggml.quantize(GGMLType.Q4_K, gaussian(1, 300))
    with pytest.raises(InvalidParameter, match=r"importance has the shape \(3,\), rows of 256"):
        ggml.quantize(GGMLType.Q4_K, gaussian(1, 256), np.ones(3, np.float32))
    with pytest.raises(InvalidParameter, match="33 bytes are no whole rows of 34"):
        ggml.dequantize(GGMLType.Q8_0, np.zeros(33, np.uint8), 32)


def test_a_type_that_is_no_weight() -> None:
    with pytest.raises(Unsupported, match="I32"):
        ggml.dequantize(GGMLType.I32, np.zeros(32, np.uint8), 8)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(Unsupported, match=r"edgellm\[llamacpp\]"):
        ggml.library_file()


def test_rows_that_are_not_contiguous() -> None:
    wide = gaussian(8, 1024)
    for kind in (GGMLType.Q4_K, GGMLType.BF16, GGMLType.F32):
        np.testing.assert_array_equal(
            ggml.quantize(kind, wide[::2, ::2]), ggml.quantize(kind, np.ascontiguousarray(wide[::2, ::2]))
        )


@pytest.mark.parametrize("kind", sorted(ggml.QUANTIZED))
def test_without_the_library_the_same_numbers_are_read(kind: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(int(kind)).normal(size=(7, 512)).astype(np.float32)
    stored = ggml.quantize(kind, rows)
    expected = ggml.dequantize(kind, stored, 512)
    monkeypatch.setattr(ggml, "installed", lambda: False)
    assert np.array_equal(ggml.dequantize(kind, stored, 512), expected)
