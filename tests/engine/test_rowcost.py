"""What passes with more rows take, learned from passes."""

from __future__ import annotations

import pytest

from edgellm.engine.rowcost import EXPECTED, REMEMBERED, SAMPLES, SURE, RowCost


def measured(plain: int, **seconds: float) -> RowCost:
    """seconds: by rows, r1=1.0."""
    cost = RowCost(plain)
    for name, each in seconds.items():
        for _ in range(SURE):
            cost.observe(int(name[1:]), each)
    return cost


def test_nothing_is_known_before_plain_steps_are() -> None:
    cost = RowCost(1)
    assert cost.seconds(1) is None
    cost.observe(8, 2.0)
    for _ in range(SURE):
        assert cost.seconds(8) is None
        cost.observe(1, 1.0)
    assert cost.seconds(8) == pytest.approx(2.0)


def test_what_was_never_measured_is_on_a_line() -> None:
    alone = measured(2, r2=1.0)
    assert alone.seconds(2) == pytest.approx(1.0)
    assert alone.seconds(6) == pytest.approx(1.0 + 4 * EXPECTED / 2)
    cost = measured(1, r1=1.0, r8=1.7)
    assert cost.seconds(4) == pytest.approx(1.3)
    assert cost.seconds(15) == pytest.approx(2.4)


def test_medians_count_and_more_rows_never_take_less() -> None:
    cost = measured(1, r1=1.0, r4=2.0, r8=1.5)
    assert cost.seconds(8) == pytest.approx(2.0)
    cost.observe(4, 90.0)
    assert cost.seconds(4) == pytest.approx(2.0)
    for _ in range(SAMPLES):
        cost.observe(4, 1.2)
    assert cost.seconds(4) == pytest.approx(1.2)


def test_what_was_measured_long_ago_is_forgotten() -> None:
    cost = measured(1, r1=1.0, r8=9.0)
    for _ in range(REMEMBERED):
        cost.observe(1, 1.0)
    assert cost.seconds(8) == pytest.approx(1.0 + 7 * EXPECTED)
    for _ in range(REMEMBERED):
        cost.observe(8, 2.0)
    assert cost.seconds(8) is None  # plain steps are measured again first
