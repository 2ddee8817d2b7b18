"""Repetition penalties: small objects that lower the logits of tokens that would repeat what was said.

Each has `shift()`, which says what is to become of logits, and `accept(token)`, which adds a token to the history it
looks at. The history starts with the prompt.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Shift, Tokenizer
from edgellm.engine.seam import alone
from edgellm.params import GenerateParams

Logits = NDArray[np.float32]  # (n_vocab,) float32
Breakers = Mapping[int, tuple[tuple[int, ...], ...]]
"""First token of a breaker to the tokens that may complete it, longest first; () when the token is enough."""

_MAX_LOG = math.log(float(np.finfo(np.float32).max))
_known_breakers: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[str, ...], Breakers]] = weakref.WeakKeyDictionary()


def to_float32(values: NDArray[np.float64]) -> Logits:
    """Round to float32: what is too large becomes its largest number, what is too small -inf (never drawn)."""
    with np.errstate(over="ignore"):
        rounded: Logits = np.minimum(values, np.finfo(np.float32).max).astype(np.float32)
    return rounded


class RepeatPenalty:
    """Repeat, frequency and presence penalties over the last `penalty_last_n` tokens (-1: all, 0: off).

    A token seen there `count` times: a positive logit is divided by `repeat_penalty`, any other multiplied by it (CTRL,
    arXiv:1909.05858, with the correction for negative logits that llama.cpp makes); then `count * frequency_penalty +
    presence_penalty` is subtracted (the OpenAI API reference).
    """

    def __init__(self, params: GenerateParams, prompt: Sequence[int]) -> None:
        self._params = params
        last_n = params.penalty_last_n
        self._window: deque[int] = deque(maxlen=None if last_n < 0 else last_n)
        self._counts: dict[int, int] = {}
        for token in prompt if last_n < 0 else prompt[max(0, len(prompt) - last_n) :]:
            self.accept(token)

    @staticmethod
    def wanted(params: GenerateParams) -> bool:
        neutral = params.repeat_penalty == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0
        return params.penalty_last_n != 0 and not neutral

    def accept(self, token: int) -> None:
        if len(self._window) == self._window.maxlen:
            oldest = self._window[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._window.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1

    def shift(self) -> Shift:
        size = len(self._counts)
        ids = np.fromiter(self._counts.keys(), np.int64, size)
        counts = np.fromiter(self._counts.values(), np.float64, size)
        amounts = counts * self._params.frequency_penalty + self._params.presence_penalty
        return Shift(ids, amounts, self._params.repeat_penalty)


class Dry:
    """DRY: the longer the repetition that a token would continue, the larger its penalty.

    Designed by p-e-w (text-generation-webui pull request 5677). With the longest earlier run that equals the end of the
    history and was followed by token t being `length` >= `dry_allowed_length` tokens, t's logit is lowered by
    `dry_multiplier * dry_base ** (length - dry_allowed_length)`. Runs do not reach over a sequence breaker, and a token
    that contains a breaker is never penalized. The meaning is llama.cpp's, its ceiling of the exponent included.

    window      a b c c b c y a b c        (the last `dry_last_n` tokens; -1: all)
    lengths     0 0 3 1 0 2 0 0 0          b after a repeat of 1, c after 3, y after 2
    """

    def __init__(self, params: GenerateParams, breakers: Breakers, prompt: Sequence[int]) -> None:
        self._params = params
        self._breakers = breakers
        self._exempt = {head for head, tails in breakers.items() if () in tails}
        self._longest_tail = max((len(tails[0]) for tails in breakers.values()), default=0)
        # Past this many tokens the penalty no longer grows: base**exponent would leave float32.
        base = params.dry_base
        self._max_exponent = int(_MAX_LOG / math.log(base)) if base > 1.000001 else 2**31
        self._length = len(prompt)
        self._tokens = np.zeros(self._length + 256, np.int32)
        self._tokens[: self._length] = prompt

    @staticmethod
    def wanted(params: GenerateParams) -> bool:
        return params.dry_multiplier > 0 and params.dry_last_n != 0

    def accept(self, token: int) -> None:
        if self._length == self._tokens.size:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._tokens[self._length] = token
        self._length += 1

    def shift(self) -> Shift | None:
        last_n, allowed = self._params.dry_last_n, self._params.dry_allowed_length
        start = 0 if last_n < 0 else max(0, self._length - last_n)
        window = self._tokens[start : self._length]
        limit = min(self._since_breaker(window), allowed + self._max_exponent)
        if window.size <= allowed or limit < allowed:
            return None
        lengths = match_lengths(window, limit)
        ends = np.flatnonzero(lengths >= allowed)
        ends = ends[np.argsort(lengths[ends], kind="stable")]  # of equal followers the longest comes last and wins
        longest = dict(zip(window[ends + 1].tolist(), lengths[ends].tolist(), strict=True))
        hits = {token: length for token, length in longest.items() if token not in self._exempt}
        ids = np.fromiter(hits.keys(), np.int64, len(hits))
        exponents = np.fromiter(hits.values(), np.float64, len(hits)) - allowed
        with np.errstate(over="ignore"):
            penalty = self._params.dry_multiplier * np.power(self._params.dry_base, exponents)
        return Shift(ids, penalty)

    def _since_breaker(self, window: NDArray[np.int32]) -> int:
        """Tokens at the end of `window` that follow its last breaker: exact as far as it can matter."""
        bound = min(window.size, self._params.dry_allowed_length + self._max_exponent + self._longest_tail)
        recent = window[window.size - bound :].tolist()
        for start in range(bound - 1, -1, -1):
            for tail in self._breakers.get(recent[start], ()):
                end = start + 1 + len(tail)
                if end <= bound and tuple(recent[start + 1 : end]) == tail:
                    return bound - end
        return window.size


def match_lengths(window: NDArray[np.int32], limit: int) -> NDArray[np.int32]:
    """For each position but the last, how many tokens that end there equal as many at the end of `window`, up to limit.

    (n,) int32 -> (n - 1,) int32. The ends that still match shrink from round to round.
    """
    lengths = np.zeros(window.size - 1, np.int32)
    ends = np.flatnonzero(window[:-1] == window[-1])
    length = 0
    while ends.size and length < limit:
        length += 1
        lengths[ends] = length
        ends = ends[ends >= length]
        ends = ends[window[ends - length] == window[-1 - length]]
    return lengths


def breaker_sequences(tokenizer: Tokenizer, n_vocab: int, breakers: tuple[str, ...]) -> Breakers:
    """The token sequences in which a breaker can appear, found once per tokenizer and set of breakers.

    A token whose text contains a breaker ends a repetition alone. One whose text ends with the beginning of a breaker
    does so when it is followed by the tokens of the rest, as the tokenizer splits that rest on its own (the rule of
    llama.cpp and KoboldCpp; but without the space that some vocabularies put before a text that begins, and also as the
    control token that the rest may be written as). Breakers are cut between characters, not inside one.
    """
    known = _known_breakers.setdefault(tokenizer, {})
    if breakers not in known:
        found: dict[int, set[tuple[int, ...]]] = {}
        whole = {text.encode(): [(text[:at].encode(), text[at:]) for at in range(1, len(text))] for text in breakers}
        tails: dict[str, set[tuple[int, ...]]] = {}
        for token in range(n_vocab):
            piece = tokenizer.piece(token, special=True)
            for text, cuts in whole.items():
                if text in piece:
                    found.setdefault(token, set()).add(())
                    continue
                for head, rest in cuts:
                    if piece.endswith(head):
                        if rest not in tails:
                            tails[rest] = {tuple(alone(tokenizer, rest, special=each)) for each in (False, True)}
                        found.setdefault(token, set()).update(tails[rest])
        known[breakers] = {token: tuple(sorted(found[token], key=len, reverse=True)) for token in found}
    return known[breakers]
