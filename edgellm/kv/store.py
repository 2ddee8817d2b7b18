"""The disk tier: blocks of KV state in files, shared by every process of this user.

    write() ──▶ queue ──▶ one thread: file, row, eviction          children(), read() ◀── any thread
                             │          │
                      xx/<key>.kv   index-N.db

The thread is `writer.py`. The files (`blockfile.py`) are the truth, the index (`index.py`) is rebuilt from them, and
`shelf.py` keeps both in agreement. Nothing here raises into a caller that generates: a store that cannot work is
read-only or empty and says why in `problem`. What is promised about crashes, power loss and other processes is in
docs/kv-store.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgellm.backends.base import Buffer, SavedFile
from edgellm.errors import ResourceError
from edgellm.home import home
from edgellm.kv.blockfile import Damaged
from edgellm.kv.blocks import Block
from edgellm.kv.conversations import Conversation, conversations
from edgellm.kv.shelf import Shelf
from edgellm.kv.writer import Item, Writer

log = logging.getLogger("edgellm.kv")

LARGEST_BUDGET = 4_000_000_000  # bytes
SHARE_OF_DISK = 10  # the budget is at most one part in so many of what would be free without the store
READERS = 2  # blocks that are read and verified at once


@dataclass(frozen=True, slots=True)
class Stats:
    """The store as a whole: bytes and blocks on disk, the budget in bytes, and what this process did not write."""

    nbytes: int
    blocks: int
    budget: int
    dropped: int
    problem: str | None


class BlockStore:
    """Blocks on disk under `folder`, at most `budget` bytes of them (default: 4 GB or a tenth of the free disk).

    problem says why nothing is being written (None: it is); rejected lists damaged blocks that were asked for, with the
    reason; dropped counts blocks that were not written: queue full, writing impossible, larger than the budget, or
    their parent not there.
    """

    def __init__(self, folder: Path, *, budget: int | None = None) -> None:
        self.folder = folder
        self.rejected: list[tuple[bytes, str]] = []
        self._pid = os.getpid()
        self._shelf = Shelf(folder)
        self._index = self._shelf.index
        self.budget = self._default_budget() if budget is None else budget
        self._writer = Writer(self._shelf, self.budget)

    @property
    def problem(self) -> str | None:
        return self._writer.problem

    @property
    def dropped(self) -> int:
        return self._writer.dropped

    # Reading

    def children(
        self, parent: bytes, at: int | None = None, token: int | None = None, *, limit: int = -1
    ) -> list[Block]:
        """Blocks on disk that follow the prefix `parent`, the longest first.

        at, token: only those that begin at this position, with this token. limit: at most so many are looked at.
        """
        doubted = self._writer.doubted()  # as of now: the thread may delete one and forget that it was doubted
        try:
            found = self._index.children(parent, at, token, limit=limit)
        except sqlite3.Error as error:
            self._writer.fail(f"the index in {self.folder} cannot be read ({error})")
            return []
        for block, whole in found:
            if not whole:
                self._doubt(block.key, "its row in the index is damaged")
        doubted |= self._writer.doubted()
        # A row that was wrong is not offered even when the thread has mended it meanwhile: `found` was read before.
        return [block for block, whole in found if whole and block.key not in doubted]

    def has(self, key: bytes) -> bool:
        """Whether the block is on disk or about to be: then its payload need not be made."""
        if self._writer.queued(key):
            return True
        if key in self._writer.doubted():
            return False
        try:
            return self._index.has(key)
        except sqlite3.Error as error:
            self._writer.fail(f"the index in {self.folder} cannot be read ({error})")
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

    def open(self, key: bytes, until: contextlib.ExitStack) -> SavedFile | None:
        """The block's open file, for whoever reads and verifies the payload; None as from `read`."""
        try:
            return until.enter_context(self._shelf.open(key))
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

    def reject(self, key: bytes, reason: str) -> None:
        """Delete a block that is of no use, though it may be whole; `rejected` says why."""
        self._doubt(key, reason, useless=True)

    # Writing

    def write(self, block: Block, payload: Buffer, *, label: str, words: str) -> None:
        """Store a block behind the caller's back; returns at once. One that is there already counts as used.

        label: the model's name; words: how the conversation begins. A block that starts later than 0 is only kept when
        its parent is.
        """
        self._writer.write(Item(block, payload, (_plain(label, 80), _plain(words, 120))))

    def touch(self, keys: Iterable[bytes]) -> None:
        """These blocks were used now, together."""
        self._writer.touch(keys)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over is on disk. False when `timeout` seconds were not enough."""
        return self._writer.flush(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued within `timeout` seconds, drop the rest, release the files. Twice is harmless."""
        # The thread and the connections of a forked child are its parent's.
        if os.getpid() == self._pid and self._writer.close(timeout):
            self._index.close()

    # Housekeeping, for people: these raise ResourceError

    def stats(self) -> Stats:
        """Sizes now."""
        with self._told():
            nbytes, blocks = self._index.total()
        return Stats(nbytes, blocks, self.budget, self.dropped, self.problem)

    def conversations(self) -> list[Conversation]:
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

    def _doubt(self, key: bytes, reason: str | None, *, useless: bool = False) -> None:
        """Do not offer the block any more. reason None: it is simply gone. useless: though it may be whole."""
        if self._writer.doubt(key, useless=useless) and reason is not None:
            self.rejected.append((key, reason))
            log.warning("the block %s on disk is computed again: %s", key.hex()[:16], reason)

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
