"""What every step from a row of logits to a token means, in numpy: the definition that native code is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import SamplingPlan, Shift
from edgellm.engine.penalties import Logits, to_float32

Ids = NDArray[np.intp]
Doubles = NDArray[np.float64]

_LOWEST = np.finfo(np.float32).min


def choose(row: Logits, plan: SamplingPlan) -> int | None:
    """The token of a row (n_vocab,), which is not written to; None where no number of it is finite."""
    if plan.shifts or plan.mask is not None:
        row = row.copy()
        for shift in plan.shifts:
            apply(shift, row)
        if plan.mask is not None:
            bits = np.unpackbits(plan.mask.astype("<u4").view(np.uint8), count=row.size, bitorder="little")
            row[bits == 0] = -np.inf
    if plan.temperature == 0:
        token = int(row.argmax())
        return token if math.isfinite(row[token]) else None
    peak = float(row.max())
    return survivors(row, peak, plan.filters).draw(plan.point, plan.temperature) if math.isfinite(peak) else None


def packed(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """A mask of 32 tokens a word."""
    bits = np.packbits(np.pad(allowed, (0, -allowed.size % 32)), bitorder="little")
    return bits.view("<u4").astype(np.uint32)


def apply(shift: Shift, row: Logits) -> None:
    logits = row[shift.ids].astype(np.float64)
    if shift.repeat != 1:
        with np.errstate(over="ignore"):
            logits = np.where(logits > 0, logits / shift.repeat, logits * shift.repeat)
    row[shift.ids] = to_float32(logits - shift.amounts)


def survivors(row: Logits, peak: float, filters: Sequence[tuple[str, float]]) -> Candidates:
    left = Candidates(row, peak, dict(filters).get("min_p", 0.0))
    for name, value in filters:
        FILTERS[name](left, value)
    return left


class Candidates:
    """What the filters have left of a row: first all of it, unsorted; then ids and logits by falling logit, then by id.

    peak: the largest logit of the row. floor: the smallest one that is left. ahead: one below which min_p will keep
    nothing of a row whose largest logit is left.
    """

    __slots__ = ("ahead", "floor", "ids", "logits", "peak", "row")

    def __init__(self, row: Logits, peak: float, min_p: float) -> None:
        self.row, self.peak = row, peak
        self.floor = float(_LOWEST)
        self.ahead = peak + math.log(min_p) if min_p else -math.inf
        self.ids: Ids | None = None
        self.logits: Doubles = np.empty(0)

    def sorted(self, floor: float = -math.inf) -> tuple[Ids, Doubles]:
        """Ids and logits, of which those below `floor` may be missing."""
        if self.ids is None:
            self.take(_sorted_from(self.row, max(floor, self.floor)))
        assert self.ids is not None
        return self.ids, self.logits

    def take(self, ids: Ids) -> None:
        """These are left of the row, as far as they are above the floor. They are sorted, with all that are larger."""
        self.ids, self.logits = ids, self.row[ids].astype(np.float64)
        if self.floor > _LOWEST:
            self.keep(int(np.count_nonzero(self.logits >= self.floor)))

    def keep(self, count: int) -> None:
        """Only the first are left."""
        if self.ids is not None:
            self.ids, self.logits = self.ids[:count], self.logits[:count]

    def mass(self, temperature: float) -> float:
        """The sum of the weights of an unsorted row."""
        row = self.row if self.floor == _LOWEST else self.row[self.row >= self.floor]
        return float(_weights(row, self.peak, temperature).sum())

    def draw(self, point: float, temperature: float) -> int:
        """The token at `point` in [0, 1) of the distribution."""
        if self.ids is None and self.floor == _LOWEST:  # nothing was filtered: what is likeliest will do
            need = point * self.mass(temperature)
            ids, cumulated = _until(self.row, self.peak, need, temperature)
            return int(ids[_reached(cumulated, need)])
        ids, logits = self.sorted()
        cumulated = np.cumsum(_weights(logits, logits[0], temperature))
        return int(ids[_reached(cumulated, point * float(cumulated[-1]))])


def largest(row: Logits, k: int) -> Ids:
    """Ids of the k largest logits, by falling logit, then by id; fewer where fewer are above -inf. k >= 0.

    The row is dealt into groups like cards, and the k-th largest of the groups' maxima is a floor that at least k
    logits reach: with many more groups than k, hardly more than k. Only those are sorted.

        row     0 1 2 3 4 5 6 7 …      (n_vocab,)
        group   a b c d a b c d …      maxima (groups,)
    """
    if k == 0:
        return np.empty(0, np.intp)
    groups = max(512, 8 * k)
    floor = float(_LOWEST)
    if 2 * groups <= row.size:
        dealt = row.size - row.size % groups
        maxima = row[:dealt].reshape(-1, groups).max(axis=0)
        rest = row[dealt:]
        np.maximum(maxima[: rest.size], rest, out=maxima[: rest.size])
        floor = max(floor, float(np.partition(maxima, groups - k)[groups - k]))
    return _sorted_from(row, floor)[:k]


def _sorted_from(row: Logits, floor: float) -> Ids:
    """Ids of the logits that are at least `floor`, rounded to float32, by falling logit, then by id."""
    ids = np.flatnonzero(row >= max(floor, float(_LOWEST)))
    return ids[np.argsort(-row[ids], kind="stable")]


def _weights(logits: Logits | Doubles, peak: float, temperature: float) -> Doubles:
    """exp((logit - peak) / temperature) in float64: probabilities before they are made to sum to 1."""
    with np.errstate(over="ignore"):  # a tiny temperature may reach -inf, whose weight is 0
        return np.exp((np.asarray(logits, np.float64) - peak) / temperature)


def _until(row: Logits, peak: float, need: float, temperature: float) -> tuple[Ids, Doubles]:
    """The sorted ids, from the largest logit on, whose cumulated weights exceed `need` (all if none do), and those."""
    k = 64
    while True:
        ids = largest(row, k)
        cumulated = np.cumsum(_weights(row[ids], peak, temperature))
        if cumulated[-1] > need or k >= row.size:
            return ids, cumulated
        k *= 8


def _reached(cumulated: Doubles, need: float) -> int:
    """The first index whose cumulated weight exceeds `need`; if rounding lets none, the last that has any weight."""
    index = int(np.searchsorted(cumulated, need, side="right"))
    return index if index < cumulated.size else int(np.searchsorted(cumulated, cumulated[-1]))


def _top_n_sigma(left: Candidates, n: float) -> None:
    """Top-nσ sampling (arXiv:2411.07641): what is not within n standard deviations of the largest logit is noise."""
    finite = left.row[left.row > -math.inf].astype(np.float64)
    left.floor = max(left.floor, float(np.float32(left.peak - n * float(finite.std()))))


def _typical(left: Candidates, typical_p: float) -> None:
    """Locally typical sampling (arXiv:2202.00666): surprises nearest the entropy first, until the mass is passed."""
    ids, logits = left.sorted()
    weights = np.exp(logits - logits[0])
    present = weights > 0
    ids, logits, weights = ids[present], logits[present], weights[present]
    probabilities = weights / weights.sum()
    surprise = -np.log(probabilities)
    order = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    passed = int(np.searchsorted(np.cumsum(probabilities[order]), typical_p, side="right"))
    kept = np.sort(order[: passed + 1])
    left.ids, left.logits = ids[kept], logits[kept]


def _top_p(left: Candidates, top_p: float) -> None:
    total = None  # the probability mass that it counts in; None: that of the sorted ones
    if left.ids is None:
        total = left.mass(1.0)
        # min_p, too, keeps a beginning of the sorted row, so the shorter one may be found first.
        shorter = left.ahead > left.floor
        left.take(_sorted_from(left.row, left.ahead) if shorter else _until(left.row, left.peak, top_p * total, 1.0)[0])
    _, logits = left.sorted()
    cumulated = np.cumsum(np.exp(logits - logits[0]))
    left.keep(int(np.searchsorted(cumulated, top_p * (float(cumulated[-1]) if total is None else total))) + 1)


def _min_p(left: Candidates, min_p: float) -> None:
    _, logits = left.sorted(left.peak + math.log(min_p))
    left.keep(int(np.count_nonzero(logits >= logits[0] + math.log(min_p))))


def _exclude_top_choices(left: Candidates, threshold: float) -> None:
    """XTC (text-generation-webui pull request 6335): of the tokens at least `threshold` likely, only the last stays."""
    ids, logits = left.sorted()
    weights = np.exp(logits - logits[0])
    first = max(0, int(np.count_nonzero(weights >= threshold * weights.sum())) - 1)
    left.ids, left.logits = ids[first:], logits[first:]


# the filters by the option that each is set by
FILTERS: dict[str, Callable[[Candidates, float], None]] = {
    "top_n_sigma": _top_n_sigma,
    "top_k": lambda left, k: left.take(largest(left.row, int(k))),
    "typical_p": _typical,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc_threshold": _exclude_top_choices,
}
