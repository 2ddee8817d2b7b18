"""From one row of logits to one token.

    logit bias → repeat, frequency, presence penalties → DRY
        → greedy, if the temperature is 0: the largest logit, the smallest id of equal ones
        → top_k → typical_p → top_p → min_p → XTC → temperature → draw

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
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.arguments import shown
from edgellm.backends.base import Tokenizer
from edgellm.engine.penalties import Dry, Logits, RepeatPenalty, breaker_sequences, to_float32
from edgellm.errors import BackendFailed, InvalidParameter
from edgellm.events import TokenLogprob
from edgellm.params import GenerateParams

Ids = NDArray[np.intp]
Doubles = NDArray[np.float64]

_LOWEST = np.finfo(np.float32).min


class Adjustment(Protocol):
    """A step that edits a private row of logits before the filters, and may look at what was said."""

    def apply(self, row: Logits) -> None: ...

    def accept(self, token: int) -> None: ...


class LogitBias:
    """Adds `logit_bias` to the logits of its tokens. Raises InvalidParameter for an id outside the vocabulary."""

    def __init__(self, params: GenerateParams, n_vocab: int) -> None:
        for token in params.logit_bias:
            if not 0 <= token < n_vocab:
                raise InvalidParameter(
                    f"logit_bias: there is no token {shown(token)}; this model has 0 to {n_vocab - 1}"
                )
        self._ids = np.fromiter(params.logit_bias.keys(), np.intp)
        self._biases = to_float32(np.fromiter(params.logit_bias.values(), np.float64))

    def apply(self, row: Logits) -> None:
        row[self._ids] += self._biases

    def accept(self, token: int) -> None:
        pass


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
        self._adjustments: list[Adjustment] = []
        if params.logit_bias:
            self._adjustments.append(LogitBias(params, n_vocab))
        if RepeatPenalty.wanted(params):
            self._adjustments.append(RepeatPenalty(params, prompt))
        if Dry.wanted(params):
            breakers = breaker_sequences(tokenizer, n_vocab, tuple(params.dry_breakers))
            self._adjustments.append(Dry(params, breakers, prompt))

    def sample(self, row: Logits) -> int:
        """A token for the row (n_vocab,) float32. Does not add it to the history: see `accept`.

        Raises BackendFailed if the row holds no usable number, InvalidParameter if the bias forbids every token.
        """
        if self._adjustments:
            row = row.copy()
            for adjustment in self._adjustments:
                adjustment.apply(row)
        if self._params.temperature == 0:
            token = int(row.argmax())
            self._check(float(row[token]))
            return token
        peak = float(row.max())
        self._check(peak)
        exclude = self._params.xtc_probability > 0 and self._uniform() < self._params.xtc_probability
        point = self._uniform()
        p = self._params
        if not (p.top_k or p.typical_p < 1 or p.top_p < 1 or p.min_p or exclude):
            need = point * _mass(row, peak, p.temperature)
            ids, cumulated = _until(row, peak, need, p.temperature)
            return int(ids[_reached(cumulated, need)])
        ids, logits = self._survivors(row, peak)
        if exclude:
            ids, logits = _exclude_top_choices(ids, logits, p.xtc_threshold)
        cumulated = np.cumsum(_weights(logits, logits[0], p.temperature))
        return int(ids[_reached(cumulated, point * float(cumulated[-1]))])

    def accept(self, token: int) -> None:
        """Add a token of the answer to the history that the penalties look at."""
        for adjustment in self._adjustments:
            adjustment.accept(token)

    def forced(self) -> Sequence[int]:
        """Tokens that must follow those of the answer, whatever the logits: they need no pass of their own."""
        return ()

    def logprobs(self, row: Logits, chosen: int, n: int) -> TokenLogprob:
        """Log-softmax of `chosen` and of the `n` likeliest tokens, of the raw row: temperature 1, before any step."""
        peak = float(row.max())
        self._check(peak)
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

    def _check(self, peak: float) -> None:
        if math.isfinite(peak):
            return
        if peak == -math.inf and self._params.logit_bias:
            raise InvalidParameter("logit_bias forbids every token that is possible here; leave at least one")
        raise BackendFailed(f"the largest logit of a pass is {peak}; check the model file for damage, or use another")

    def _survivors(self, row: Logits, peak: float) -> tuple[Ids, Doubles]:
        """Ids and logits that pass top_k, typical_p, top_p and min_p, by falling logit."""
        p = self._params
        total = None  # the probability mass that top_p counts in; None: that of the candidates
        if p.top_k or p.typical_p < 1:
            ids = largest(row, p.top_k or row.size)
        elif p.min_p:
            # top_p and min_p both keep a beginning of the sorted row, so the shorter one may be found first.
            ids = _sorted_from(row, peak + math.log(p.min_p))
            total = _mass(row, peak, 1.0) if p.top_p < 1 else None
        elif p.top_p < 1:
            total = _mass(row, peak, 1.0)
            ids, _ = _until(row, peak, p.top_p * total, 1.0)
        else:
            ids = largest(row, row.size)
        logits = row[ids].astype(np.float64)
        if p.typical_p < 1:
            ids, logits = _typical(ids, logits, p.typical_p)
        if p.top_p < 1:
            cumulated = np.cumsum(np.exp(logits - logits[0]))
            need = p.top_p * (float(cumulated[-1]) if total is None else total)
            kept = int(np.searchsorted(cumulated, need)) + 1
            ids, logits = ids[:kept], logits[:kept]
        if p.min_p:
            kept = int(np.count_nonzero(logits >= logits[0] + math.log(p.min_p)))
            ids, logits = ids[:kept], logits[:kept]
        return ids, logits


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


def _mass(row: Logits, peak: float, temperature: float) -> float:
    """The sum of all weights of a row."""
    return float(_weights(row, peak, temperature).sum())


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


def _typical(ids: Ids, logits: Doubles, typical_p: float) -> tuple[Ids, Doubles]:
    """Locally typical sampling (arXiv:2202.00666): surprises nearest the entropy first, until the mass is passed."""
    weights = np.exp(logits - logits[0])
    present = weights > 0
    ids, logits, weights = ids[present], logits[present], weights[present]
    probabilities = weights / weights.sum()
    surprise = -np.log(probabilities)
    order = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    passed = int(np.searchsorted(np.cumsum(probabilities[order]), typical_p, side="right"))
    kept = np.sort(order[: passed + 1])
    return ids[kept], logits[kept]


def _exclude_top_choices(ids: Ids, logits: Doubles, threshold: float) -> tuple[Ids, Doubles]:
    """XTC (text-generation-webui pull request 6335): of the tokens at least `threshold` likely, only the last stays."""
    weights = np.exp(logits - logits[0])
    first = max(0, int(np.count_nonzero(weights >= threshold * weights.sum())) - 1)
    return ids[first:], logits[first:]
