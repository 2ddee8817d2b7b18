"""Engine: the thread that owns a backend.

    submit() ──▶ inbox ──▶ waiting ──▶ running ──▶ one pass at a time ──▶ chunks
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
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from edgellm.backends.base import Backend, Buffer, Rows, Step
from edgellm.engine.cancel import CancelToken
from edgellm.engine.progress import OnProgress
from edgellm.engine.request import Request, Sink
from edgellm.engine.reuse import Reuse
from edgellm.engine.scheduler import UNLIMITED, Scheduler
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
from edgellm.kv.blocks import Block
from edgellm.kv.prefixes import PrefixCache
from edgellm.params import GenerateParams

log = logging.getLogger("edgellm.engine")
T = TypeVar("T")

TURN_SECONDS = 0.5  # after which a request that waits for its turn takes the place of one that decodes
TURN_SWAPS = 32  # times what that took must pass before the next one

_alive: set[Engine] = set()  # whose threads run


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
        self._queue_limit = queue_limit
        self._inbox: queue.SimpleQueue[Request | _Call | None] = queue.SimpleQueue()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # the one that has had a sequence for longest comes first
        self._shared: dict[Request, int] = {}  # tokens whose cells a running request shares with another one
        self._clock = clock
        self._limit = UNLIMITED  # requests that decode at once
        self._turns = backend.pass_shape.takes_turns
        self._turn_ends = 0.0
        self._full = False  # a request was parked for lack of room, and none has finished since
        self._reuse = Reuse(backend, known)
        self._scheduler = Scheduler(backend.pass_shape, backend.micro_batch)
        self._lock = threading.RLock()  # guards the three below; the collector may end a request while it is held
        self._open = True
        self._unfinished = 0
        self._in_pass: Request | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="edgellm-engine", daemon=True)
        _alive.add(self)
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
        progress: OnProgress | None = None,
        title: str = "",
    ) -> Request:
        """Queue a generation. Raises ContextOverflow, InvalidParameter, Busy, Closed.

        Chunks, or the error, go to `sink` on the engine's thread; without one the request keeps them for its reader.
        So do the calls of `progress`: the tokens of the prompt that are read, and all. title: see `Request`.
        """
        self.check_open()
        self._check_prompt(prompt)
        request = Request(self, prompt, params, stream=stream, sink=sink, progress=progress, title=title)
        with self._lock:
            self.check_open()
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
        self.check_open()
        call = _Call(function, Future())
        with self._lock:
            self.check_open()
            self._inbox.put(call)
        result: T = call.future.result()
        return result

    def post(self, function: Callable[[Backend], object]) -> None:
        """Have `function(backend)` run on the engine's thread, if it is not closed, and wait for nothing.

        For what ends with an object: the collector may do that in the midst of anything, on any thread.
        """
        self._inbox.put(_Call(function, Future()))

    def export(self, tokens: list[int], *, private: bool) -> list[tuple[Block, Buffer]]:
        """The state that is known of the beginning of `tokens`: consecutive blocks of nothing but them."""
        return self.call(lambda backend: self._reuse.export(tokens, private=private))

    def adopt(self, blocks: list[tuple[Block, Buffer]], *, private: bool) -> bool:
        """Know what `export` gave. False when it belongs to another model, engine build or kind of cache."""
        return self.call(lambda backend: self._reuse.adopt(blocks, private=private))

    def stop_now(self, request: Request) -> None:
        """`request` has a stop reason: interrupt its pass if it is in one, and wake the thread."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._in_pass is request:
                self.backend.interrupt()
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

    def abandon(self) -> None:
        """Close it soon: like `post`, for what ends with an object. Nothing is interrupted."""
        self._open = False
        self._inbox.put(None)

    def close(self) -> None:
        """End everything that runs with Closed, stop the thread, free the backend. Closing twice is harmless."""
        if os.getpid() != self._pid:
            self._open = False
            return  # a forked child: the thread, its locks and the memory are the parent's
        with self._lock:
            was_open, self._open = self._open, False
            if was_open:
                self.backend.interrupt()
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

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
                    self.check_open()

    def _run(self) -> None:
        sound = False
        try:
            while self._take():
                self._drop_stopped()
                self._take_turns()
                self._admit()
                if self._running:
                    self._pass()
            self._drop_stopped()
            sound = True
        except BaseException:
            log.exception("the engine stopped")
        finally:
            self._shut_down(keep=sound)

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
                self._reuse.forget_live()
                item.run(self.backend)
        return False

    def _drop_stopped(self) -> None:
        for request in [*self._running, *self._waiting]:
            if request.stop_reason is not None:
                request.finish(request.stop_reason, self.backend)
                self._retire(request)

    def _admit(self) -> None:
        """Start waiting requests, first come, first served; none while the KV cache is full.

        One that shares a long beginning with a prompt that is being read waits until that part is there. Where not all
        may decode at once, prompts are started one at a time, as they are read, and hold no cells before. Parked ones
        come back one per pass, as long as the limit lets more decode; so every number of them is measured.
        """
        decoding = sum(not request.in_prefill for request in self._running)
        started = len(self._running) + sum(bool(request.parked) for request in self._waiting)
        room = self.backend.max_sequences - started  # parked state is bounded as well: it counts like a sequence
        if self._limit < UNLIMITED:
            room = min(room, 1 - (len(self._running) - decoding))
        back = int(decoding < self._limit)
        for request in list(self._waiting):
            if self._full or len(self._running) >= self.backend.max_sequences:
                return
            if request.parked and back:
                back -= 1
            elif not request.parked and room > 0 and not self._reuse.is_coming(request, self._running):
                room -= 1
            else:
                continue
            self._waiting.remove(request)
            self._start_or_fail(request)

    def _take_turns(self) -> None:
        """Park who decodes beyond the limit; after a turn, who has decoded longest makes way for who waits longest."""
        decoding = [request for request in self._running if not request.in_prefill]
        parked = [request for request in self._waiting if request.parked]
        lengths = [len(request.history) for request in (*self._running, *parked)]
        self._limit = self._scheduler.limit(lengths, None if parked else self._cells()) if self._turns else UNLIMITED
        beyond = decoding[self._limit :]
        if beyond:
            # Where several go, all do: those that come back fill the KV cache from its beginning, and llama.cpp scans
            # it up to the last cell in use.
            for request in beyond if len(beyond) == 1 else decoding:
                self._wait_for_a_turn(request)
            if not parked:
                self._turn_ends = self._clock() + TURN_SECONDS
        elif parked and len(decoding) == self._limit and not self._full and self._clock() >= self._turn_ends:
            started = self._clock()
            self._wait_for_a_turn(decoding[0])
            self._waiting.remove(parked[0])
            self._start_or_fail(parked[0])
            now = self._clock()
            self._turn_ends = now + max(TURN_SECONDS, TURN_SWAPS * (now - started))

    def _wait_for_a_turn(self, request: Request) -> None:
        """Park a request behind the others that wait. Where that cannot be, nobody takes turns from now on."""
        if self._park(request):
            self._waiting.append(request)
            self._full = False
        else:
            self._turns = False

    def _cells(self) -> int:
        """Cells of the KV cache that the running requests use."""
        used = sum(request.sequence.length for request in self._running if request.sequence is not None)
        return used - sum(self._shared.values())

    def _start_or_fail(self, request: Request) -> None:
        new = not request.parked
        undone = request.read - request.reused if new else 0
        try:
            self._reuse.start(request, self._running)
        except Exception as error:
            if isinstance(error, Busy) and self._running:
                self._waiting.appendleft(request)
                self._full = True
                return
            request.fail(_as_ours(error, "a request could not start"))
            self._retire(request, keep=False)
        else:
            if new and self._running and request.cache.from_live:  # forked: no other sequence is alive then
                self._shared[request] = request.cache.from_live
            self._running.append(request)
            if new:
                request.began(undone)
            if request.row is not None and not request.tokens:  # the logits after its prompt are known
                self._sample(request, request.row)
            self._bring(request)
            if request.done and request in self._running:
                self._retire(request)

    def _bring(self, request: Request) -> None:
        """Load the state that a request began without."""
        if request.done or request.late is None:
            return
        try:
            self._reuse.bring(request)
        except Exception as error:
            request.fail(_as_ours(error, "the state of a prompt could not be loaded"))
            self._retire(request, keep=False)
        else:
            request.began(0)

    def _leave(self, request: Request) -> None:
        """`request` runs no more. If others share its cells, those now belong to the one that shares most."""
        self._running.remove(request)
        shared = self._shared.pop(request, 0)
        heir = max(self._shared, key=self._shared.__getitem__, default=None)
        if heir is not None:
            self._shared[heir] = min(self._shared[heir], shared)

    def _pass(self) -> None:
        """One pass: a prefill slice of one request, or the next token of every request that decodes."""
        shares = [(r, n) for r, n in self._scheduler.next(self._running) if r.stop_reason is None]
        prefill = bool(shares) and shares[0][0].in_prefill
        steps = []
        for request, size in shares:
            assert request.sequence is not None  # every running request has one
            tokens = request.pending
            steps.append(Step(request.sequence, tokens[:size], "last" if size == len(tokens) else "none"))
        with self._lock:
            if not self._open or not shares or (prefill and shares[0][0].stop_reason is not None):
                return
            # A decode pass is over within a token; only a prefill pass is worth interrupting.
            self._in_pass = shares[0][0] if prefill else None
        started = self._clock()
        try:
            rows = self.backend.forward(steps)
        except Interrupted:
            self._recover([request for request, _ in shares])
            return
        except Busy as error:
            self._make_room(error)
            return
        except Exception as error:
            for request, _ in shares:
                request.fail(_as_ours(error, "the engine failed on a pass"))
                self._retire(request, keep=False)
            return
        finally:
            with self._lock:
                self._in_pass = None
        taken = self._clock() - started
        if prefill:
            request, size = shares[0]
            request.prefilled(size, taken)
            self._scheduler.prefilled(size, taken)
            if request.sequence is not None and request.sequence.length in request.checkpoints:
                self._reuse.checkpoint(request)
        elif self._turns:
            self._scheduler.decoded(len(shares), self._cells(), taken)
        for (request, _), row in zip(shares, rows, strict=True):
            if request.done:
                self._retire(request)
            elif row is not None:
                self._sample(request, row)

    def _recover(self, requests: list[Request]) -> None:
        """After an interrupted pass: sequences know their new length; whoever was meant is dropped next."""
        if self.backend.info.can_truncate:
            for request in self._running:
                if request.sequence is not None and request.sequence.length < request.read:
                    request.lost()
            return
        for request in reversed(requests):  # a recurrent state is undefined now: begin again where one is known
            assert request.sequence is not None  # it was in the pass
            request.sequence.close()
            request.sequence = None
            if request.stop_reason is None:
                self._leave(request)
                self._waiting.appendleft(request)
                self._full = False

    def _sample(self, request: Request, rows: Rows) -> None:
        try:
            request.accept(rows, self.backend)
        except Exception as error:
            log.debug("a generation failed while sampling", exc_info=True)
            request.fail(_as_ours(error, "sampling failed"))
        if request.done:
            self._retire(request)

    def _make_room(self, full: Busy) -> None:
        """The KV cache is full: forget the kept sequence, else park the youngest request in host memory.

        So the oldest always goes on, and what is parked comes back when another has finished.
        """
        if self._reuse.forget_live():
            return
        youngest_first = sorted(self._running, key=lambda running: running.submitted, reverse=True)
        for request in youngest_first if len(self._running) > 1 else []:
            if self._park(request):
                self._waiting.appendleft(request)
                self._full = True
                return
        youngest_first[0].fail(NotEnoughMemory(f"{full}; ask for a smaller ctx"))
        self._retire(youngest_first[0])

    def _park(self, request: Request) -> bool:
        """Move the state of a running request to host memory; it runs no more. False when its state cannot be saved."""
        try:
            self._reuse.park(request)
        except BackendFailed as error:
            log.debug("a request could not be parked: %s", error)
            return False
        self._leave(request)
        return True

    def _retire(self, request: Request, *, keep: bool = True) -> None:
        """Forget a finished request. Its state is known from now on, as far as it came, and the last one's sequence
        stays alive as well."""
        self._full = False
        if request in self._running:
            self._leave(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        sequence = request.sequence
        if keep and request.params.cache and (request.parked or (sequence is not None and sequence.length)):
            self._reuse.keep(request, alone=not self._running)
        elif sequence is not None:
            sequence.close()
            request.sequence = None
        request.parked = []
        with self._lock:
            self._unfinished -= 1

    def _shut_down(self, *, keep: bool) -> None:
        """Everything unfinished ends with Closed; nobody is left waiting. keep: what was computed stays known."""
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
            self._retire(request, keep=keep)
        self._reuse.close()
        self.backend.close()
        _alive.discard(self)


def _as_ours(error: Exception, what: str) -> EdgeLLMError:
    if isinstance(error, EdgeLLMError):
        return error
    return BackendFailed(f"{what}: {type(error).__name__}: {error}")


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes: native code must not run when its libraries are taken down."""
    for engine in list(_alive):
        engine.close()
