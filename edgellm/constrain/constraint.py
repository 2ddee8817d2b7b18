"""Constraint: the form that one answer must have, token by token; Constraints makes those of a model.

    row of logits ── mask ──▶ the sampler's choice ── accept ──▶ the next mask

A mask allows the tokens after which the answer can still be completed, and tokens that end answers where it is
complete. Where that takes long it is found on a thread of its own (`masks.py`) while the pass is computed whose row it
is for. What cannot be kept is an error: before the first token where that can be known, else `ConstraintFailed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import ModelInfo, Tokenizer
from edgellm.constrain import grammars, library
from edgellm.constrain.fewest import may_end
from edgellm.constrain.library import Grammars, reason
from edgellm.constrain.masks import Masks
from edgellm.errors import ConstraintFailed, GenerationError, InvalidParameter, Unsupported
from edgellm.params import GenerateParams

if TYPE_CHECKING:
    from llguidance import LLMatcher

FREE = 1e-3  # seconds of the processor that a mask may take without being counted
MOST = 0.5  # seconds beyond those in one answer
# Seconds: after a mask that took less, the next one is found where it is asked for, which costs less than to hand it to
# another thread (eight of 11 µs: 0.09 ms here, 0.16 ms there).
SHORT = 1e-4


class Around(Protocol):
    def grammar(self, form: bool) -> str:
        """The grammar of the whole answer, or "" where there is no other than what options ask for. form: they do,
        and that is the rule `@form` in it."""


class Constraint:
    """See above. For the engine's thread, but for `parsed`."""

    def __init__(
        self,
        name: str,
        matcher: LLMatcher,
        words: int,
        parse: Callable[[str], Any],
        forbidden: NDArray[np.uint32] | None,
        masks: Masks,
    ) -> None:
        self._name = name  # of the option
        self._words = words  # of a mask
        self._masks = masks
        self.matcher = matcher
        self._parse = parse
        self._forbidden = forbidden  # tokens that the answer may not begin with, as a mask
        self._mask: NDArray[np.uint32] | None = None
        self._coming: SimpleQueue[Any] | None = None
        self._last = self._spent = 0.0

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def mask(self) -> NDArray[np.uint32]:
        """The tokens that may come next: see `SamplingPlan.mask`. The same until one is accepted.

        Raises ConstraintFailed where there is none, or where finding them takes too long.
        """
        if self._mask is None:
            found = self._find() if self._coming is None else self._coming.get()
            self._coming = None
            if isinstance(found, BaseException):
                raise found
            self._mask = found
        return self._mask

    def expect(self) -> None:
        """Have the next mask found meanwhile, if it may take long: nothing else is asked of this until it is."""
        if self._coming is None and self._mask is None and self._last > SHORT:
            self._coming = self._masks.post(self._find)

    def _find(self) -> NDArray[np.uint32]:
        started = time.thread_time()
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint32, self._words)
        self._check()
        if self._forbidden is not None:
            mask = mask & ~self._forbidden
        self._last = time.thread_time() - started
        self._spent += max(0.0, self._last - FREE)
        if self._spent > MOST:
            raise self._failed("finding the tokens that may come next takes too long; make it simpler")
        if not mask.any():
            raise self._failed("no token of this model's vocabulary can come next")
        return mask

    def accept(self, token: int) -> None:
        """A token of the answer. Raises ConstraintFailed for one that the form does not allow here."""
        self._mask = self._forbidden = None
        self.matcher.consume_token(token)
        self._check()

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, where there is one way to go on."""
        return () if self._forbidden is not None else self.matcher.compute_ff_tokens()

    def parsed(self, text: str) -> Any:
        """What a complete answer stands for. Raises ConstraintFailed where it stands for nothing."""
        try:
            return self._parse(text)
        except (GenerationError, ValueError, TypeError) as error:
            raise ConstraintFailed(
                f"{self._name}: the answer has the form and is refused: {error}", text=text
            ) from error

    def _check(self) -> None:
        if self.matcher.is_error():
            raise self._failed(reason(self.matcher))

    def _failed(self, why: str) -> ConstraintFailed:
        return ConstraintFailed(f"{self._name}: {why}")


class Constraints:
    """Those of the answers of one model. Safe from any thread."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._grammars = Grammars(info, tokenizer)
        self._masks = Masks()
        self._spaced: NDArray[np.int64] | None = None  # tokens that lose a space where a text begins

    def of(self, params: GenerateParams, prompt: Sequence[int], around: Around | None = None) -> Constraint | None:
        """What `params` asks of the answer to a prompt; None if that is nothing.

        around: what else is asked of it.

        Raises InvalidParameter for what is no schema, expression, grammar or choice, and for other options that it
        cannot be kept beside; Unsupported for what would not be enforced.
        """
        asked = grammars.asked(params)
        whole = "" if around is None else around.grammar(asked is not None)
        if asked is None and not whole:
            return None
        name, value = asked or ("tool_choice", None)
        if not self._info.stop_ids:
            raise Unsupported(f"{name}: {self._info.name} has no token that ends an answer")
        if params.stop:
            raise InvalidParameter(f"stop: {name} says where the answer ends, and a stop string could cut it before")
        if params.ignore_eos:
            raise InvalidParameter(f"ignore_eos: {name} says where the answer ends")
        grammar = "" if asked is None else grammars.grammar(name, value)
        matcher = self._grammars.matcher(name, library.joined(whole, grammar) if whole else grammar)
        words = -(-self._info.n_vocab // 32)
        forbidden = self._begins_differently(prompt)
        made = Constraint(name, matcher, words, _parser(name, value), forbidden, self._masks)
        try:
            made.mask()
        except ConstraintFailed as error:  # before the first token: it is what was asked for that cannot be
            raise InvalidParameter(str(error)) from error
        self._check_length(name, params.max_tokens, made)
        return made

    def _check_length(self, name: str, most: int | None, made: Constraint) -> None:
        if most is None:
            return
        least = len(made.forced()) or 1
        if most < least:
            raise InvalidParameter(f"max_tokens={most}: an answer with this {name} has at least {least} tokens")
        if not may_end(made.matcher, self._info, self._tokenizer, most):
            raise InvalidParameter(f"max_tokens={most}: every answer with this {name} has more tokens")

    def _begins_differently(self, prompt: Sequence[int]) -> NDArray[np.uint32] | None:
        """The tokens that lose their space behind a prompt: what they say then is another text than the form has."""
        piece, last = self._tokenizer.piece, prompt[-1] if prompt else None
        if self._spaced is None:
            n = self._info.n_vocab
            led = (token for token in range(n) if piece(token)[:1] == b" ")
            spaced = [token for token in led if piece(token, before=None) != piece(token)]
            self._spaced = np.array(spaced, np.int64)
        if not len(self._spaced) or piece(int(self._spaced[0]), before=last) == piece(int(self._spaced[0])):
            return None
        bits = np.zeros(-(-self._info.n_vocab // 32) * 32, np.uint8)
        bits[self._spaced] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)


def _parser(name: str, value: Any) -> Callable[[str], Any]:
    if name == "schema":
        from edgellm.constrain.parsed import parse  # costs what only schemas should pay

        return lambda text: parse(value, text)
    return lambda text: text
