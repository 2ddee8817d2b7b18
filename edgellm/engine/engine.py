"""Engine: the thread that owns a backend.

    submit() ──▶ inbox ──▶ waiting ──▶ running ──▶ one pass at a time ──▶ chunks
    call()   ──▶ inbox ──▶ run between two passes

Everything that touches the backend happens on this thread, except `Backend.interrupt`.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from edgellm.backends.base import Backend, Rows, Step
from edgellm.engine.cancel import CancelToken
from edgellm.engine.request import Request, Sink
from edgellm.engine.scheduler import RoundRobin, prefill_size, reusable
from edgellm.errors import (
    BackendFailed,
    Busy,
    Closed,
    ContextOverflow,
    EdgeLLMError,
    Interrupted,
    InvalidParameter,
    NotEnoughMemory,
)
from edgellm.kv.prefixes import LivePrefixes
from edgellm.params import GenerateParams

log = logging.getLogger("edgellm.engine")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Backend], Any]
    future: Future[Any]

    def run(self, backend: Backend) -> None:
        try:
            self.future.set_result(self.function(backend))
        except BaseException as error:
            self.future.set_exception(error)


class Engine:
    """Runs generations on one backend, safe to call from any thread.

    queue_limit: generations that may be unfinished at once; more raise Busy.
    """

    def __init__(self, backend: Backend, *, load_ms: float = 0.0, queue_limit: int = 256) -> None:
        self.backend = backend
        self.load_ms = load_ms
        self._queue_limit = queue_limit
        self._inbox: queue.SimpleQueue[Request | _Call | None] = queue.SimpleQueue()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._full = False  # a request was parked for lack of room, and none has finished since
        self._prefixes = LivePrefixes()
        self._turns = RoundRobin()
        self._lock = threading.Lock()  # guards the three below
        self._open = True
        self._unfinished = 0
        self._in_pass: Request | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="edgellm-engine", daemon=True)
        self._thread.start()

    # Any thread

    def submit(
        self,
        prompt: list[int],
        params: GenerateParams,
        *,
        stream: bool = False,
        cancel: CancelToken | None = None,
        sink: Sink | None = None,
    ) -> Request:
        """Queue a generation. Raises ContextOverflow, InvalidParameter, Busy, Closed.

        Chunks, or the error, go to `sink` on the engine's thread; without one the request keeps them for its reader.
        """
        self._check_prompt(prompt)
        request = Request(self, prompt, params, stream=stream, sink=sink)
        with self._lock:
            self._check_open()
            if self._unfinished >= self._queue_limit:
                raise Busy(
                    f"{self._unfinished} generations are already queued on {self.backend.info.name}; try again later"
                )
            self._unfinished += 1
            self._inbox.put(request)
        request.start_clock(cancel.subscribe(request.cancel) if cancel else lambda: None)
        return request

    def call(self, function: Callable[[Backend], T]) -> T:
        """Run `function(backend)` on the engine's thread between two passes, and wait for what it returns."""
        call = _Call(function, Future())
        with self._lock:
            self._check_open()
            self._inbox.put(call)
        result: T = call.future.result()
        return result

    def stop_now(self, request: Request) -> None:
        """`request` has a stop reason: interrupt its pass if it is in one, and wake the thread."""
        with self._lock:
            if self._in_pass is request:
                self.backend.interrupt()
        self._inbox.put(None)

    def close(self) -> None:
        """End everything that runs with Closed, stop the thread, free the backend. Closing twice is harmless."""
        with self._lock:
            was_open, self._open = self._open, False
            if was_open and os.getpid() == self._pid:
                self.backend.interrupt()
        if os.getpid() != self._pid:
            return  # a forked child: the thread and the memory are the parent's
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if not self._open:
            raise Closed(f"the model {self.backend.info.name} was closed")
        if os.getpid() != self._pid:
            raise Closed("a model does not survive os.fork(); load it in the child, or start children with 'spawn'")

    def _check_prompt(self, prompt: list[int]) -> None:
        info, n_ctx = self.backend.info, self.backend.n_ctx
        if not prompt:
            raise InvalidParameter(f"the prompt is empty, and {info.name} has no token to begin with; write something")
        bad = next((token for token in prompt if not 0 <= token < info.n_vocab), None)
        if bad is not None:
            raise InvalidParameter(f"token {bad} is outside the vocabulary of {info.n_vocab}")
        if len(prompt) >= n_ctx:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens and the context holds {n_ctx} with at least one to answer; "
                f"shorten it or load the model with a larger ctx (trained for {info.n_ctx_train})",
                needed=len(prompt) + 1,
                n_ctx=n_ctx,
            )

    # The engine's thread

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        """A pass for a function that runs through `call`: interruptions meant for others are repeated."""
        while True:
            try:
                return self.backend.forward(steps)
            except Interrupted:
                with self._lock:
                    self._check_open()

    def _run(self) -> None:
        try:
            while self._take():
                self._drop_stopped()
                self._admit()
                if self._running:
                    self._pass(self._turns.next(self._running))
        except BaseException:
            log.exception("the engine stopped")
        finally:
            self._shut_down()

    def _take(self) -> bool:
        """Take what arrived; wait when there is nothing to run. False once closed."""
        idle = not self._running and not self._waiting
        while self._open:
            try:
                item = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            idle = False
            if isinstance(item, Request):
                self._waiting.append(item)
            elif item is not None:
                self._prefixes.clear()
                item.run(self.backend)
        return False

    def _drop_stopped(self) -> None:
        for request in [*self._running, *self._waiting]:
            if request.stop_reason is not None:
                request.finish(request.stop_reason, self.backend)
                self._retire(request)

    def _admit(self) -> None:
        """Start waiting requests, first come, first served; none while the KV cache is full."""
        while self._waiting and not self._full and len(self._running) < self.backend.max_sequences:
            request = self._waiting.popleft()
            try:
                self._start(request)
            except EdgeLLMError as error:
                if isinstance(error, Busy) and self._running:
                    self._waiting.appendleft(request)
                    self._full = True
                    return
                request.fail(error)
                self._retire(request, keep=False)
            else:
                self._running.append(request)

    def _start(self, request: Request) -> None:
        """Give it a sequence: its own parked state, the longest known prefix, or an empty one."""
        if request.parked:
            self._prefixes.clear()
            sequence = self.backend.new_sequence()
            try:
                sequence.load(request.parked)
            except BaseException:
                sequence.close()
                raise
            request.sequence, request.parked = sequence, []
            return
        known, matched = self._prefixes.take(request.prompt)
        if known is not None:
            keep = reusable(matched, len(request.prompt))
            if keep and known.sequence.truncate(keep):
                request.sequence, request.reused = known.sequence, keep
                return
            known.sequence.close()
        request.sequence = self.backend.new_sequence()

    def _pass(self, request: Request) -> None:
        backend, sequence = self.backend, request.sequence
        assert sequence is not None
        tokens = request.pending
        prefill = request.in_prefill
        if prefill:
            size = prefill_size(len(tokens), backend.micro_batch)
            last = size == len(tokens)
            step = Step(sequence, tokens[:size], "last" if last else "none")
        else:
            last = True
            step = Step(sequence, tokens, "last")
        with self._lock:
            if request.stop_reason is not None or not self._open:
                return
            self._in_pass = request
        started = time.perf_counter()
        try:
            rows = backend.forward([step])[0]
        except Interrupted:
            # The sequence knows its new length; whoever was meant is dropped in the next round.
            if not backend.info.can_truncate:  # a recurrent state is undefined now: begin again
                sequence.close()
                request.sequence, request.reused = backend.new_sequence(), 0
            return
        except Busy as error:
            self._make_room(request, error)
            return
        except Exception as error:
            if not isinstance(error, EdgeLLMError):
                error = BackendFailed(f"the engine failed on a pass: {type(error).__name__}: {error}")
            request.fail(error)
            self._retire(request, keep=False)
            return
        finally:
            with self._lock:
                self._in_pass = None
        if prefill:
            request.prefilled(time.perf_counter() - started)
        if last and rows is not None:
            self._sample(request, rows)

    def _sample(self, request: Request, rows: Rows) -> None:
        try:
            request.accept(rows, self.backend)
        except Exception as error:
            log.debug("a generation failed while sampling", exc_info=True)
            if not isinstance(error, EdgeLLMError):
                error = BackendFailed(f"sampling failed: {type(error).__name__}: {error}")
            request.fail(error)
        if request.done:
            self._retire(request)

    def _make_room(self, request: Request, full: Busy) -> None:
        """The KV cache is full: forget the kept prefix, else park the youngest request in host memory.

        So the oldest always goes on, and what is parked comes back when another has finished.
        """
        if self._prefixes.clear():
            return
        if len(self._running) == 1:
            request.fail(NotEnoughMemory(f"{full}; ask for a smaller ctx"))
            self._retire(request, keep=False)
            return
        youngest = max(self._running, key=lambda running: running.submitted)
        sequence = youngest.sequence
        assert sequence is not None  # every running request has one
        if sequence.length:
            youngest.parked = [sequence.save(0, sequence.length)]
        sequence.close()
        youngest.sequence = None
        self._running.remove(youngest)
        self._waiting.appendleft(youngest)
        self._full = True

    def _retire(self, request: Request, *, keep: bool = True) -> None:
        """Forget a finished request; its sequence stays for reuse when it is the last one and may be kept."""
        self._full = False
        if request in self._running:
            self._running.remove(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        sequence, request.sequence = request.sequence, None
        request.parked = []
        if sequence is not None:
            if keep and request.params.cache and not self._running and sequence.length:
                self._prefixes.put(request.history[: sequence.length], sequence)
            else:
                sequence.close()
        with self._lock:
            self._unfinished -= 1

    def _shut_down(self) -> None:
        """Everything unfinished ends with Closed; nobody is left waiting."""
        with self._lock:
            self._open = False
        closed = Closed(f"the model {self.backend.info.name} was closed")
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Request):
                self._waiting.append(item)
            elif item is not None:
                item.future.set_exception(closed)
        for request in [*self._running, *self._waiting]:
            request.fail(closed)
            self._retire(request, keep=False)
        self._prefixes.clear()
        self.backend.close()
