"""Passes: one is formed, computed, and its rows become tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edgellm.backends.base import Backend, Rows, Step
from edgellm.engine.generation import Generation
from edgellm.engine.request import Request
from edgellm.engine.reuse import Reuse
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.seats import Seats
from edgellm.engine.speculate import Speculation
from edgellm.errors import Busy, Interrupted
from edgellm.events import PassCount

log = logging.getLogger("edgellm.engine")


class Passes:
    """For the engine's thread, but for `interrupt` and `stop`. clock: seconds."""

    def __init__(self, backend: Backend, seats: Seats, reuse: Reuse, *, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._seats = seats
        self._reuse = reuse
        self.speculation = Speculation(backend)
        self._scheduler = Scheduler(backend)
        self._clock = clock
        self._in_pass: set[Generation] = set()  # whose prompts the pass in flight reads
        self._stopped = False
        self.prefill = self.decode = PassCount()  # what was computed so far

    # Any thread

    def interrupt(self, generation: Generation) -> None:
        """End the pass in flight if it reads the prompt of `generation`."""
        if generation in self._in_pass:
            self._backend.interrupt()

    def stop(self) -> None:
        """End the pass in flight, and compute no more."""
        self._stopped = True
        self._backend.interrupt()

    # The engine's thread

    def begin(self, begun: list[Request], flush: Callable[[], None]) -> None:
        """Requests have begun: those whose logits are known have their first token before their state is loaded."""
        for request in begun:
            if request.row is not None and not request.answer.tokens:
                self._sample(request, request.row, [])
        flush()
        for request in begun:
            if request.deferred is not None and not request.done:
                self._seats.load_deferred(request)

    def run(self) -> None:
        """One pass: slices of prompts, or what comes next of every answer."""
        shares = [(r, n) for r, n in self._scheduler.next(self._seats.running) if r.stop_reason is None]
        reading = [(request, size) for request, size in shares if request.in_prefill]
        drafts = {} if reading else self.speculation.drafts([request for request, _ in shares])
        steps = []
        for request, size in shares:
            assert request.sequence is not None  # every running request has one
            tokens = request.pending
            if request in drafts:
                steps.append(Step(request.sequence, tokens + drafts[request], "all"))
            else:
                steps.append(Step(request.sequence, tokens[:size], "last" if size == len(tokens) else "none"))
        # A decode pass is over within a token; only the reading of a prompt is worth interrupting. Whoever stops one
        # says so before looking here: it is seen below, or interrupts the pass, at worst one it was not meant for.
        self._in_pass = {request.generation for request, _ in reading}
        started = self._clock()
        try:
            if self._stopped or not shares or any(request.stop_reason is not None for request, _ in reading):
                return
            plans = [p for (r, _), step in zip(shares, steps, strict=True) if step.logits == "last" and (p := r.plan())]
            rows: Sequence[Rows | int | None]
            rows = self._backend.choose(steps, plans) if len(plans) == len(steps) else self._backend.forward(steps)
        except Interrupted:
            for request, _ in shares if self._backend.info.can_truncate else ():
                if request.length >= len(request.history):  # all of it was computed, and its rows are lost
                    prompt = len(request.prompt)
                    kept = self._backend.pass_shape.reusable(prompt, prompt)
                    self._cut(request, len(request.history) - 1 if request.answer.tokens else kept)
            self._seats.recover([request for request, _ in shares])
            return
        except Busy as error:
            if drafts:
                self.speculation.pause()
            else:
                self._seats.make_room(error)
            return
        except Exception as error:
            for request, _ in shares:
                self._seats.fail(request, error, "the engine failed on a pass")
            return
        finally:
            self._in_pass = set()
        seconds = self._clock() - started
        if not drafts:
            self._account(shares, reading, seconds)
        right = 0
        for (request, _), row in zip(shares, rows, strict=True):
            if request.done:
                if request in drafts:
                    self._cut(request, len(request.history) - 1)
                self._seats.retire(request)
            elif row is not None:  # it becomes a token, where the backend has not chosen one
                right += self._sample(request, row, drafts.get(request, []))
        fed = sum(len(step.tokens) for step in steps)
        if reading:
            self.prefill = self.prefill.plus(seconds, fed)
        else:
            self.decode = self.decode.plus(seconds, fed)
        if drafts or (not reading and fed == len(steps)):
            self.speculation.passed(len(steps), fed, len(steps) + right, seconds)

    def _account(self, shares: list[tuple[Request, int]], reading: list[tuple[Request, int]], seconds: float) -> None:
        """A pass took so long."""
        count = sum(size for _, size in shares)
        if not reading:
            self._seats.decoded(count, seconds)
            return
        self._scheduler.prefilled(count, seconds)
        for request, size in reading:
            request.prefilled(size, seconds * size / count)
            if request.length in request.checkpoints:
                self._reuse.checkpoint(request)

    def _sample(self, request: Request, row: Rows | int, draft: list[int]) -> int:
        """The rows behind the newest token and its draft become tokens. How many of the draft's were right; the state
        of the others is gone before anything of the sequence is kept."""
        kept = request.length - len(draft)
        try:
            right = request.accept(row, draft)
        except Exception as error:
            log.debug("a generation failed while sampling", exc_info=True)
            self._seats.fail(request, error, "sampling failed")
            return 0
        if draft:
            self._cut(request, kept + right)
        if request.done:
            self._seats.retire(request)
        return right

    def _cut(self, request: Request, length: int) -> None:
        """Cut its sequence; one that cannot be is computed again, if it goes on."""
        if request.sequence is None or request.sequence.truncate(length):
            return
        log.warning("the state of a draft could not be cut off; %d tokens are computed again", length)
        self.speculation.pause()
        request.release()
        if not request.done:
            self._seats.begin_again(request)
