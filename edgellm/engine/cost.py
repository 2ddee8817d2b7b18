"""What a decode pass costs, learned from the passes, and how many sequences should share one.

    seconds = a + b · rows + c · rows · cells

a   reading the weights, once for all rows
b   the work that each row adds
c   each row looks at every cell of the KV cache in use, whoever they belong to (llama.cpp's unified cache)

So with sequences of a length, a pass costs more than in proportion to their number, and beyond some number they are
slower together than one after another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

REMEMBERED = 1024  # passes after which a measurement is forgotten
SAMPLES = 5  # newest measurements kept of one shape of pass; their median counts
ENOUGH = 12  # measurements to begin with, of at least three different numbers of rows
SURE = 3  # measurements of a pass that is to be called too slow
GAIN = 1.15  # by how much another number must be better
CLOSE = 0.97  # of the best speed is as good, if fewer have to wait


@dataclass(frozen=True, slots=True)
class PassCost:
    """The coefficients of the formula above, in seconds; none is negative."""

    a: float
    b: float
    c: float

    def seconds(self, rows: int, cells: float) -> float:
        """What a pass of so many rows takes with so many cells in use."""
        return self.a + self.b * rows + self.c * rows * cells


@dataclass(frozen=True, slots=True)
class _Measured:
    at: int  # number of the pass
    cells: int
    seconds: float


class CostModel:
    """Measurements of decode passes, by shape (rows, and cells to about a fifth), and the formula that fits them.

    Old ones are forgotten shape by shape, not with the next pass, so that a long time with one number of rows does not
    wipe out how the others compare; once they are gone nothing is known, and `fit` says so.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._shapes: dict[tuple[int, int], deque[_Measured]] = {}
        self._new: deque[tuple[int, int, float]] = deque(maxlen=REMEMBERED)  # not in a shape yet

    def observe(self, rows: int, cells: int, seconds: float) -> None:
        """A decode pass of `rows` sequences took `seconds` with `cells` in use."""
        self._new.append((rows, cells, seconds))  # the rest can wait until somebody asks

    def seen(self, rows: int, cells: int) -> bool:
        """Whether passes of at least so many rows, and about so many cells or more, were measured often enough."""
        return any(
            shape[0] >= rows and len(measured) >= SURE and measured[-1].cells >= 0.75 * cells
            for shape, measured in self._remembered().items()
        )

    def fit(self) -> PassCost | None:
        """Least squares of the relative errors over the shapes, outliers counting less (Huber's weights).

        None while there are too few measurements, or of too few different numbers of rows.
        """
        shapes = self._remembered()
        if sum(map(len, shapes.values())) < ENOUGH or len({rows for rows, _ in shapes}) < 3:
            return None
        rows = np.array([rows for rows, _ in shapes], np.float64)  # (shapes,)
        cells = np.array([fmean(m.cells for m in measured) for measured in shapes.values()])
        seconds = np.array([max(1e-9, median(m.seconds for m in measured)) for measured in shapes.values()])
        counts = np.array([len(measured) for measured in shapes.values()], np.float64)
        columns = np.stack([np.ones_like(rows), rows, rows * cells], axis=1) / seconds[:, None]  # (shapes, 3)
        weights = counts
        for _ in range(4):
            found = _not_negative(columns, weights)
            errors = np.abs(columns @ found - 1)
            usual = max(0.02, 1.5 * float(np.median(errors)))
            weights = counts / np.maximum(1, errors / usual)
        return PassCost(*found.tolist())

    def _remembered(self) -> Mapping[tuple[int, int], deque[_Measured]]:
        while self._new:
            rows, cells, seconds = self._new.popleft()
            self._passes += 1
            shape = rows, round(4 * math.log2(cells + 256))
            self._shapes.setdefault(shape, deque(maxlen=SAMPLES)).append(_Measured(self._passes, cells, seconds))
        oldest = self._passes - REMEMBERED
        for shape, measured in list(self._shapes.items()):
            while measured and measured[0].at <= oldest:
                measured.popleft()
            if not measured:
                del self._shapes[shape]
        return self._shapes


def _not_negative(columns: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0, shape (3,), that brings columns @ x nearest to 1: the best of the subsets whose solution has no
    negative part."""
    root = np.sqrt(weights)
    best, least = np.zeros(3), math.inf
    for size in (3, 2, 1):
        for chosen in map(list, combinations(range(3), size)):
            part = columns[:, chosen] * root[:, None]
            scale = np.linalg.norm(part, axis=0) + 1e-300
            solution = np.linalg.lstsq(part / scale, root, rcond=None)[0] / scale
            error = float(np.square(part @ solution - root).sum())
            if (solution >= 0).all() and error < least:
                best, least = np.zeros(3), error
                best[chosen] = solution
    return best


def sequences_at_once(cost: PassCost, now: int, count: int, length: float, together: float) -> int:
    """How many of `count` sequences of `length` tokens should decode at once for most tokens per second.

    now: how many do. together: cells in use when all do, fewer than count · length where some share cells, which those
    that were parked no longer do. Of numbers that are `CLOSE` the largest counts. Another one than `now` must be better
    by `GAIN`, unless it is all of them, or `now` is slower than one at a time.
    """

    def rate(rows: int) -> float:
        cells = together if rows == count else rows * length
        return rows / max(cost.seconds(rows, cells), 1e-9)

    fastest = max(rate(rows) for rows in range(1, count + 1))
    best = max(rows for rows in range(1, count + 1) if rate(rows) >= CLOSE * fastest)
    change = best == count or rate(best) > GAIN * rate(now) or rate(now) < CLOSE * rate(1)
    return best if change else now
