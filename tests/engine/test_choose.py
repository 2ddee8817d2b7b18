"""Native code chooses what numpy chooses, from any row and by any plan."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import sampling_numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampling_numpy import packed

from edgellm import _native
from edgellm.backends.base import SamplingPlan, Shift
from edgellm.engine.sampling import FILTERS, choose

SIZES = [1, 2, 5, 31, 33, 63, 64, 65, 127, 128, 200, 1000, 2500]
VALUES = {
    "top_n_sigma": st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 5.0]),
    "top_k": st.sampled_from([1.0, 2.0, 15.0, 40.0, 64.0, 700.0, 10000.0]),
    "typical_p": st.floats(0, 1),
    "top_p": st.floats(0, 1),
    "min_p": st.floats(1e-9, 1),
    "xtc_threshold": st.floats(0, 0.5),
}
POINTS = st.floats(0, 1, exclude_max=True)
KINDS = {
    "normal": lambda row: row,
    "sharp": lambda row: row * 9,
    "flat": lambda row: row * 0.01,
    "whole": np.round,
    "halves": lambda row: np.round(row * 2) / 2,
    "equal": lambda row: row * 0,
    "two": lambda row: np.where(row > 1, 3.0, -0.0),
    "huge": lambda row: row * 1e38,
    "tiny": lambda row: row * 1e-5,
    "ascending": np.sort,
}


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from(SIZES))
    with np.errstate(over="ignore"):
        row = KINDS[draw(st.sampled_from(sorted(KINDS)))](rng.normal(0, 3, size)).astype(np.float32)
    forbidden = draw(st.sampled_from([0.0, 0.0, 0.1, 0.99, 1.0]))
    row[rng.random(size) < forbidden] = -np.inf
    for strange in draw(st.lists(st.sampled_from([np.nan, -np.nan, np.inf, -0.0]), max_size=1)):
        row[rng.integers(size)] = strange
    row.flags.writeable = False
    return row


@st.composite
def plans(draw: st.DrawFn, size: int) -> SamplingPlan:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shifts = []
    for _ in range(draw(st.integers(0, 2))):
        ids = rng.choice(size, min(size, draw(st.sampled_from([0, 1, 64]))), replace=False).astype(np.int64)
        amounts = draw(st.sampled_from([rng.normal(0, 2, ids.size), np.full(ids.size, np.inf), ids * -1e300]))
        shifts.append(Shift(ids, amounts, draw(st.sampled_from([1.0, 1.3, 0.5, 1e300]))))
    mask = draw(st.sampled_from([None, None, rng.random(size) < 0.5, rng.random(size) < 0.01, np.zeros(size, bool)]))
    filters = tuple((name, draw(VALUES[name])) for name in FILTERS if draw(st.booleans()))
    temperature = draw(st.sampled_from([0.0, 0.8, 1.0, 0.1, 5.0, 1e-300, 1e300]))
    return SamplingPlan(tuple(shifts), mask if mask is None else packed(mask), temperature, filters, draw(POINTS))


def near(plan: SamplingPlan, by: float) -> SamplingPlan:
    """The plan with every edge a little to one side."""
    filters = tuple(
        (n, v if n == "top_k" else min(v * (1 + by), 1.0 if n != "top_n_sigma" else v)) for n, v in plan.filters
    )
    return replace(plan, filters=filters, point=min(plan.point * (1 + by), 1 - 2**-53))


@given(st.data())
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_token_as_numpy(data: st.DataObject) -> None:
    row = data.draw(rows())
    plan = data.draw(plans(row.size))
    with np.errstate(all="ignore"):
        expected = sampling_numpy.choose(row, plan)
        token = choose(row, plan)
        if token != expected:  # e^x is rounded otherwise, and sums in another order: an edge may lie in between
            assert token in {sampling_numpy.choose(row, near(plan, by)) for by in (-1e-12, 1e-12)}
            assert plan.temperature


@pytest.mark.parametrize("size", [99_999, 128_256])
def test_the_same_token_of_a_large_vocabulary(size: int) -> None:
    rng = np.random.default_rng(size)
    row = rng.normal(0, 2, size).astype(np.float32)
    mask = packed(rng.random(size) < 0.9)
    shift = Shift(rng.choice(size, 300, replace=False), rng.normal(0, 3, 300))
    for filters in (
        (),
        (("top_k", 40.0), ("top_p", 0.9)),
        (("top_k", 3000.0),),
        (("top_n_sigma", 1.0),),
        (("min_p", 0.1),),
    ):
        for point in rng.random(8).tolist():
            plan = SamplingPlan((shift,), mask, 0.9, filters, point)
            assert choose(row, plan) == sampling_numpy.choose(row, plan)


def test_a_mask_comes_before_everything() -> None:
    row = np.arange(100, dtype=np.float32)
    row[99] = np.nan  # forbidden, so that it does no harm
    for allowed in ([3], [0, 31, 32, 63], [64, 98], range(99)):
        mask = packed(np.isin(np.arange(100), allowed))
        mask[-1] |= np.uint32(0xFFFFFFF0)  # of no token
        assert choose(row, SamplingPlan((), mask, 0.0)) == max(allowed)
        drawn = {
            choose(row, SamplingPlan((), mask, 1e9, (("top_k", 50.0),), point)) for point in np.linspace(0, 0.99, 400)
        }
        assert drawn == set(sorted(allowed)[-50:])


def test_log_probabilities_of_odd_rows() -> None:
    row = np.array([-np.inf, 2.0, -np.inf, 2.0], np.float32)
    assert _native.log_probabilities(row, 0, 9) == (-math.inf, [(1, -math.log(2)), (3, -math.log(2))])
    assert math.isnan(_native.log_probabilities(np.full(70, np.inf, np.float32), 69, 2)[0])
    assert _native.log_probabilities(np.full(70, np.nan, np.float32), 0, 2)[1] == []


def test_what_no_plan_has_is_refused() -> None:
    row, ids, one = np.zeros(70, np.float32), np.array([70]), np.ones(1)
    for id in (70, -1):
        with pytest.raises(IndexError, match=f"70.*{id}"):
            _native.choose(row, (Shift(np.array([id]), one),), None, 0.0, (), 0.0)
    with pytest.raises(ValueError, match="amount"):
        _native.choose(row, (Shift(ids, np.ones(2)),), None, 0.0, (), 0.0)
    with pytest.raises(ValueError, match="bit"):
        _native.choose(row, (), np.zeros(2, np.uint32), 0.0, (), 0.0)
    for name, value in (("top_k", 0.0), ("top_k", math.nan), ("min_p", 1.5), ("top_p", -0.1), ("best_of", 2.0)):
        with pytest.raises(ValueError, match=name):
            _native.choose(row, (), None, 1.0, ((name, value),), 0.5)
    for temperature, point in ((-1.0, 0.0), (math.nan, 0.0), (1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="temperature or point"):
            _native.choose(row, (), None, temperature, (), point)
    with pytest.raises(IndexError, match="70"):
        _native.log_probabilities(row, 70, 0)
    with pytest.raises(TypeError):
        _native.choose(row.astype(np.float64), (), None, 0.0, (), 0.0)
    assert choose(np.zeros(0, np.float32), SamplingPlan((), None, 0.0)) is None
