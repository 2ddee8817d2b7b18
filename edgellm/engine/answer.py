"""AnswerBuilder: rows become tokens, tokens text, and text the chunks that a caller sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from edgellm.backends.base import Backend, Rows, SamplingPlan
from edgellm.constrain.constraint import Constraint
from edgellm.engine.reading import Hearing
from edgellm.engine.sampling import Sampler
from edgellm.engine.stopping import StopStrings
from edgellm.engine.textstream import TextStream
from edgellm.errors import ConstraintFailed
from edgellm.events import CacheReport, Chunk, Completion, FinishReason, Heard, Timings, TokenLogprob, Usage
from edgellm.params import GenerateParams


class AnswerBuilder:
    """deliver: takes chunks; None where the last one is enough, which spares the caller a wake-up per token.

    hearing: tells text, reasoning and calls. history: the prompt, and behind it the answer as it grows. together: how
    many of the newest tokens go into one pass: those that follow from a sampled one need no rows.
    """

    def __init__(
        self,
        params: GenerateParams,
        backend: Backend,
        prompt: list[int],
        deliver: Callable[[Chunk], None] | None,
        constraint: Constraint | None = None,
        hearing: Hearing | None = None,
    ) -> None:
        self.history = list(prompt)
        self.tokens: list[int] = []
        self.together = 1
        self._params = params
        self._backend = backend
        self._deliver = deliver
        self._text = TextStream()
        self._stops = StopStrings(params.stop)
        self._stopped = False  # by a stop string, which eats what was held back
        self._hearing = Hearing(None, None) if hearing is None else hearing
        if self._hearing.never:
            params = replace(params, logit_bias={**params.logit_bias, **dict.fromkeys(self._hearing.never, -math.inf)})
        self._sampler = Sampler(params, backend.info.n_vocab, backend.tokenizer, prompt, constraint)
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._told = 0  # tokens that went out in chunks

    def plan(self) -> SamplingPlan | None:
        """How the backend chooses the next token; None where it does not, or the row is needed here."""
        try:
            plan = self._sampler.plan() if self._logprobs is None and not self._hearing.due else None
        except ConstraintFailed:  # said again where the row is chosen from, of this answer alone
            return None
        return plan if plan is not None and self._backend.takes(plan) else None

    def accept(self, row: Rows | int) -> FinishReason | None:
        """Sample from the last row (1, n_vocab) of a pass, or take the token that was chosen from it; what must follow
        that token goes into the next pass with it. Returns what the answer ends with, if it does.
        """
        try:
            return self._accept(row)
        except ConstraintFailed as error:
            error.text = self._hearing.text
            raise

    def _accept(self, row: Rows | int) -> FinishReason | None:
        if self._params.max_tokens == 0:
            return "length"
        self.together = 1
        if self._hearing.due:
            ends = self._add(self._hearing.due.popleft(), None if isinstance(row, int) else row)
        elif not isinstance(row, int):
            ends = self._add(self._sampler.sample(row[0]), row)
        elif row >= 0:
            ends = self._add(row)
        else:
            raise self._sampler.refusal()
        if self._logprobs is not None and ends is None:  # each of those needs a row
            self._hearing.due.extend(() if self._hearing.due else self._sampler.forced())
        elif ends is None:
            for token in self._following():
                self.together += 1
                ends = self._add(token)
                if ends is not None:
                    break
        if ends is None and not self._hearing.due:
            self._sampler.expect()
        return ends

    def _following(self) -> Iterator[int]:
        """The tokens that follow whatever the model would say."""
        while self._hearing.due:
            yield self._hearing.due.popleft()
        yield from self._sampler.forced()

    def _add(self, token: int, row: Rows | None = None) -> FinishReason | None:
        """The next token, and what it ends the answer with. row: (1, n_vocab), the logits that it was chosen from."""
        params, tokenizer = self._params, self._backend.tokenizer
        ends = token in self._backend.info.stop_ids
        if ends and not params.ignore_eos:
            return "stop"
        if self._logprobs is not None and params.logprobs is not None and row is not None:
            self._logprobs.append(self._sampler.logprobs(row[0], token, params.logprobs))
        self._sampler.accept(token)
        piece = self._hearing.controls.get(token, b"")
        if not ends and not piece:  # what ends a text is none of it
            piece = tokenizer.piece(token, before=self.history[-1])
        self.tokens.append(token)
        self.history.append(token)
        text, self._stopped = self._stops.push(self._text.push(piece))
        if not piece and params.stop and not self._stopped:  # a control token: a stop string may be its text
            control = tokenizer.piece(token, special=True).decode("utf-8", "replace")
            more, self._stopped = self._stops.push(control, shown=False)
            text += more
        heard = self._hearing.hear(text, inside=bool(self._text.pending))
        if self._deliver is not None and any(heard):
            self._deliver(self._chunk(heard))
        if self._stopped or self._sampler.done:
            return "stop"
        full = len(self.tokens) == params.max_tokens or len(self.history) >= self._backend.n_ctx
        return "length" if full else None

    def end(self, reason: FinishReason, reused: int, timings: Timings, cache: CacheReport) -> Chunk:
        """The last chunk, with the rest of the text and the Completion. reused: tokens of the prompt."""
        rest = ""
        if not self._stopped:
            # Of a character that the end of the answer cut, nothing is said: it was not wrong, only not all there.
            tail, stopped = self._stops.push(self._text.flush() if reason == "stop" else "")
            rest = tail if stopped else tail + self._stops.flush()
        heard, calls = self._hearing.finish(rest), self._hearing.calls
        whole = Completion(
            text=self._hearing.text,
            tokens=self.tokens,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=Usage(len(self.history) - len(self.tokens), reused, len(self.tokens), self._hearing.reasoning_tokens),
            timings=timings,
            cache=cache,
            backend=self._backend.name,
            threads=self._backend.threads,
            seed=self._sampler.seed,
            logprobs=self._logprobs,
            reasoning=self._hearing.reasoning,
            tool_calls=calls,
            stop_string=self._stops.found,
        )
        return self._chunk(heard if self._deliver is not None else Heard(whole.text, whole.reasoning), whole)

    def _chunk(self, heard: Heard, completion: Completion | None = None) -> Chunk:
        """A piece of the answer, with what came since the one before."""
        told, self._told = self._told, len(self.tokens)
        logprobs = None if self._logprobs is None else self._logprobs[told:]
        return Chunk(heard.text, self.tokens[told:], logprobs, completion, heard.reasoning, heard.tool_calls)
