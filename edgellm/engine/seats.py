"""Seats: which requests run, which wait, and which are parked to make room or to let others have their turn."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from edgellm.backends.base import Backend
from edgellm.engine.request import Request
from edgellm.engine.reuse import Reuse
from edgellm.engine.turns import UNLIMITED, Turns
from edgellm.errors import BackendFailed, Busy, EdgeLLMError, NotEnoughMemory

log = logging.getLogger("edgellm.engine")


class Seats:
    """For the engine's thread alone. left: called for every request that is forgotten. clock: seconds."""

    def __init__(
        self, backend: Backend, reuse: Reuse, *, left: Callable[[Request], None], clock: Callable[[], float]
    ) -> None:
        shape = backend.pass_shape
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the one that has had a sequence for longest comes first
        self.turns = Turns(shape, clock) if shape.takes_turns or shape.limit is not None else None
        self._backend = backend
        self._reuse = reuse
        self._left = left
        self._shared: dict[Request, int] = {}  # tokens whose cells a running request shares with another one
        self._limit = UNLIMITED  # requests that decode at once
        self._full = False  # a request was parked for lack of room, and none has finished since

    def drop_stopped(self) -> None:
        """End those that were cancelled or are out of time, or whose reader was left behind on a closed loop."""
        for request in [*self.running, *self.waiting]:
            loop = request.generation.loop
            if loop is not None and loop.is_closed():
                request.generation.cancel()
            if request.stop_reason is not None:
                request.finish(request.stop_reason)
                self.retire(request)

    def admit(self) -> list[Request]:
        """Start waiting requests, first come, first served; none while the KV cache is full. Who has started.

        One that shares a long beginning with a prompt that is being read waits until that part is there. Where not all
        may decode at once, prompts are started one at a time, as they are read, and hold no cells before. Parked ones
        come back one per pass, as long as the limit lets more decode; so every number of them is measured.
        """
        begun: list[Request] = []
        if not self.waiting:
            return begun
        decoding = sum(not request.in_prefill for request in self.running)
        started = len(self.running) + sum(bool(request.parked) for request in self.waiting)
        room = self._backend.max_sequences - started  # parked state is bounded as well: it counts like a sequence
        if self._limit < UNLIMITED:
            room = min(room, 1 - (len(self.running) - decoding))
        back = int(decoding < self._limit)
        for request in list(self.waiting):
            if self._full or len(self.running) >= self._backend.max_sequences:
                break
            if request.parked and back:
                back -= 1
            elif not request.parked and room > 0 and not self._reuse.is_coming(request, self.running):
                room -= 1
            else:
                continue
            self.waiting.remove(request)
            if self._start(request):
                begun.append(request)
        return begun

    def take_turns(self) -> None:
        """Park who decodes beyond the limit; after a turn, who has decoded longest makes way for who waits longest."""
        if self.turns is None or not (self.waiting or self.running[1:]):
            return
        decoding = [request for request in self.running if not request.in_prefill]
        parked = [request for request in self.waiting if request.parked]
        lengths = [len(request.history) for request in (*self.running, *parked)]
        self._limit = self.turns.limit(lengths, None if parked else self.cells())
        beyond = decoding[self._limit :]
        if beyond:
            # Where several go, all do: those that come back fill the KV cache from its beginning, and llama.cpp scans
            # it up to the last cell in use.
            for request in beyond if len(beyond) == 1 else decoding:
                self._wait_for_a_turn(request)
            if not parked and self.turns is not None:
                self.turns.begin()
        elif parked and len(decoding) == self._limit and not self._full and self.turns.over:
            self.turns.begin(lambda: self._swap(decoding[0], parked[0]))

    def _swap(self, decoding: Request, parked: Request) -> None:
        self._wait_for_a_turn(decoding)
        self.waiting.remove(parked)
        self._start(parked)

    def _wait_for_a_turn(self, request: Request) -> None:
        """Park a request behind the others that wait. Where that cannot be, nobody takes turns from now on."""
        if self.park(request):
            self.waiting.append(request)
            self._full = False
        else:
            self.turns, self._limit = None, UNLIMITED

    def decoded(self, rows: int, seconds: float) -> None:
        """A pass of so many rows, of answers alone, took so long."""
        if self.turns is not None:
            self.turns.decoded(rows, self.cells(), seconds)

    def cells(self) -> int:
        """Cells of the KV cache that the running requests use."""
        return sum(request.length for request in self.running) - sum(self._shared.values())

    def _start(self, request: Request) -> bool:
        """Give a request its state; whether it is new and runs now."""
        new = not request.parked
        undone = request.read - request.reused if new else 0
        try:
            self._reuse.start(request, self.running)
        except Exception as error:
            if isinstance(error, Busy) and self.running:
                self.waiting.appendleft(request)
                self._full = True
            else:
                self.fail(request, error, "a request could not start")
            return False
        if new and self.running and request.cache.from_live:  # forked: no other sequence is alive then
            self._shared[request] = request.cache.from_live
        self.running.append(request)
        if new:
            self._began(request, undone)
        return new and not request.done

    def load_deferred(self, request: Request) -> None:
        """Load the state that a request began without."""
        try:
            self._reuse.load_deferred(request)
        except Exception as error:
            self.fail(request, error, "the state of a prompt could not be loaded")
        else:
            self._began(request, 0)

    def _began(self, request: Request, undone: int) -> None:
        """Its sequence holds what is known of its prompt. It may be done by that: what follows its progress failed."""
        request.began(undone)
        if request.done:
            self.retire(request)

    def recover(self, requests: list[Request]) -> None:
        """After an interrupted pass: sequences know their new length; whoever was meant is dropped next."""
        if self._backend.info.can_truncate:
            for request in self.running:
                if request.length < request.read:
                    request.lost()
            return
        for request in reversed(requests):  # a recurrent state is undefined now: begin again where one is known
            request.release()
            if request.stop_reason is None:
                self.begin_again(request)

    def begin_again(self, request: Request) -> None:
        """A running request has lost its state: it starts from what is known of its prompt, before all who wait."""
        self._leave(request)
        self.waiting.appendleft(request)
        self._full = False

    def make_room(self, full: Busy) -> None:
        """The KV cache is full: forget the kept sequence, else park the youngest request in host memory.

        So the oldest always goes on, and what is parked comes back when another has finished.
        """
        if self._reuse.forget_live():
            return
        youngest_first = sorted(self.running, key=lambda running: running.spent.submitted, reverse=True)
        for request in youngest_first if len(self.running) > 1 else []:
            if self.park(request):
                self.waiting.appendleft(request)
                self._full = True
                return
        youngest_first[0].generation.end(NotEnoughMemory(f"{full}; ask for a smaller ctx"))
        self.retire(youngest_first[0])

    def park(self, request: Request) -> bool:
        """Move the state of a running request to host memory; it runs no more. False when its state cannot be saved."""
        try:
            self._reuse.park(request)
        except (BackendFailed, MemoryError) as error:
            log.debug("a request could not be parked: %s", error)
            return False
        self._leave(request)
        return True

    def _leave(self, request: Request) -> None:
        """`request` runs no more. If others share its cells, those now belong to the one that shares most."""
        self.running.remove(request)
        shared = self._shared.pop(request, 0)
        heir = max(self._shared, key=self._shared.__getitem__, default=None)
        if heir is not None:
            self._shared[heir] = min(self._shared[heir], shared)

    def fail(self, request: Request, error: Exception, what: str) -> None:
        """End a request with an error of ours, and forget it with its state."""
        if not isinstance(error, EdgeLLMError):
            error = BackendFailed(f"{what}: {type(error).__name__}: {error}")
        request.generation.end(error)
        self.retire(request, retain=False)

    def retire(self, request: Request, *, retain: bool = True) -> None:
        """Forget a finished request. retain: its state is known from now on, as far as it came, and the last one's
        sequence stays alive as well."""
        self._full = False
        if request in self.running:
            self._leave(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        if retain and request.params.cache and (request.parked or request.length):
            self._reuse.retain(request, alone=not self.running)
        else:
            request.release()
        request.parked = []
        self._left(request)
