"""Attention over pages against numpy in float64, and its bits however the work is cut."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from edgellm import _native

SETS = _native.kernel_sets()
TYPES = ("int16", "int8", "f32")
ALL = 2**63  # a window that sees everything
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Of the attention of one layer. cap: 0 for none."""

    kv_heads: int
    group: int
    size: int
    window: int = ALL
    cap: float = 0.0

    @property
    def scale(self) -> float:
        return float(1 / np.sqrt(self.size))

    def random(self, tokens: int, seed: int) -> tuple[Floats, Floats, Floats]:
        """Queries, keys and values. Some queries look at few keys, others at all."""
        random = np.random.default_rng(seed)
        query = random.standard_normal((tokens, self.kv_heads * self.group, self.size), np.float32)
        key, value = random.standard_normal((2, tokens, self.kv_heads, self.size), np.float32)
        return query * random.choice(np.float32([0.5, 2, 8]), (tokens, 1, 1)), key, value

    def pages(self, kv_type: str, most: int = 100) -> _native.KvPages:
        return _native.KvPages(1, self.kv_heads, self.size, kv_type, most)

    def attend(
        self, name: str, table: _native.KvTable, rows: tuple[Floats, ...], cuts: list[int], reverse: bool = False
    ) -> Floats:
        """What the tokens of `rows` get behind those of the table, in steps that end at the cuts."""
        query, key, value = rows
        out = np.full_like(query, np.nan)
        for start, stop in itertools.pairwise([0, *cuts, len(query)]):
            if start < stop:
                parts = (np.ascontiguousarray(each[start:stop]) for each in (query, key, value))
                _native.attend(name, table, 0, *parts, self.window, self.scale, self.cap, out[start:stop], reverse)
        return out


def as_kept(kv_type: str, x: Floats, key: bool) -> NDArray[np.float64]:
    """The numbers that the cache has for these."""
    wide = x.astype(np.float64)
    if kv_type == "f32":
        return wide
    largest = np.abs(x).max(-1, keepdims=True)
    if kv_type == "int8":
        scale = largest / np.float32(127)
    elif key:
        scale = (np.sqrt((wide**2).sum(-1, keepdims=True)) / 32700).astype(np.float32)
    else:
        scale = largest / np.float32(32767)
    return np.rint(x * (1 / scale)).astype(np.float64) * scale


def expected(shape: Shape, kv_type: str, rows: tuple[Floats, ...]) -> NDArray[np.float64]:
    """Causal attention of all tokens."""
    query, key, value = rows[0].astype(np.float64), as_kept(kv_type, rows[1], True), as_kept(kv_type, rows[2], False)
    key, value = (np.repeat(each, shape.group, axis=1) for each in (key, value))
    scores = np.einsum("qhd,khd->hqk", query, key) * shape.scale
    if shape.cap:
        scores = shape.cap * np.tanh(scores / shape.cap)
    back = np.arange(len(query))[:, None] - np.arange(len(query))
    scores = np.where((back >= 0) & (back < shape.window), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out: NDArray[np.float64] = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)
    return out


# The largest error of a result, where values are about 1 and scores up to 30.
ROUNDING = {"int16": 5e-3, "int8": 5e-3, "f32": 1e-4}


shapes = st.builds(
    Shape,
    st.integers(1, 2),
    st.integers(1, 8),
    st.sampled_from(range(16, 257, 16)),
    st.sampled_from([1, 7, 32, 100, 256, 257, ALL]),
    st.sampled_from([0.0, 5.0]),
)


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", SETS)
@settings(max_examples=10, deadline=None)
@given(
    shape=shapes, tokens=st.integers(1, 400), cuts=st.lists(st.integers(0, 400), max_size=4), seed=st.integers(0, 99)
)
def test_against_float64(name: str, kv_type: str, shape: Shape, tokens: int, cuts: list[int], seed: int) -> None:
    rows = shape.random(tokens, seed)
    cuts = sorted(cut for cut in cuts if cut < tokens)
    table = _native.KvTable(shape.pages(kv_type))
    found = shape.attend(name, table, rows, cuts)
    assert table.length == tokens
    np.testing.assert_allclose(found, expected(shape, kv_type, rows), rtol=0, atol=ROUNDING[kv_type])


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=10, deadline=None)
@given(
    kv_type=st.sampled_from(TYPES),
    shape=shapes,
    tokens=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 400), max_size=40),
    reverse=st.booleans(),
)
def test_bits_depend_on_nothing_else(
    name: str, kv_type: str, shape: Shape, tokens: int, cuts: list[int], reverse: bool
) -> None:
    rows = shape.random(tokens, 1)
    cuts = sorted(cut for cut in cuts if cut < tokens)
    whole = shape.attend(name, _native.KvTable(shape.pages(kv_type)), rows, [])
    # Pages that others used before, where every cell is as large as it can be.
    pool = shape.pages(kv_type)
    first = _native.KvTable(pool)
    shape.attend(name, first, tuple(np.full_like(each, 3e38) * np.sign(each) for each in shape.random(640, 2)), [])
    first.close()
    cut = shape.attend(name, _native.KvTable(pool), rows, cuts, reverse)
    assert cut.tobytes() == whole.tobytes()


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_one_token_at_a_time(name: str, kv_type: str) -> None:
    for shape in (Shape(2, 4, 64), Shape(1, 3, 32, window=300, cap=30.0)):
        rows = shape.random(530, 3)
        whole = shape.attend(name, _native.KvTable(shape.pages(kv_type)), rows, [])
        single = shape.attend(name, _native.KvTable(shape.pages(kv_type)), rows, list(range(1, 530)))
        assert single.tobytes() == whole.tobytes()


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_forks_and_restored_state_go_on_alike(name: str, kv_type: str) -> None:
    shape = Shape(2, 2, 48)
    pool = shape.pages(kv_type)
    rows = shape.random(400, 4)
    table = _native.KvTable(pool)
    whole = shape.attend(name, table, rows, [])
    fork = table.fork(301)  # within a page, in which the first one has more
    restored = _native.KvTable(pool)
    for start, stop in ((0, 100), (100, 290), (290, 301)):
        restored.load([table.save(start, stop)], [stop])
    ours = shape.random(60, 5)
    for other in (restored, fork):
        late = tuple(each[301:] for each in rows)
        assert shape.attend(name, other, late, [10]).tobytes() == whole[301:].tobytes()
        other.truncate(301)
    answers = [shape.attend(name, other, ours, []) for other in (restored, fork)]
    assert answers[0].tobytes() == answers[1].tobytes()
    assert table.save(0, 400) == _again(shape, name, kv_type, rows).save(0, 400)


def _again(shape: Shape, name: str, kv_type: str, rows: tuple[Floats, ...]) -> _native.KvTable:
    table = _native.KvTable(shape.pages(kv_type))
    shape.attend(name, table, rows, [7, 350])
    return table


@pytest.mark.parametrize("name", SETS)
def test_keys_behind_the_window_have_no_part(name: str) -> None:
    shape = Shape(1, 4, 64, window=200)
    rows, others = shape.random(700, 6), shape.random(700, 7)
    mixed: Any = [np.concatenate([b[:450], a[450:]]) for a, b in zip(rows, others, strict=True)]
    found = [shape.attend(name, _native.KvTable(shape.pages("int16")), each, [640]) for each in (rows, tuple(mixed))]
    assert found[0][649:].tobytes() == found[1][649:].tobytes()
    assert (found[0][648] != found[1][648]).any()


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_what_is_kept_is_finite(name: str, kv_type: str) -> None:
    shape = Shape(1, 1, 16)
    table = _native.KvTable(shape.pages(kv_type))
    rows = shape.random(32, 8)
    for each in rows[1:]:
        each[3, 0, 5], each[4, 0, 6], each[5, 0, 7] = np.nan, np.inf, -np.inf
        each[6] = 1e-40
    shape.attend(name, table, rows, [])
    kept = np.frombuffer(table.save(0, 32), np.uint8)
    scales = 0 if kv_type == "f32" else 2 * 32 * 16 * np.dtype(kv_type).itemsize
    assert np.isfinite(kept[scales:].view(np.float32)).all()
    assert (kept[scales:].view(np.float32) < 1e12).all() or kv_type == "f32"
    query = np.full_like(rows[0], np.nan)
    query[1:] = rows[0][1:] * 1e30
    found = shape.attend(name, table, (query, *shape.random(32, 9)[1:]), [])
    assert np.isfinite(found).all() or kv_type == "f32"


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_sets_keep_the_same_numbers(name: str, kv_type: str) -> None:
    shape = Shape(2, 1, 80)
    kept = []
    for each in (name, "scalar"):
        table = _native.KvTable(shape.pages(kv_type))
        shape.attend(each, table, shape.random(50, 9), [])
        kept.append(table.save(0, 50))
    assert kept[0] == kept[1]
