"""From one row of logits to one token.

    logit bias → repeat, frequency, presence penalties → DRY
        → greedy, if the temperature is 0: the largest logit, the smallest id of equal ones
        → top_n_sigma → top_k → typical_p → top_p → min_p → XTC → temperature → draw

The order and the meaning of every option are llama.cpp's defaults, so known settings carry over. Each filter works on
what the one before it left, as probabilities that sum to 1. The row belongs to the backend and is never written. The
steps are done by native/engine/choose.cpp; what they mean stands in numpy in tests/sampling_numpy.py.

Cost: a step with `top_k` or `min_p` reads the row once and then works on a few blocks of it. `top_k=0` with `top_p` < 1
or with no filter at all needs one exponential per token of the vocabulary, and sorts as much as a flat row makes it;
`typical_p` < 1 with `top_k=0` sorts all of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from edgellm import _native
from edgellm.arguments import shown
from edgellm.backends.base import SamplingPlan, Shift, Tokenizer
from edgellm.constrain.constraint import Constraint
from edgellm.engine.draws import Draws
from edgellm.engine.penalties import Dry, Logits, RepeatPenalty, breaker_sequences, to_float32
from edgellm.errors import BackendFailed, EdgeLLMError, InvalidParameter
from edgellm.events import TokenLogprob
from edgellm.params import GenerateParams

# the filters in their order, by the option that each is set by: the values that switch it on
FILTERS: dict[str, Callable[[float], bool]] = {
    "top_n_sigma": lambda value: value > 0,
    "top_k": lambda value: value > 0,
    "typical_p": lambda value: value < 1,
    "top_p": lambda value: value < 1,
    "min_p": lambda value: value > 0,
    "xtc_threshold": lambda value: False,  # by chance, see `Sampler.plan`
}


def bias(params: GenerateParams, n_vocab: int) -> Shift:
    """Adds `logit_bias` to the logits of its tokens. Raises InvalidParameter for an id outside the vocabulary."""
    for token in params.logit_bias:
        if not 0 <= token < n_vocab:
            raise InvalidParameter(f"logit_bias: there is no token {shown(token)}; this model has 0 to {n_vocab - 1}")
    biases = to_float32(np.fromiter(params.logit_bias.values(), np.float64))
    return Shift(np.fromiter(params.logit_bias.keys(), np.int64), -biases.astype(np.float64))


class Sampler:
    """Chooses the tokens of one generation.

    `seed` is the seed in use: the one of `params`, or one drawn here. The same seed, params and logits give the same
    tokens on every platform: a token costs one number of the PCG64 stream (two with XTC), compared in float64 with the
    cumulative probabilities of the candidates sorted by falling logit, then by id.

    constraint: the form of the answer; its mask comes before everything else.

    Raises InvalidParameter if `logit_bias` names a token outside the vocabulary.
    """

    def __init__(
        self,
        params: GenerateParams,
        n_vocab: int,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        constraint: Constraint | None = None,
    ) -> None:
        self.seed = int.from_bytes(os.urandom(4), "little") if params.seed is None else params.seed
        self._params = params
        self._tokenizer = tokenizer
        self._draws = Draws(self.seed)
        self._bias = (bias(params, n_vocab),) if params.logit_bias else ()
        self._adjustments: list[RepeatPenalty | Dry] = []
        if RepeatPenalty.wanted(params):
            self._adjustments.append(RepeatPenalty(params, prompt))
        if Dry.wanted(params):
            breakers = breaker_sequences(tokenizer, n_vocab, tuple(params.dry_breakers))
            self._adjustments.append(Dry(params, breakers, prompt))
        values = {name: getattr(params, name) for name in FILTERS}
        self._filters = tuple((name, values[name]) for name, on in FILTERS.items() if on(values[name]))
        self._constraint = constraint
        same = params.temperature == 0 and not self._adjustments and constraint is None
        self._always = SamplingPlan(self._bias, None, 0.0) if same else None  # where all tokens have one plan
        self._plan = self._always

    def sample(self, row: Logits) -> int:
        """A token for the row (n_vocab,) float32. Does not add it to the history: see `accept`.

        Raises BackendFailed if the row holds no usable number, InvalidParameter if the bias forbids every token.
        """
        token, self._plan = choose(row, self.plan()), self._always
        if token is None:
            raise self.refusal(row)
        return token

    def plan(self) -> SamplingPlan:
        """How the next token is chosen; the same plan until one is."""
        if self._plan is None:
            repeated = (shift for each in self._adjustments if (shift := each.shift()) is not None)
            shifts, p = (*self._bias, *repeated), self._params
            mask = None if self._constraint is None else self._constraint.mask()
            if p.temperature == 0:
                self._plan = SamplingPlan(shifts, mask, 0.0)
            else:
                filters = self._filters
                if p.xtc_probability > 0 and self._draws.uniform() < p.xtc_probability:
                    filters += (("xtc_threshold", p.xtc_threshold),)
                self._plan = SamplingPlan(shifts, mask, p.temperature, filters, self._draws.uniform())
        return self._plan

    def refusal(self, row: Logits | None = None) -> EdgeLLMError:
        """Why this row has no token that the plan allows."""
        if self._params.logit_bias and (row is None or math.isfinite(float(row.max()))):
            return InvalidParameter("logit_bias forbids every token that is possible here; leave at least one")
        return BackendFailed("a pass gave logits that are no numbers; check the model file for damage, or use another")

    def accept(self, token: int) -> None:
        """Add a token of the answer to the history that the penalties look at."""
        self._plan = self._always
        for adjustment in self._adjustments:
            adjustment.accept(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    @property
    def done(self) -> bool:
        """Whether the answer has the form that was asked for, and nothing can follow."""
        return self._constraint is not None and self._constraint.done

    def expect(self) -> None:
        """A pass begins whose row the next token will be chosen from."""
        if self._constraint is not None:
            self._constraint.expect()

    def forced(self) -> Sequence[int]:
        """Tokens that must follow those of the answer, whatever the logits: they need no pass of their own."""
        return () if self._constraint is None else self._constraint.forced()

    def logprobs(self, row: Logits, chosen: int, n: int) -> TokenLogprob:
        """Log-softmax of `chosen` and of the `n` likeliest tokens, of the raw row: temperature 1, before any step."""
        chosen_logprob, top = _native.log_probabilities(row, chosen, n)
        likeliest = tuple((token, self._text(token), logprob) for token, logprob in top)
        return TokenLogprob(chosen, self._text(chosen), chosen_logprob, likeliest)

    def _text(self, token: int) -> bytes:
        return self._tokenizer.piece(token, special=True)


def choose(row: Logits, plan: SamplingPlan) -> int | None:
    """The token of a row (n_vocab,), which is not written to; None where no number of it is finite."""
    token = _native.choose(row, plan.shifts, plan.mask, plan.temperature, plan.filters, plan.point)
    return None if token < 0 else token
