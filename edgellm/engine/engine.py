"""Engine: the thread that owns a backend.

    submit() ──▶ inbox ──▶ seats: waiting ──▶ running ──▶ one pass at a time ──▶ chunks
    call()   ──▶ inbox ──▶ run between two passes

Everything that touches the backend happens on this thread, except `Backend.interrupt`.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from edgellm import threads
from edgellm.backends.base import Backend, Rows, Step
from edgellm.constrain.constraint import Constraints
from edgellm.engine.deadlines import DEADLINES
from edgellm.engine.generation import Generation, Sink
from edgellm.engine.outbox import Outbox
from edgellm.engine.passes import Passes
from edgellm.engine.progress import OnProgress
from edgellm.engine.reading import UNKNOWN, Source
from edgellm.engine.request import Request
from edgellm.engine.reuse import Reuse
from edgellm.engine.seats import Seats
from edgellm.errors import Busy, Closed, ContextOverflow, Interrupted, InvalidParameter, NotEnoughMemory, Unsupported
from edgellm.events import Activity
from edgellm.kv.prefixes import UNNAMED, PrefixCache
from edgellm.params import GenerateParams

log = logging.getLogger("edgellm.engine")
T = TypeVar("T")

_alive: set[Engine] = set()  # whose threads run


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Backend], Any]
    future: Future[Any]
    needs_room: bool = False

    def run(self, backend: Backend) -> None:
        try:
            self.future.set_result(self.function(backend))
        except BaseException as error:
            self.future.set_exception(error)


class Engine:
    """Runs generations on one backend, safe to call from any thread.

    known: parked state of earlier requests; None keeps none. queue_limit: generations that may be unfinished at once;
    more raise Busy. clock: seconds, to measure passes and turns.
    """

    def __init__(
        self,
        backend: Backend,
        known: PrefixCache | None = None,
        *,
        load_ms: float = 0.0,
        queue_limit: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend = backend
        self.load_ms = load_ms
        self.outbox = Outbox()  # what its thread has for event loops
        self._constraints = Constraints(backend.info, backend.tokenizer)
        self._queue_limit = queue_limit
        self._inbox: queue.SimpleQueue[Request | _Call | None] = queue.SimpleQueue()
        self.reuse = Reuse(backend, known)  # for its thread
        self._unfinished: set[Request] = set()
        self._seats = Seats(backend, self.reuse, left=self._left, clock=clock)
        self._passes = Passes(backend, self._seats, self.reuse, clock=clock)
        self._open = True
        self._pid = os.getpid()
        self._ended = threading.Event()  # a join that Ctrl-C interrupts takes its thread for ended, up to Python 3.12
        self._thread = threading.Thread(target=self._run, name="edgellm-engine", daemon=True)
        _alive.add(self)
        try:
            threads.start(self._thread)
        except NotEnoughMemory:
            self._shut_down(retain=False)
            raise
        except BaseException:  # Ctrl-C: the thread runs
            self.abandon()
            raise

    # Any thread

    def submit(
        self,
        prompt: list[int],
        params: GenerateParams,
        *,
        stream: bool = False,
        sink: Sink | None = None,
        progress: OnProgress | None = None,
        source: Source = UNKNOWN,
        owner: bytes = UNNAMED,
    ) -> Generation:
        """Queue a generation. Raises ContextOverflow, InvalidParameter, Unsupported, Busy, Closed.

        Chunks (stream: of every piece, else the last one alone), or the error, go to `sink` on the engine's thread;
        without one the generation keeps them for its reader. So do the calls of `progress`: the tokens of the prompt
        that are read, and all. owner: see `Request`.
        """
        self.check_open()
        self._check_prompt(prompt)
        self._passes.speculation.check(params)
        if params.adapter is not None and params.adapter not in self.backend.adapters:
            known = ", ".join(self.backend.adapters) or "none; give it to load(adapters=…)"
            raise InvalidParameter(
                f"adapter {params.adapter!r} is not loaded with {self.backend.info.name}; there are: {known}"
            )
        generation = Generation(self, len(prompt), stream=stream, sink=sink, progress=progress)
        generation.reading = source.reading
        generation.constraint = self._constraints.of(params, prompt, source.reading)
        request = Request(
            self.backend, prompt, params, generation, title=source.title, owner=owner, load_ms=self.load_ms
        )
        try:
            self._unfinished.add(request)
            if len(self._unfinished) > self._queue_limit:
                raise Busy(
                    f"{self._queue_limit} generations are already queued on {self.backend.info.name}; try again later"
                )
            self._put(request)
            if params.timeout is not None:
                generation.at_end(DEADLINES.add(params.timeout, lambda: generation.cancel("timeout")))
        except BaseException:  # Ctrl-C too: nobody would know that it goes on
            generation.cancel()
            self._unfinished.discard(request)
            raise
        return generation

    def call(self, function: Callable[[Backend], T], *, needs_room: bool = False) -> T:
        """Run `function(backend)` on the engine's thread between two passes, and wait for what it returns.

        needs_room: it opens or feeds sequences, so that the one that was kept alive is forgotten first. Raises Closed,
        Unsupported on the engine's thread, and what `function` raises.
        """
        self.check_open()
        self.check_waiter()
        call = _Call(function, Future(), needs_room)
        self._put(call)
        result: T = call.future.result()
        return result

    def post(self, function: Callable[[Backend], object]) -> None:
        """Have `function(backend)` run on the engine's thread, if it is not closed, and wait for nothing.

        For what ends with an object: the collector may do that in the midst of anything, on any thread.
        """
        self._inbox.put(_Call(function, Future()))

    def activity(self) -> Activity:
        """What it does now, as one may see it from outside."""
        running, passes = len(self._seats.running), self._passes
        return Activity(running, max(0, len(self._unfinished) - running), passes.prefill, passes.decode)

    def stop_now(self, generation: Generation) -> None:
        """It has a stop reason: interrupt its pass if it is in one, and wake the thread."""
        if os.getpid() == self._pid:
            self._passes.interrupt(generation)
            self._inbox.put(None)

    def check_open(self) -> None:
        """Raise Closed if it was closed, or belongs to the process that this one was forked from."""
        if not self._open:
            raise Closed(f"the model {self.backend.info.name} was closed")
        self.check_process()

    def check_process(self) -> None:
        """Raise Closed in a forked child, where its thread is missing."""
        if os.getpid() != self._pid:
            raise Closed("a model does not survive os.fork(); load it in the child, or start children with 'spawn'")

    def check_waiter(self) -> None:
        """Raise Closed where nobody will come, and Unsupported on its own thread, which would wait for itself."""
        self.check_process()
        if threading.current_thread() is self._thread:
            raise Unsupported(
                "a sink and its progress are called on the engine's own thread, which cannot wait for its model; "
                "submit() the work with a sink of its own, or hand it to another thread"
            )

    def abandon(self) -> None:
        """Close it soon: like `post`, for what ends with an object. Nothing is interrupted."""
        self._open = False
        self._inbox.put(None)

    def close(self) -> None:
        """End everything that runs with Closed, stop the thread, free the backend. Closing twice is harmless."""
        if os.getpid() != self._pid:
            self._open = False
            return  # a forked child: the thread, its locks and the memory are the parent's
        was_open, self._open = self._open, False
        if was_open:
            self._passes.stop()
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._ended.wait()
            self._thread.join()

    def _put(self, item: Request | _Call) -> None:
        self._inbox.put(item)
        self.check_open()  # behind it: whoever ends the thread says so before it looks for the last time

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
                self.check_open()

    def forget(self, owner: bytes) -> None:
        """Let go what is private of a conversation that nobody can go on with."""
        self.reuse.forget(owner)
        self._passes.speculation.forget(owner)

    def _left(self, request: Request) -> None:
        self._unfinished.discard(request)
        self._passes.speculation.ended(request)

    def _run(self) -> None:
        sound, seats, passes = False, self._seats, self._passes
        try:
            while self._take():
                seats.drop_stopped()
                seats.take_turns()
                passes.begin(seats.admit(), self.outbox.flush)
                if seats.running:
                    passes.run()
                self.outbox.flush()
            seats.drop_stopped()
            sound = True
        except BaseException:
            log.exception("the engine stopped")
        finally:
            self._shut_down(retain=sound)

    def _take(self) -> bool:
        """Take what arrived; wait when there is nothing to run. False once closed."""
        idle = not self._seats.running and not self._seats.waiting
        while self._open:
            if not idle and self._inbox.empty():  # nobody else takes from it
                return True
            item = self._inbox.get()
            idle = False
            if isinstance(item, Request):
                self._seats.waiting.append(item)
            elif item is not None:
                if item.needs_room:
                    self.reuse.forget_live()
                item.run(self.backend)
        return False

    def _shut_down(self, *, retain: bool) -> None:
        """Everything unfinished ends with Closed; nobody is left waiting. retain: what was computed stays known."""
        self._open = False
        closed = Closed(f"the model {self.backend.info.name} was closed")
        try:
            with ExitStack() as stack:  # all of it happens, whatever some of it raises; the last that is pushed first
                stack.callback(_alive.discard, self)
                stack.callback(self.backend.close)
                stack.callback(self.reuse.close)
                stack.callback(self.outbox.flush)
                for request in list(self._unfinished):
                    stack.callback(self._seats.retire, request, retain=retain)
                    if not request.done:
                        stack.callback(request.generation.end, closed)
                while not self._inbox.empty():
                    item = self._inbox.get()
                    if isinstance(item, _Call):
                        stack.callback(item.future.set_exception, closed)
        except BaseException:
            log.exception("closing %s failed in part", self.backend.info.name)
        finally:
            self._ended.set()


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes: native code must not run when its libraries are taken down."""
    for engine in list(_alive):
        while True:
            try:
                engine.close()
            except KeyboardInterrupt:  # its thread may be in native code, which would end the process by abort
                continue
            break
