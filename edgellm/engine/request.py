"""Request: the state machine of one generation.

    waiting ──▶ running (prefill, then decode) ──▶ done
                   ▲  │ preempted: its state is parked in host memory
                   └──┘

The engine's thread drives it; the caller reads chunks from it and may cancel it from any thread.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from edgellm.backends.base import Backend, Buffer, Rows, Sequence
from edgellm.engine.progress import OnProgress, Progress, check_progress
from edgellm.engine.sampling import Sampler
from edgellm.engine.stopping import StopStrings
from edgellm.engine.textstream import TextStream
from edgellm.errors import Unsupported
from edgellm.events import CacheReport, Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from edgellm.params import GenerateParams

if TYPE_CHECKING:
    from edgellm.engine.engine import Engine
    from edgellm.kv.blocks import Block
    from edgellm.kv.prefixes import Match

log = logging.getLogger("edgellm.engine")
USUAL_ANSWER = 512  # tokens

Sink = Callable[["Chunk | BaseException"], None]


class Request:
    """One generation: iterate it for chunks, or ask for its `result()`. Closing the iteration early cancels it.

    With `stream=False` only the last chunk is delivered, which spares the caller's thread a wake-up per token. Of what
    goes to a `sink` only the last chunk is kept. `progress` is called by whoever iterates, on that thread; with a
    `sink`, where that is called.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        params: GenerateParams,
        *,
        stream: bool,
        sink: Sink | None,
        progress: OnProgress | None,
        title: str = "",
    ) -> None:
        backend = engine.backend
        check_progress(progress)
        self.prompt = prompt
        self.params = params
        self.title = title  # what people are shown of the prompt; "" is how it begins
        self.tokens: list[int] = []  # the answer
        self.history = list(prompt)  # prompt and answer
        self.sequence: Sequence | None = None
        self.parked: list[tuple[Block, Buffer]] = []
        self.reused = 0  # tokens of the prompt that were not computed
        self.read = 0  # tokens of the prompt that are known or computed
        self.row: Rows | None = None  # (1, n_vocab): the logits after the prompt, computed here or known
        self.late: Match | None = None  # what the state of the prompt will be loaded from, once it has its first token
        self.checkpoints: list[int] = []  # positions in the prompt where a pass ends and the state is parked
        self.cache = CacheReport()
        self.stop_reason: FinishReason | None = None  # set from any thread: cancelled or timeout
        self.sampler = Sampler(params, backend.info.n_vocab, backend.tokenizer, prompt)
        self.owner: object = None  # what must not be forgotten before this is done: the Model
        self._engine = engine
        self._stream = stream
        self._text = TextStream()
        self._stops = StopStrings(params.stop)
        self._written: list[str] = []
        self._pending_tokens: list[int] = []
        self._pending_logprobs: list[TokenLogprob] = []
        self._logprobs: list[TokenLogprob] = []
        self._queue: queue.SimpleQueue[Chunk | BaseException | tuple[int, int]] = queue.SimpleQueue()
        self._sink: Sink = sink or self._queue.put
        self._on_progress = progress
        queued = progress and (progress if sink else lambda done, total: self._queue.put((done, total)))
        self._progress = Progress(queued, len(prompt))
        self._done = False
        self._timer: threading.Timer | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self.submitted = time.perf_counter()
        self._first_token: float | None = None
        self._prefill_s = 0.0
        self._prefilled = 0  # tokens that took so long
        self._undone = 0  # tokens that were computed, and lost
        self._waited_s = 0.0

    # The caller's side

    def __iter__(self) -> Iterator[Chunk]:
        chunks = self._chunks()
        next(chunks)  # begun, so that closing or forgetting it cancels, though nobody read from it
        return chunks

    def _chunks(self) -> Iterator[Chunk]:
        try:
            yield Chunk("")
            while True:
                chunk = self._next()
                yield chunk
                if chunk.completion is not None:
                    return
        finally:
            self.cancel()

    def result(self) -> Completion:
        """Wait for the whole answer. Ctrl-C while waiting cancels it."""
        completion: Completion | None = None
        for chunk in self:
            completion = chunk.completion
        assert completion is not None  # the last chunk always carries it
        return completion

    def cancel(self, reason: FinishReason = "cancelled") -> None:
        """End it with what it has, within one micro-batch. From any thread; harmless when it is done."""
        if not self._done and self.stop_reason is None:
            self.stop_reason = reason
            self._engine.stop_now(self)

    def __reduce__(self) -> NoReturn:
        raise Unsupported("a generation is neither copied nor sent to another process: pass on its result()")

    def _next(self) -> Chunk:
        self._engine.check_process()
        # On Windows a wait without a time limit cannot be interrupted by Ctrl-C.
        limit = 0.1 if sys.platform == "win32" else None
        while True:
            try:
                item = self._queue.get(timeout=limit)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self._queue.put(item)  # for whoever asks again
                raise item
            if isinstance(item, Chunk):
                if item.completion is not None:
                    self._queue.put(item)  # for whoever asks again
                return item
            assert self._on_progress is not None  # who else would have asked for it
            self._on_progress(*item)

    # The engine's side

    def start_clock(self, unsubscribe: Callable[[], None]) -> None:
        """Begin the time limit; `unsubscribe` ends the subscription to the caller's CancelToken."""
        self._unsubscribe = unsubscribe
        if self.params.timeout is not None:
            limit = min(self.params.timeout, threading.TIMEOUT_MAX)
            self._timer = threading.Timer(limit, self.cancel, ("timeout",))
            self._timer.daemon = True
            self._timer.start()

    @property
    def pending(self) -> list[int]:
        """Tokens not yet in the sequence: the rest of the prompt, or the last sampled token."""
        assert self.sequence is not None
        return self.history[self.sequence.length :]

    @property
    def before_checkpoint(self) -> int:
        """Tokens to feed before the next checkpoint, the end of the prompt, or before all are fed."""
        assert self.sequence is not None
        length, ends = self.sequence.length, (*self.checkpoints, len(self.prompt))
        return next((at for at in ends if at > length), len(self.history)) - length

    @property
    def expected(self) -> int:
        """Tokens that its sequence will probably hold."""
        return len(self.prompt) + min(self.params.max_tokens or USUAL_ANSWER, USUAL_ANSWER)

    @property
    def private(self) -> bool:
        """Its state never reaches the disk, and nobody else's prompt finds it."""
        return self.params.cache == "memory"

    @property
    def in_prefill(self) -> bool:
        return self.sequence is None or self.sequence.length < len(self.prompt)

    def began(self, undone: int) -> None:
        """Its sequence holds what is known of the prompt. undone: tokens that were computed before, and lost."""
        self.read = self.reused
        self._undone += undone
        if self._undone:
            note = f"{self._undone} tokens were computed in vain, because their state was lost"
            self.cache = replace(self.cache, reason=f"{self.cache.reason}; {note}")
        if self.read < len(self.prompt):
            self._tell_progress()

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Account for a prefill pass."""
        assert self.sequence is not None  # it was in the pass
        self._prefill_s += seconds
        self._prefilled += tokens
        self.read = min(self.sequence.length, len(self.prompt))
        self._tell_progress()

    def lost(self) -> None:
        """The engine has lost the state in its sequence: all of the prompt is computed again."""
        undone, self.reused = self.read - self.reused, 0
        reason = f"the state of {self.read} tokens was lost while the KV cache grew"
        self.cache = CacheReport(computed=len(self.prompt), reason=reason)
        self.began(undone)

    def _tell_progress(self) -> None:
        try:
            self._progress(self.read)
        except BaseException as error:  # of a function that came with a sink
            self.fail(error)

    def waited(self, seconds: float) -> None:
        """Account for time after the first token in which nothing was decoded."""
        self._waited_s += seconds

    def accept(self, row: Rows, backend: Backend) -> None:
        """Sample from the last row (1, n_vocab) of a pass; finish when that ends the answer."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
            if self.params.cache and self.row is None:
                self.row = row.copy()
        params = self.params
        if params.max_tokens == 0:
            self.finish("length", backend)
            return
        token = self.sampler.sample(row[0])
        ends = token in backend.info.stop_ids
        if ends and not params.ignore_eos:
            self.finish("stop", backend)
            return
        if params.logprobs is not None:
            self._pending_logprobs.append(self.sampler.logprobs(row[0], token, params.logprobs))
        self.sampler.accept(token)
        before = self.history[-1] if self.history else None
        piece = b"" if ends else backend.tokenizer.piece(token, before=before)  # what ends a text is none of it
        self.tokens.append(token)
        self.history.append(token)
        self._pending_tokens.append(token)
        text, stopped = self._stops.push(self._text.push(piece))
        if not piece and params.stop and not stopped:  # a control token: a stop string may be its text
            control = backend.tokenizer.piece(token, special=True).decode("utf-8", "replace")
            more, stopped = self._stops.push(control, shown=False)
            text += more
        if text:
            self._write(text)
        if stopped:
            self.finish("stop", backend, held=False)
        elif len(self.tokens) == params.max_tokens or len(self.history) >= backend.n_ctx:
            self.finish("length", backend)

    def _write(self, text: str) -> None:
        self._written.append(text)
        if self._stream:
            chunk = Chunk(text, self._pending_tokens, self._take_logprobs())
            self._pending_tokens = []
            self._deliver(chunk)

    def _take_logprobs(self) -> list[TokenLogprob] | None:
        if self.params.logprobs is None:
            return None
        taken, self._pending_logprobs = self._pending_logprobs, []
        self._logprobs += taken
        return taken

    def finish(self, reason: FinishReason, backend: Backend, *, held: bool = True) -> None:
        """Deliver the rest of the text (what was `held` back, unless a stop string ate it) and the Completion."""
        rest = ""
        if held:
            tail, stopped = self._stops.push(self._text.flush())
            rest = tail if stopped else tail + self._stops.flush()
        if rest:
            self._written.append(rest)
        logprobs = self._take_logprobs()
        if self.read < len(self.prompt):
            where = f"at token {self.read}" if self.cache.reason else "before it began"
            words = "; ".join(filter(None, (self.cache.reason, f"reading the prompt was stopped {where}")))
            self.cache = replace(self.cache, computed=self.read - self.reused, reason=words)
        completion = Completion(
            text="".join(self._written),
            tokens=self.tokens,
            finish_reason=reason,
            usage=Usage(len(self.prompt), self.reused, len(self.tokens)),
            timings=self._timings(),
            cache=self.cache,
            backend=backend.name,
            threads=backend.threads,
            seed=self.sampler.seed,
            logprobs=self._logprobs if self.params.logprobs is not None else None,
        )
        text = rest if self._stream else completion.text
        tokens = self._pending_tokens if self._stream else self.tokens
        self._end(Chunk(text, tokens, logprobs if self._stream else completion.logprobs, completion))

    def fail(self, error: BaseException) -> None:
        """Deliver an error instead of an answer."""
        self._end(error)

    @property
    def done(self) -> bool:
        return self._done

    def _end(self, item: Chunk | BaseException) -> None:
        self._done = True
        self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()
        self._deliver(item)
        if self._sink != self._queue.put:
            self._queue.put(item)  # for result()
        self.owner = None

    def _deliver(self, item: Chunk | BaseException) -> None:
        try:
            self._sink(item)
        except Exception:
            log.exception("what takes the pieces of an answer failed; the generation is cancelled")
            self._sink = lambda item: None
            self.cancel()

    def _timings(self) -> Timings:
        now = time.perf_counter()
        first = self._first_token or now
        decode = now - first - self._waited_s
        decoded = max(0, len(self.tokens) - 1)
        return Timings(
            load_ms=self._engine.load_ms,
            ttft_ms=1e3 * (first - self.submitted),
            prefill_ms=1e3 * self._prefill_s,
            decode_ms=1e3 * decode,
            prefill_tokens_per_second=self._prefilled / self._prefill_s if self._prefill_s else 0.0,
            decode_tokens_per_second=decoded / decode if decode and decoded else 0.0,
        )
