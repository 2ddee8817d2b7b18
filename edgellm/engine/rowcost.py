"""RowCost: what a pass takes with more rows of the same sequences, learned from the passes.

    rows     1    2    4    8   16   32       1 is a plain step of one sequence, the others check drafts
    seconds  the median of the newest of each; lines between them

Rows are cheap as long as a pass waits for the weights, and kernels change between some numbers of them, so there is no
formula (`cost.py` has one for many sequences). It belongs to one number of sequences.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from statistics import median

REMEMBERED = 512  # passes after which a measurement is forgotten
SAMPLES = 5  # newest measurements kept of about so many rows
SURE = 3  # measurements of a plain step before anything is compared with it
EXPECTED = 0.15  # of a plain step, what each further row is thought to add before any was measured

Point = tuple[float, float]  # rows, seconds


class RowCost:
    """For `plain` sequences, whose plain step has a row each."""

    def __init__(self, plain: int) -> None:
        self._plain = plain
        self._passes = 0
        self._measured: dict[int, deque[tuple[int, int, float]]] = {}  # by about how many rows: pass, rows, seconds
        self._points: list[Point] | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        self._passes += 1
        about = 0 if rows == self._plain else (rows - 1).bit_length()
        self._measured.setdefault(about, deque(maxlen=SAMPLES)).append((self._passes, rows, max(seconds, 1e-9)))
        self._points = None

    def seconds(self, rows: int) -> float | None:
        """What a pass of so many rows takes; None while too little is known of plain steps."""
        points = self._points = self._points or self._line()
        if not points:
            return None
        for (low, least), (high, most) in pairwise(points):
            if rows <= high:
                return least + (most - least) * (rows - low) / (high - low)
        (first, plain), (last, seconds) = points[0], points[-1]
        slope = EXPECTED * plain / first if last == first else (seconds - plain) / (last - first)
        return seconds + slope * (rows - last)

    def _line(self) -> list[Point]:
        """The medians by rows; more rows never take less."""
        oldest = self._passes - REMEMBERED
        points: list[Point] = []
        for about, measured in sorted(self._measured.items()):
            while measured and measured[0][0] <= oldest:
                measured.popleft()
            if about == 0 and len(measured) < SURE:
                return []
            if measured:
                rows, seconds = median(m[1] for m in measured), median(m[2] for m in measured)
                points.append((rows, max(seconds, points[-1][1] if points else 0.0)))
        return points if points and points[0][0] == self._plain else []
