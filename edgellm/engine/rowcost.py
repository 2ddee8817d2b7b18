"""RowCost: what a pass takes with more rows of the same sequences, learned from the passes.

    rows     1    2    4    8   16   32       1 is a plain step of one sequence, the others check drafts
    seconds  the median of the newest of each; lines between them

Rows are cheap as long as a pass waits for the weights, and kernels change between some numbers of them, so there is no
formula (`cost.py` has one for many sequences). It belongs to one number of sequences.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

REMEMBERED = 512  # passes after which a measurement is forgotten
SAMPLES = 5  # newest measurements kept of about so many rows
EVERY = 4  # plain steps of which one is measured, once they are known
SURE = 3  # measurements of a plain step before anything is compared with it
EXPECTED = 0.15  # of a plain step, what each further row is thought to add before any was measured

Point = tuple[float, float]  # rows, seconds


@dataclass(slots=True)
class _About:
    """The newest passes with about so many rows. at: the pass of the last one; point: their median."""

    at: int
    measured: deque[Point]
    point: Point = (0, 0)


class RowCost:
    """For `plain` sequences, whose plain step has a row each."""

    def __init__(self, plain: int) -> None:
        self._plain = plain
        self._passes = 0
        self._about: dict[int, _About] = {}
        self._line: list[Point] = []  # by rows, of which more never take less; empty: to be found again

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long. Of plain steps that are known a few count for all."""
        self._passes += 1
        kind = 0 if rows == self._plain else (rows - 1).bit_length()
        about = self._about.get(kind)
        if not kind and about is not None and len(about.measured) >= SURE and self._passes < about.at + EVERY:
            return
        if about is None or about.at + REMEMBERED <= self._passes:
            about = self._about[kind] = _About(0, deque(maxlen=SAMPLES))
        about.at = self._passes
        about.measured.append((rows, max(seconds, 1e-9)))
        middle = len(about.measured) // 2
        about.point = sorted([r for r, _ in about.measured])[middle], sorted([s for _, s in about.measured])[middle]
        self._line = []

    def seconds(self, rows: int) -> float | None:
        """What a pass of so many rows takes; None while too little is known of plain steps."""
        line = self._line = self._line or self._find_line()
        if not line:
            return None
        low, least = line[0]
        for high, most in line:
            if rows <= high:
                return most if rows == high else least + (most - least) * (rows - low) / (high - low)
            low, least = high, most
        first, plain = line[0]
        slope = EXPECTED * plain / first if len(line) == 1 else (least - plain) / (low - first)
        return least + slope * (rows - low)

    def _find_line(self) -> list[Point]:
        oldest = self._passes - REMEMBERED
        line: list[Point] = []
        for kind in sorted(self._about):
            about = self._about[kind]
            if about.at > oldest:
                rows, seconds = about.point
                if not kind and len(about.measured) < SURE:
                    return []
                line.append((rows, max(seconds, line[-1][1] if line else 0.0)))
        return line if line and line[0][0] == self._plain else []
