"""Generation: what the caller has of a request. It reads chunks from it and may cancel it, from any thread."""

from __future__ import annotations

import logging
import queue
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from edgellm.constrain.constraint import Constraint
from edgellm.engine.progress import OnProgress, Progress, checked_progress
from edgellm.engine.reading import Reading
from edgellm.errors import Unsupported
from edgellm.events import Chunk, Completion, FinishReason

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from edgellm.engine.engine import Engine

log = logging.getLogger("edgellm.engine")

Sink = Callable[["Chunk | BaseException"], None]


class Generation:
    """One generation: iterate it for chunks, or ask for its `result()`. Closing the iteration early cancels it.

    Of what goes to a `sink` only the last chunk is kept. `progress` is called by whoever iterates, on that thread; with
    a `sink`, where that is called. total: tokens of the prompt. stream: whether it gets a chunk of every piece.
    """

    def __init__(
        self, engine: Engine, total: int, *, stream: bool, sink: Sink | None, progress: OnProgress | None
    ) -> None:
        progress = checked_progress(progress)
        self.stream = stream
        self.stop_reason: FinishReason | None = None  # set from any thread: cancelled or timeout
        self.constraint: Constraint | None = None  # of its answer
        self.reading: Reading | None = None
        self.done = False
        self.loop: AbstractEventLoop | None = None  # where its reader is
        self.owner: object = None  # what must not be forgotten before this is done: the Model, and the Turn
        self._engine = engine
        self._queue: queue.SimpleQueue[Chunk | BaseException | Callable[[], None]] = queue.SimpleQueue()
        self._sink: Sink = sink or self._queue.put
        queued = progress and (progress if sink else lambda *numbers: self._queue.put(partial(progress, *numbers)))
        self.progress = Progress(queued, total)  # of its prompt
        self._at_end: list[Callable[[], None]] = []

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
        if not self.done and self.stop_reason is None:
            self.stop_reason = reason
            self._engine.stop_now(self)

    def __reduce__(self) -> NoReturn:
        raise Unsupported("a generation is neither copied nor sent to another process: pass on its result()")

    def _next(self) -> Chunk:
        self._engine.check_waiter()
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
                return self.parsed(item)
            item()  # progress

    def parsed(self, chunk: Chunk) -> Chunk:
        """A chunk, whose completion says what an answer with a form stands for. On the reader's side, as that may run
        what the class of a schema brings. Raises ConstraintFailed."""
        done = chunk.completion
        if done is None or self.constraint is None or done.finish_reason != "stop":
            return chunk
        return replace(chunk, completion=replace(done, parsed=self.constraint.parsed(done.text)))

    # The engine's side

    def at_end(self, function: Callable[[], None]) -> None:
        """Call `function` when it is done: at once if it is."""
        self._at_end.append(function)
        if self.done:
            function()

    def deliver(self, item: Chunk | BaseException) -> None:
        """Hand over a chunk; a sink that fails, in whatever way, cancels the generation and stops nobody else."""
        try:
            self._sink(item)
        except BaseException:
            log.exception("what takes the pieces of an answer failed; the generation is cancelled")
            self._sink = lambda item: None
            self.cancel()

    def end(self, item: Chunk | BaseException) -> None:
        """Deliver the last chunk, or an error in place of it."""
        self.done = True
        for function in self._at_end:
            try:
                function()
            except BaseException:
                log.exception("what is called at the end of a generation failed")
        self.deliver(item)
        if self._sink != self._queue.put:
            self._queue.put(item)  # for result()
        self.owner = None
