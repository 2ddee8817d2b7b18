"""Writer: the thread of the disk tier. Whatever changes files and rows is handed over here, and nobody waits for it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from edgellm import threads
from edgellm.backends.base import Buffer
from edgellm.errors import NotEnoughMemory
from edgellm.kv.blockfile import Stopped
from edgellm.kv.blocks import Block
from edgellm.kv.shelf import Shelf

log = logging.getLogger("edgellm.kv")

QUEUE_BYTES = 256 << 20  # payloads waiting to be written
RETRY_SECONDS = 60.0  # after writing failed
TOUCH_SECONDS = 1.0  # recency is written this much later, together
PRIORITY = 10  # niceness of the thread, where threads have one


@dataclass(frozen=True, slots=True)
class Item:
    """A block to be written, its state, and its label and words."""

    block: Block
    payload: Buffer
    names: tuple[str, str]


@dataclass(slots=True)
class _Work:
    """What waits for the thread: blocks to be written and the bytes of them, groups of blocks that were used together,
    and doubted ones to be looked at."""

    queue: dict[bytes, Item] = field(default_factory=dict)
    nbytes: int = 0
    touched: list[list[bytes]] = field(default_factory=list)
    unchecked: list[tuple[bytes, bool]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.queue or self.touched or self.unchecked)


class Writer:
    """Keeps at most `budget` bytes on the shelf. Methods may be called from any thread.

    problem and dropped are those of `BlockStore`. `doubt` a block, and it is not offered until the thread has looked.
    """

    def __init__(self, shelf: Shelf, budget: int) -> None:
        self.problem = shelf.problem  # whoever opens a store says this one
        self.dropped = 0
        self._shelf, self._budget = shelf, budget
        self._changed = threading.Condition()  # guards what follows, and `dropped`
        self._work = _Work()
        self._doubted: set[bytes] = set()
        self._busy = True
        self._flushing = 0
        self._deadline: float | None = None  # set by close, on the monotonic clock
        self._paused_until = 0.0
        self._thread = threading.Thread(target=self._run, name="edgellm-kv-writer", daemon=True)
        try:
            threads.start(self._thread)
        except NotEnoughMemory as error:
            self.problem = shelf.problem = shelf.problem or f"{shelf.folder} is not written to: {error}"
            self._deadline, self._busy = 0.0, False

    def write(self, item: Item) -> None:
        """Store a block; one that is there already counts as used."""
        key, size = item.block.key, len(item.payload)
        with self._changed:
            if key in self._work.queue:
                return
            stopped = self._shelf.problem or self._deadline is not None or time.monotonic() < self._paused_until
            if stopped or self._work.nbytes + size > QUEUE_BYTES:
                self.dropped += 1
                return
            self._work.queue[key] = item
            self._work.nbytes += size
            self._changed.notify_all()

    def touch(self, keys: Iterable[bytes]) -> None:
        """These blocks were used now, together."""
        together = list(keys)
        with self._changed:
            if together and self._deadline is None:
                self._work.touched.append(together)
                self._changed.notify_all()

    def queued(self, key: bytes) -> bool:
        """Whether the block is about to be written."""
        with self._changed:
            return key in self._work.queue

    def doubted(self) -> set[bytes]:
        """The blocks that are not offered now."""
        with self._changed:
            return set(self._doubted)

    def doubt(self, key: bytes, *, useless: bool = False) -> bool:
        """Do not offer the block any more, and look at it, or delete what is useless. False: it is doubted already."""
        with self._changed:
            if key in self._doubted:
                return False
            self._doubted.add(key)
            if self._deadline is None:
                self._work.unchecked.append((key, useless))
                self._changed.notify_all()
            return True

    def fail(self, problem: str) -> None:
        """Something cannot be read or written: it becomes `problem`, unless the shelf has one, which is why."""
        if self._shelf.problem is not None:
            log.debug("prompt cache on disk: %s", problem)
            return
        if problem != self.problem:
            log.warning("prompt cache on disk: %s", problem)
        self.problem = problem

    def flush(self, timeout: float | None) -> bool:
        """Wait until everything handed over is on disk. False when `timeout` seconds were not enough."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._busy and not self._work, timeout)
            finally:
                self._flushing -= 1

    def close(self, timeout: float) -> bool:
        """Write what is queued within `timeout` seconds and drop the rest. Whether the thread has ended."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        if self._thread.is_alive():  # or it never began
            self._thread.join(timeout + 1)
        return not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PRIORITY)
        self._guarded(self._shelf.repair)
        last = False
        while not last:
            with self._changed:
                self._rest()
                self._changed.wait_for(lambda: self._work or self._deadline is not None)
                self._changed.wait_for(self._urgent, TOUCH_SECONDS)
                self._busy = True
                if self._out_of_time():
                    self._drop_queue()
                item = next(iter(self._work.queue.values()), None)
                unchecked, self._work.unchecked = self._work.unchecked, []
                last = self._deadline is not None and item is None
            for key, useless in unchecked:
                self._guarded(partial(self._check, key, useless))
            self._guarded(self._write_touches)
            if item is not None:
                self._guarded(partial(self._store, item))
                with self._changed:
                    if self._work.queue.pop(item.block.key, None):
                        self._work.nbytes -= len(item.payload)
        with self._changed:
            self._rest()

    def _rest(self) -> None:
        self._busy = False
        self._changed.notify_all()

    def _urgent(self) -> bool:
        return bool(self._work.queue or self._work.unchecked or self._flushing) or self._deadline is not None

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _drop_queue(self) -> None:
        self.dropped += len(self._work.queue)
        self._work.queue.clear()
        self._work.nbytes = 0

    def _guarded(self, action: Callable[[], None]) -> None:
        """A part of the thread's work. When it fails, the queue is dropped and writing rests for a while."""
        try:
            action()
            return
        except Stopped:
            pass  # the deadline of close
        except (OSError, sqlite3.Error) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            words = getattr(error, "strerror", None) or error  # without the name, which changes every time
            self.fail(f"{'the disk is full' if full else 'writing failed'} in {self._shelf.folder} ({words})")
        except Exception:
            log.exception("a defect in the writer of %s", self._shelf.folder)
            self.fail("the writer failed; the log says how")
        with self._changed:
            self._paused_until = time.monotonic() + RETRY_SECONDS
            self._drop_queue()

    def _store(self, item: Item) -> None:
        index, block = self._shelf.index, item.block
        if self._shelf.has(block):
            with index.transaction():
                index.touch({block.key: 0})
            return
        fits = len(item.payload) <= self._budget
        if not fits or not self._shelf.put(block, item.payload, item.names, self._out_of_time):
            with self._changed:
                self.dropped += 1
            return
        if index.total()[0] > self._budget:
            self._shelf.evict(self._budget)
        self.problem = None

    def _write_touches(self) -> None:
        with self._changed:
            touched, self._work.touched = self._work.touched, []
        order = {key: number for number, keys in enumerate(touched) for key in keys}
        if order:
            with self._shelf.index.transaction():
                self._shelf.index.touch(order)

    def _check(self, key: bytes, useless: bool) -> None:
        if self._shelf.remove(key) if useless else self._shelf.check(key):
            with self._changed:
                self._doubted.discard(key)
