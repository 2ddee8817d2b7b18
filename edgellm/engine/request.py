"""Request: what the engine moves of one generation.

    waiting ──▶ running (prefill, then decode) ──▶ done
                   ▲  │ preempted: its state is parked in host memory
                   └──┘

The engine's thread alone touches it; what the caller has of it is its `Generation`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgellm.backends.base import Backend, Buffer, Rows, SamplingPlan, Sequence
from edgellm.engine.answer import AnswerBuilder
from edgellm.engine.generation import Generation
from edgellm.engine.reading import Hearing
from edgellm.events import CacheReport, FinishReason, Timings
from edgellm.kv.prefixes import PUBLIC, UNNAMED
from edgellm.params import GenerateParams

if TYPE_CHECKING:
    from edgellm.kv.blocks import Block
    from edgellm.kv.prefixes import Match

USUAL_ANSWER = 512  # tokens


@dataclass(slots=True)
class Spent:
    """What a request took. Times in seconds; undone: tokens that were computed, and lost."""

    load_ms: float
    submitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None  # when it came
    prefill: float = 0.0
    prefilled: int = 0  # tokens that took so long
    undone: int = 0
    waited: float = 0.0  # after the first token, in which nothing was decoded
    drafted: int = 0  # tokens that were computed in case the answer has them
    accepted: int = 0  # of them

    def timings(self, tokens: int) -> Timings:
        """Of an answer of so many tokens that ends now."""
        now = time.perf_counter()
        first = self.first_token or now
        decode = now - first - self.waited
        decoded = max(0, tokens - 1)
        return Timings(
            load_ms=self.load_ms,
            ttft_ms=1e3 * (first - self.submitted),
            prefill_ms=1e3 * self.prefill,
            decode_ms=1e3 * decode,
            prefill_tokens_per_second=self.prefilled / self.prefill if self.prefill else 0.0,
            decode_tokens_per_second=decoded / decode if decode and decoded else 0.0,
            drafted=self.drafted,
            accepted=self.accepted,
        )


class Request:
    """title: what people are shown of the prompt; "" is how it begins. owner: whose its state is if it is private."""

    def __init__(
        self,
        backend: Backend,
        prompt: list[int],
        params: GenerateParams,
        generation: Generation,
        *,
        title: str = "",
        owner: bytes = UNNAMED,
        load_ms: float = 0.0,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.title = title
        self.owner = owner if params.cache == "memory" else PUBLIC
        self.generation = generation
        deliver = generation.deliver if generation.stream else None
        hearing = Hearing(generation.reading, params.thinking_budget)
        self.answer = AnswerBuilder(params, backend, prompt, deliver, generation.constraint, hearing)
        self.sequence: Sequence | None = None
        self.parked: list[tuple[Block, Buffer]] = []
        self.reused = 0  # tokens of the prompt that were not computed
        self.read = 0  # tokens of the prompt that are known or computed
        self.row: Rows | None = None  # (1, n_vocab): the logits after the prompt, computed here or known
        self.deferred: Match | None = None  # from what its state is loaded, once it has its first token
        self.checkpoints: list[int] = []  # positions in the prompt where a pass ends and the state is parked
        self.cache = CacheReport()
        self.spent = Spent(load_ms)

    @property
    def adapter(self) -> str:
        """The name of its adapter, "" for none."""
        return self.params.adapter or ""

    @property
    def state_of(self) -> tuple[bytes, str]:
        """Whose its state is, and computed with which adapter: no other request of another pair may use it."""
        return self.owner, self.adapter

    @property
    def history(self) -> list[int]:
        """Prompt and answer."""
        return self.answer.history

    @property
    def stop_reason(self) -> FinishReason | None:
        """Set from any thread: cancelled or timeout."""
        return self.generation.stop_reason

    @property
    def done(self) -> bool:
        return self.generation.done

    @property
    def length(self) -> int:
        """Tokens in its sequence."""
        return 0 if self.sequence is None else self.sequence.length

    @property
    def pending(self) -> list[int]:
        """Tokens not yet in the sequence: the rest of the prompt, or the newest of the answer."""
        return self.history[self.length :]

    @property
    def due(self) -> int:
        """Tokens of the answer for the next pass. Those whose state was lost are decoded as they were, one by one."""
        pending = len(self.history) - self.length
        return pending if pending <= self.answer.together else 1

    @property
    def before_checkpoint(self) -> int:
        """Tokens to feed before the next checkpoint, or the end of the prompt."""
        length = self.length
        return next(at for at in (*self.checkpoints, len(self.prompt)) if at > length) - length

    @property
    def expected(self) -> int:
        """Tokens that its sequence will probably hold."""
        return len(self.prompt) + min(self.params.max_tokens or USUAL_ANSWER, USUAL_ANSWER)

    @property
    def in_prefill(self) -> bool:
        return self.length < len(self.prompt)

    def release(self) -> None:
        """Close its sequence, if it has one."""
        if self.sequence is not None:
            self.sequence.close()
            self.sequence = None

    def began(self, undone: int) -> None:
        """Its sequence holds what is known of the prompt. undone: tokens that were computed before, and lost."""
        self.read = self.reused
        self.spent.undone += undone
        if self.spent.undone:
            note = f"{self.spent.undone} tokens were computed in vain, because their state was lost"
            self.cache = replace(self.cache, reason=f"{self.cache.reason}; {note}")
        if self.read < len(self.prompt):
            self._tell_progress()

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Account for its share of a prefill pass."""
        self.spent.prefill += seconds
        self.spent.prefilled += tokens
        self.read = min(self.length, len(self.prompt))
        self._tell_progress()

    def lost(self) -> None:
        """The engine has lost the state in its sequence: all of the prompt is computed again."""
        undone, self.reused = self.read - self.reused, 0
        reason = f"the state of {self.read} tokens was lost while the KV cache grew"
        self.cache = CacheReport(computed=len(self.prompt), reason=reason)
        self.began(undone)

    def _tell_progress(self) -> None:
        try:
            self.generation.progress(self.read)
        except BaseException as error:  # of a function that came with a sink
            self.generation.end(error)

    def plan(self) -> SamplingPlan | None:
        """How the backend chooses the token after the next pass; None where it does not, or the row is needed here."""
        return None if self.spent.first_token is None else self.answer.plan()

    def accept(self, rows: Rows | int, draft: list[int]) -> int:
        """The last row (1, n_vocab) of a pass, or the token that was chosen from it: see `AnswerBuilder.accept`. Behind
        a draft rows (1 + drafted, n_vocab), as long as the tokens are the drafted ones; returns how many were."""
        if not draft or isinstance(rows, int):
            self._accept(rows)
            return 0
        right = 0
        self.spent.drafted += len(draft)
        while True:
            known = len(self.history)
            self._accept(rows[right : right + 1])
            new = self.history[known:]
            if self.done or self.stop_reason is not None or new != draft[right : right + len(new)]:
                return right
            right += len(new)
            self.spent.accepted += len(new)

    def _accept(self, row: Rows | int) -> None:
        if self.spent.first_token is None:
            self.spent.first_token = time.perf_counter()
            if self.params.cache and self.row is None and not isinstance(row, int):
                self.row = row.copy()
        ends = self.answer.accept(row)
        if ends is not None:
            self.finish(ends)

    def finish(self, reason: FinishReason) -> None:
        """Deliver the rest of the text and the Completion."""
        if self.read < len(self.prompt):
            where = f"at token {self.read}" if self.cache.reason else "before it began"
            words = "; ".join(filter(None, (self.cache.reason, f"reading the prompt was stopped {where}")))
            self.cache = replace(self.cache, computed=self.read - self.reused, reason=words)
        timings = self.spent.timings(len(self.answer.tokens))
        self.generation.end(self.answer.end(reason, self.reused, timings, self.cache))
