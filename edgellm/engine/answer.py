"""Answer: tokens become text, and text the chunks that a caller sees."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.backends.base import Backend, Rows
from edgellm.engine.sampling import Sampler
from edgellm.engine.stopping import StopStrings
from edgellm.engine.textstream import TextStream
from edgellm.events import Chunk, Completion, FinishReason, TokenLogprob
from edgellm.params import GenerateParams


class Answer:
    """deliver: takes chunks; None where the last one is enough, which spares the caller a wake-up per token.

    together: how many of the newest tokens go into one pass: those that follow from a sampled one need no rows.
    """

    def __init__(
        self, params: GenerateParams, backend: Backend, prompt: list[int], deliver: Callable[[Chunk], None] | None
    ) -> None:
        self.tokens: list[int] = []
        self.together = 1
        self.sampler = Sampler(params, backend.info.n_vocab, backend.tokenizer, prompt)
        self._params = params
        self._backend = backend
        self._deliver = deliver
        self._text = TextStream()
        self._stops = StopStrings(params.stop)
        self._stopped = False  # by a stop string, which eats what was held back
        self._written: list[str] = []
        self._pending_tokens: list[int] = []
        self._pending_logprobs: list[TokenLogprob] = []
        self._logprobs: list[TokenLogprob] = []

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the answer, and is none of it."""
        return token in self._backend.info.stop_ids and not self._params.ignore_eos

    def add(self, token: int, before: int, row: Rows | None = None) -> FinishReason | None:
        """The next token, and what it ends the answer with. before: the one in front. row: (1, n_vocab), its logits."""
        params, tokenizer = self._params, self._backend.tokenizer
        if params.logprobs is not None and row is not None:
            self._pending_logprobs.append(self.sampler.logprobs(row[0], token, params.logprobs))
        self.sampler.accept(token)
        ends = token in self._backend.info.stop_ids
        piece = b"" if ends else tokenizer.piece(token, before=before)  # what ends a text is none of it
        self.tokens.append(token)
        self._pending_tokens.append(token)
        text, self._stopped = self._stops.push(self._text.push(piece))
        if not piece and params.stop and not self._stopped:  # a control token: a stop string may be its text
            control = tokenizer.piece(token, special=True).decode("utf-8", "replace")
            more, self._stopped = self._stops.push(control, shown=False)
            text += more
        if text:
            self._written.append(text)
            if self._deliver is not None:
                chunk = Chunk(text, self._pending_tokens, self._take_logprobs())
                self._pending_tokens = []
                self._deliver(chunk)
        if self._stopped:
            return "stop"
        return "length" if len(self.tokens) == params.max_tokens else None

    def last(self, completion: Callable[[str, list[TokenLogprob] | None], Completion]) -> Chunk:
        """The last chunk, with the rest of the text. completion: makes it of the whole text and all logprobs."""
        rest = ""
        if not self._stopped:
            tail, stopped = self._stops.push(self._text.flush())
            rest = tail if stopped else tail + self._stops.flush()
            self._written.append(rest)
        logprobs = self._take_logprobs()
        whole = completion("".join(self._written), self._logprobs if self._params.logprobs is not None else None)
        if self._deliver is None:
            return Chunk(whole.text, self.tokens, whole.logprobs, whole)
        return Chunk(rest, self._pending_tokens, logprobs, whole)

    def _take_logprobs(self) -> list[TokenLogprob] | None:
        if self._params.logprobs is None:
            return None
        taken, self._pending_logprobs = self._pending_logprobs, []
        self._logprobs += taken
        return taken
