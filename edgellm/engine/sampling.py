"""From one row of logits to one token.

    logit bias → repeat, frequency, presence penalties → DRY
        → greedy, if the temperature is 0: the largest logit, the smallest id of equal ones
        → top_n_sigma → top_k → typical_p → top_p → min_p → XTC → temperature → draw

The order and the meaning of every option are llama.cpp's defaults, so known settings carry over. Each filter works on
what the one before it left, as probabilities that sum to 1. The row belongs to the backend and is never written.

Cost: the k largest logits are found without sorting or exponentiating the vocabulary (see `largest`), so a step with
`top_k` reads the row three times and then works on k numbers. `top_k=0` with `top_p` < 1, or with no filter at all,
needs one exponential per token of the vocabulary, and sorts as much as a flat row makes it; `typical_p` < 1 with
`top_k=0` sorts all of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.backends.base import SamplingPlan, Shift, Tokenizer
from edgellm.engine.penalties import Dry, Logits, RepeatPenalty, breaker_sequences, to_float32
from edgellm.errors import BackendFailed, EdgeLLMError, InvalidParameter
from edgellm.events import TokenLogprob
from edgellm.params import GenerateParams

Ids = NDArray[np.intp]
Doubles = NDArray[np.float64]

_LOWEST = np.finfo(np.float32).min


def bias(params: GenerateParams, n_vocab: int) -> Shift:
    """Adds `logit_bias` to the logits of its tokens. Raises InvalidParameter for an id outside the vocabulary."""
    for token in params.logit_bias:
        if not 0 <= token < n_vocab:
            raise InvalidParameter(f"logit_bias: there is no token {shown(token)}; this model has 0 to {n_vocab - 1}")
    biases = to_float32(np.fromiter(params.logit_bias.values(), np.float64))
    return Shift(np.fromiter(params.logit_bias.keys(), np.intp), -biases.astype(np.float64))


class Sampler:
    """Chooses the tokens of one generation.

    `seed` is the seed in use: the one of `params`, or one drawn here. The same seed, params and logits give the same
    tokens on every platform: a token costs one number of the PCG64 stream (two with XTC), compared in float64 with the
    cumulative probabilities of the candidates sorted by falling logit, then by id.

    Raises InvalidParameter if `logit_bias` names a token outside the vocabulary.
    """

    def __init__(self, params: GenerateParams, n_vocab: int, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.seed = int.from_bytes(os.urandom(4), "little") if params.seed is None else params.seed
        self._params = params
        self._tokenizer = tokenizer
        self._stream = np.random.PCG64(self.seed)
        self._bias = (bias(params, n_vocab),) if params.logit_bias else ()
        self._adjustments: list[RepeatPenalty | Dry] = []
        if RepeatPenalty.wanted(params):
            self._adjustments.append(RepeatPenalty(params, prompt))
        if Dry.wanted(params):
            breakers = breaker_sequences(tokenizer, n_vocab, tuple(params.dry_breakers))
            self._adjustments.append(Dry(params, breakers, prompt))
        values = {name: getattr(params, name) for name in STEPS}
        self._filters = tuple((name, values[name]) for name, (on, _) in STEPS.items() if on(values[name]))
        self._plan: SamplingPlan | None = None

    def sample(self, row: Logits) -> int:
        """A token for the row (n_vocab,) float32. Does not add it to the history: see `accept`.

        Raises BackendFailed if the row holds no usable number, InvalidParameter if the bias forbids every token.
        """
        token, self._plan = choose(row, self.plan()), None
        if token is None:
            raise self.refusal(row)
        return token

    def plan(self) -> SamplingPlan:
        """How the next token is chosen; the same plan until one is."""
        if self._plan is None:
            repeated = (shift for each in self._adjustments if (shift := each.shift()) is not None)
            shifts, p = (*self._bias, *repeated), self._params
            if p.temperature == 0:
                self._plan = SamplingPlan(shifts, None, 0.0)
            else:
                filters = self._filters
                if p.xtc_probability > 0 and self._uniform() < p.xtc_probability:
                    filters += (("xtc_threshold", p.xtc_threshold),)
                self._plan = SamplingPlan(shifts, None, p.temperature, filters, self._uniform())
        return self._plan

    def refusal(self, row: Logits | None = None) -> EdgeLLMError:
        """Why this row has no token that the plan allows."""
        if self._params.logit_bias and (row is None or math.isfinite(float(row.max()))):
            return InvalidParameter("logit_bias forbids every token that is possible here; leave at least one")
        return BackendFailed("a pass gave logits that are no numbers; check the model file for damage, or use another")

    def accept(self, token: int) -> None:
        """Add a token of the answer to the history that the penalties look at."""
        self._plan = None
        for adjustment in self._adjustments:
            adjustment.accept(token)

    def forced(self) -> Sequence[int]:
        """Tokens that must follow those of the answer, whatever the logits: they need no pass of their own."""
        return ()

    def logprobs(self, row: Logits, chosen: int, n: int) -> TokenLogprob:
        """Log-softmax of `chosen` and of the `n` likeliest tokens, of the raw row: temperature 1, before any step."""
        peak = float(row.max())
        with np.errstate(over="ignore"):
            shifted = row - np.float32(peak)
        log_mass = math.log(float(np.exp(shifted).sum(dtype=np.float64)))

        def logprob(token: int) -> float:
            return float(row[token]) - peak - log_mass

        top = tuple((token, self._text(token), logprob(token)) for token in largest(row, n).tolist())
        return TokenLogprob(chosen, self._text(chosen), logprob(chosen), top)

    def _text(self, token: int) -> bytes:
        return self._tokenizer.piece(token, special=True)

    def _uniform(self) -> float:
        """A number in [0, 1) of 53 bits. Raw draws, because numpy promises their stream and not that of `Generator`."""
        return (int(self._stream.random_raw()) >> 11) * 2.0**-53


def choose(row: Logits, plan: SamplingPlan) -> int | None:
    """The token of a row (n_vocab,), which is not written to; None where no number of it is finite."""
    if plan.shifts or plan.mask is not None:
        row = row.copy()
        for shift in plan.shifts:
            _apply(shift, row)
        if plan.mask is not None:
            row[~plan.mask] = -np.inf
    if plan.temperature == 0:
        token = int(row.argmax())
        return token if math.isfinite(row[token]) else None
    peak = float(row.max())
    return _survivors(row, peak, plan.filters).draw(plan.point, plan.temperature) if math.isfinite(peak) else None


def _apply(shift: Shift, row: Logits) -> None:
    logits = row[shift.ids].astype(np.float64)
    if shift.repeat != 1:
        with np.errstate(over="ignore"):
            logits = np.where(logits > 0, logits / shift.repeat, logits * shift.repeat)
    row[shift.ids] = to_float32(logits - shift.amounts)


def _survivors(row: Logits, peak: float, filters: Sequence[tuple[str, float]]) -> Candidates:
    left = Candidates(row, peak, dict(filters).get("min_p", 0.0))
    for name, value in filters:
        STEPS[name][1](left, value)
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


# the filters in their order, by the option that each is set by: the values that switch it on, and what it does
STEPS: dict[str, tuple[Callable[[float], bool], Callable[[Candidates, float], None]]] = {
    "top_n_sigma": (lambda value: value > 0, _top_n_sigma),
    "top_k": (lambda value: value > 0, lambda left, k: left.take(largest(left.row, int(k)))),
    "typical_p": (lambda value: value < 1, _typical),
    "top_p": (lambda value: value < 1, _top_p),
    "min_p": (lambda value: value > 0, _min_p),
    "xtc_threshold": (lambda value: False, _exclude_top_choices),  # by chance, see `Sampler.plan`
}
