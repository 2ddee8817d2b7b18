"""The disk tier: blocks of KV state in files, shared by every process of this user.

    write() ──▶ queue ──▶ one thread: file, row, eviction          children(), read() ◀── any thread
                             │          │
                      xx/<key>.kv   index-N.db

The files (`blockfile.py`) are the truth, the index (`index.py`) is rebuilt from them, `shelf.py` keeps both in
agreement. Nothing here raises into a caller that generates: a store that cannot work is read-only or empty and says why
in `problem`. What is promised about crashes, power loss and other processes is in docs/kv-store.md.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgellm.backends.base import Buffer
from edgellm.errors import ResourceError
from edgellm.home import home
from edgellm.kv.blockfile import Damaged, Stopped
from edgellm.kv.blocks import Block
from edgellm.kv.conversations import Entry, conversations
from edgellm.kv.shelf import Shelf

log = logging.getLogger("edgellm.kv")

LARGEST_BUDGET = 4_000_000_000  # bytes
SHARE_OF_DISK = 10  # the budget is at most one part in so many of what would be free without the store
QUEUE_BYTES = 256 << 20  # payloads waiting to be written
RETRY_SECONDS = 60.0  # after writing failed
TOUCH_SECONDS = 1.0  # recency is written this much later, together
READERS = 2  # blocks that are read and verified at once
PRIORITY = 10  # niceness of the writer thread, where threads have one


@dataclass(frozen=True, slots=True)
class Stats:
    """The store as a whole: bytes and blocks on disk, the budget in bytes, and what this process did not write."""

    nbytes: int
    blocks: int
    budget: int
    dropped: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Write:
    block: Block
    payload: Buffer
    names: tuple[str, str]


class BlockStore:
    """Blocks on disk under `folder`, at most `budget` bytes of them (default: 4 GB or a tenth of the free disk).

    problem says why nothing is being written (None: it is); rejected lists damaged blocks that were asked for, with the
    reason; dropped counts blocks that were not written: queue full, writing impossible, larger than the budget, or
    their parent not there.
    """

    def __init__(self, folder: Path, *, budget: int | None = None) -> None:
        self.folder = folder
        self.rejected: list[tuple[bytes, str]] = []
        self.dropped = 0
        self._changed = threading.Condition()  # guards what follows, and `dropped`
        self._queue: dict[bytes, _Write] = {}
        self._queued_bytes = 0
        self._touched: dict[bytes, int] = {}
        self._touches = 0
        self._doubted: set[bytes] = set()  # not offered any more
        self._unchecked: list[bytes] = []  # doubted, and the thread has not looked yet
        self._busy = True
        self._flushing = 0
        self._deadline: float | None = None  # set by close, on the monotonic clock
        self._paused_until = 0.0
        self._pid = os.getpid()
        self._shelf = Shelf(folder)
        self._index = self._shelf.index
        self.problem = self._shelf.problem  # whoever opens a store says this one
        self.budget = self._default_budget() if budget is None else budget
        self._thread = threading.Thread(target=self._run, name="edgellm-kv-writer", daemon=True)
        self._thread.start()

    # Reading

    def children(
        self, parent: bytes, at: int | None = None, token: int | None = None, *, limit: int = -1
    ) -> list[Block]:
        """Blocks on disk that follow the prefix `parent`, the longest first.

        at, token: only those that begin at this position, with this token. limit: at most so many are looked at.
        """
        with self._changed:
            doubted = set(self._doubted)  # as of now: the thread may delete one and forget that it was doubted
        try:
            found = self._index.children(parent, at, token, limit=limit)
        except sqlite3.Error as error:
            self._fail(f"the index in {self.folder} cannot be read ({error})")
            return []
        for child in found:
            if not child.valid:
                self._doubt(child.block.key, "its row in the index is damaged")
        with self._changed:
            doubted |= self._doubted
        # A row that was wrong is not offered even when the thread has mended it meanwhile: `found` was read before.
        return [child.block for child in found if child.valid and child.block.key not in doubted]

    def has(self, key: bytes) -> bool:
        """Whether the block is on disk or about to be: then its payload need not be made."""
        with self._changed:
            if key in self._queue:
                return True
            if key in self._doubted:
                return False
        try:
            return self._index.has(key)
        except sqlite3.Error as error:
            self._fail(f"the index in {self.folder} cannot be read ({error})")
            return False

    def read(self, key: bytes) -> Buffer | None:
        """The payload, verified; None when the block is not there, or not whole (`rejected` then says why)."""
        try:
            return self._shelf.read(key)
        except FileNotFoundError:
            self._doubt(key, None)
        except (Damaged, OSError) as error:
            self._doubt(key, str(error))
        return None

    def read_ahead(self, keys: Sequence[bytes]) -> Iterator[Buffer | None]:
        """What `read` gives for each of these, in turn; the next ones are read meanwhile, where there are threads."""
        if len(keys) < 2:
            yield from map(self.read, keys)
            return
        left, reading = deque(keys), deque[Future[Buffer | None]]()
        with ThreadPoolExecutor(READERS, "edgellm-kv-reader") as pool:
            try:
                while left or reading:
                    with contextlib.suppress(RuntimeError):  # no more threads are to be had, or the interpreter ends
                        while left and len(reading) <= READERS:
                            reading.append(pool.submit(self.read, left[0]))
                            left.popleft()
                    yield reading.popleft().result() if reading else self.read(left.popleft())
            finally:
                for each in reading:
                    each.cancel()

    # Writing

    def write(self, block: Block, payload: Buffer, *, label: str, words: str) -> None:
        """Store a block behind the caller's back; returns at once. One that is there already counts as used.

        label: the model's name; words: how the conversation begins. A block that starts later than 0 is only kept when
        its parent is.
        """
        with self._changed:
            if block.key in self._queue:
                return
            stopped = self._shelf.problem or self._deadline is not None or time.monotonic() < self._paused_until
            if stopped or self._queued_bytes + len(payload) > QUEUE_BYTES:
                self.dropped += 1
                return
            self._queue[block.key] = _Write(block, payload, (_plain(label, 80), _plain(words, 120)))
            self._queued_bytes += len(payload)
            self._changed.notify_all()

    def touch(self, keys: Iterable[bytes]) -> None:
        """These blocks were used now, together."""
        with self._changed:
            if self._deadline is not None:
                return
            self._touches += 1
            self._touched.update(dict.fromkeys(keys, self._touches))
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over is on disk. False when `timeout` seconds were not enough."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._busy and not self._pending(), timeout)
            finally:
                self._flushing -= 1

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued within `timeout` seconds, drop the rest, release the files. Twice is harmless."""
        if os.getpid() != self._pid:
            return  # a forked child: the thread and the connections are the parent's
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        self._thread.join(timeout + 1)
        if not self._thread.is_alive():
            self._index.close()

    # Housekeeping, for people: these raise ResourceError

    def stats(self) -> Stats:
        """Sizes now."""
        with self._told():
            nbytes, blocks = self._index.total()
        return Stats(nbytes, blocks, self.budget, self.dropped, self.problem)

    def entries(self) -> list[Entry]:
        """Conversations, the most recently used first."""
        with self._told():
            return conversations(self._index.rows())

    def prune(self, to_bytes: int) -> int:
        """Evict until at most `to_bytes` are left; returns the bytes freed."""
        if self._shelf.problem is not None:
            raise ResourceError(f"{self._shelf.problem}; make it writable, or set EDGELLM_HOME to a folder that is")
        with self._told():
            return self._shelf.evict(to_bytes)

    def clear(self) -> int:
        """Delete every block; returns the bytes freed."""
        return self.prune(0)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise ResourceError(f"the prompt cache in {self.folder} cannot be used: {error}") from error

    # The thread

    def _run(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PRIORITY)
        self._guarded(self._shelf.repair)
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._pending() or self._deadline is not None)
                self._changed.wait_for(self._urgent, TOUCH_SECONDS)
                self._busy = True
                if self._out_of_time():
                    self._drop_queue()
                item = next(iter(self._queue.values()), None)
                unchecked, self._unchecked = self._unchecked, []
                last = self._deadline is not None and item is None
            for key in unchecked:
                self._guarded(partial(self._check, key))
            self._guarded(self._write_touches)
            if item is not None:
                self._guarded(partial(self._store, item))
                with self._changed:
                    if self._queue.pop(item.block.key, None):
                        self._queued_bytes -= len(item.payload)
            if last:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
                return

    def _pending(self) -> bool:
        return bool(self._queue or self._touched or self._unchecked)

    def _urgent(self) -> bool:
        return bool(self._queue or self._unchecked or self._flushing) or self._deadline is not None

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _drop_queue(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0

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
            self._fail(f"{'the disk is full' if full else 'writing failed'} in {self.folder} ({words})")
        except Exception:
            log.exception("a defect in the writer of %s", self.folder)
            self._fail("the writer failed; the log says how")
        with self._changed:
            self._paused_until = time.monotonic() + RETRY_SECONDS
            self._drop_queue()

    def _store(self, item: _Write) -> None:
        block = item.block
        if self._shelf.has(block):
            with self._index.transaction():
                self._index.touch({block.key: 0})
            return
        fits = len(item.payload) <= self.budget
        if not fits or not self._shelf.put(block, item.payload, item.names, self._out_of_time):
            with self._changed:
                self.dropped += 1
            return
        if self._index.total()[0] > self.budget:
            self._shelf.evict(self.budget)
        self.problem = None

    def _write_touches(self) -> None:
        with self._changed:
            touched, self._touched = self._touched, {}
        if touched:
            with self._index.transaction():
                self._index.touch(touched)

    def _check(self, key: bytes) -> None:
        if self._shelf.check(key):
            with self._changed:
                self._doubted.discard(key)

    # Shared

    def _doubt(self, key: bytes, reason: str | None) -> None:
        """Do not offer the block any more, and let the thread look at it. reason None: it is simply gone."""
        with self._changed:
            if key in self._doubted:
                return
            self._doubted.add(key)
            if self._deadline is None:
                self._unchecked.append(key)
                self._changed.notify_all()
            if reason is not None:
                self.rejected.append((key, reason))
                log.warning("the block %s on disk is computed again: %s", key.hex()[:16], reason)

    def _fail(self, problem: str) -> None:
        if self._shelf.problem is not None:  # which is why
            log.debug("prompt cache on disk: %s", problem)
            return
        if problem != self.problem:
            log.warning("prompt cache on disk: %s", problem)
        self.problem = problem

    def _default_budget(self) -> int:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return 0
        return min(LARGEST_BUDGET, (free + self._index.total()[0]) // SHARE_OF_DISK)


def store_path() -> Path:
    """Where the blocks of this user are."""
    return home("kv")


def _plain(text: str, limit: int) -> str:
    """One short line without control characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text[: 4 * limit].split()))[:limit]
