"""The index of the disk tier: one SQLite row per block file, rebuilt from the files when it is lost.

A file that turns out damaged is never repaired or deleted, because another process may have it open: the next
generation, index-2.db after index-1.db, takes its place.

A rollback journal, not a write-ahead log: that one maps its -shm file, and a process dies of SIGBUS when somebody
empties it. All access is by system calls, whose failure is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.home import make_folder
from edgellm.kv.blockfile import Header
from edgellm.kv.blocks import Block, block_key

SCHEMA = 3  # user_version of the database; up to 2 it had a write-ahead log
BUSY_SECONDS = 10.0  # how long a change waits for another process's
READ_SECONDS = 5.0  # how long a question waits for a commit, which is a few flushes of a small file

_TABLE = f"""
CREATE TABLE block(
    key BLOB PRIMARY KEY, parent BLOB NOT NULL, start INTEGER NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL,
    tokens BLOB NOT NULL, nbytes INTEGER NOT NULL, label TEXT NOT NULL, words TEXT NOT NULL,
    used INTEGER NOT NULL, created REAL NOT NULL, seen REAL NOT NULL);
CREATE INDEX block_parent ON block(parent, start, first);
CREATE INDEX block_recency ON block(used, start DESC, nbytes);
PRAGMA user_version = {SCHEMA};
"""

_making = threading.Lock()


@dataclass(frozen=True, slots=True)
class Row:
    """What a listing needs of a block. created, seen: clock times in seconds, for people only."""

    key: bytes
    parent: bytes
    start: int
    first: int
    n: int
    nbytes: int
    label: str
    words: str
    created: float
    seen: float


class Index:
    """Rows of blocks. Reading waits for a writer only while that commits; safe from any thread.

    problem says why the index lives in memory only (the folder is read-only, or locked), and is None otherwise.
    """

    def __init__(self, folder: Path) -> None:
        self.problem: str | None = None
        self._closed = False
        self._write_lock = threading.RLock()
        try:
            self._writer, path = _open_newest(make_folder(folder))
            self._reader, self._read_lock = _connect(path, READ_SECONDS), threading.RLock()  # never writes
        except (sqlite3.Error, OSError) as error:
            why = getattr(error, "strerror", None) or error
            self.problem = f"{folder} cannot be written ({why}); only what is there already is used"
            self._writer = _connect(":memory:", BUSY_SECONDS)
            self._writer.executescript(_TABLE)
            self._reader, self._read_lock = self._writer, self._write_lock

    def children(
        self, parent: bytes, at: int | None = None, token: int | None = None, *, limit: int = -1
    ) -> list[tuple[Block, bool]]:
        """Blocks that follow the prefix `parent`, the longest first; only those that begin at `at` and with `token`.

        False beside one says that its row is damaged: the key is not that of parent and tokens.
        """
        sql = "SELECT key, start, tokens FROM block WHERE parent = ?"
        values: list[bytes | int] = [parent]
        for column, value in (("start", at), ("first", token)):
            if value is not None:
                sql += f" AND {column} = ?"
                values.append(value)
        found = []
        for key, start, data in self._rows(f"{sql} ORDER BY n DESC LIMIT {limit}", *values):
            tokens = np.frombuffer(data[: len(data) // 4 * 4], "<i4").astype(np.int32, copy=False)
            found.append((Block(key, parent, start, tokens), block_key(parent, start, tokens) == key))
        return found

    def has(self, key: bytes) -> bool:
        return bool(self._rows("SELECT 1 FROM block WHERE key = ?", key))

    def keys(self) -> set[bytes]:
        return {row[0] for row in self._rows("SELECT key FROM block")}

    def rows(self) -> list[Row]:
        """Every row, the most recently used first."""
        what = "key, parent, start, first, n, nbytes, label, words, created, seen"
        sql = f"SELECT {what} FROM block ORDER BY used DESC, start"
        return [Row(*row) for row in self._rows(sql)]

    def total(self) -> tuple[int, int]:
        """Bytes and number of all blocks."""
        rows = self._rows("SELECT COALESCE(SUM(nbytes), 0), COUNT(*) FROM block")
        return rows[0] if rows else (0, 0)

    def oldest_leaf(self) -> tuple[bytes, int] | None:
        """Key and bytes of the least recently used block that no other block follows."""
        sql = (
            "SELECT key, nbytes FROM block AS b WHERE NOT EXISTS (SELECT 1 FROM block WHERE parent = b.key) "
            "ORDER BY used, start DESC LIMIT 1"
        )
        with self._write_lock:
            row: tuple[bytes, int] | None = self._writer.execute(sql).fetchone()
        return row

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes made inside are seen by others all at once; no other process writes meanwhile."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # some failures roll back by themselves
                    self._writer.execute("ROLLBACK")
                raise

    def add(self, header: Header, created: float) -> None:
        """Insert a row, as the most recently used. Inside a transaction."""
        block, tokens = header.block, header.block.tokens.astype("<i4", copy=False).tobytes()
        self._writer.execute(
            "INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, "
            "(SELECT COALESCE(MAX(used), 0) + 1 FROM block), ?, ?)",
            (
                block.key,
                block.parent,
                block.start,
                int(block.tokens[0]),
                len(block.tokens),
                tokens,
                header.size,
                header.label,
                header.words,
                created,
                created,
            ),
        )

    def remove(self, key: bytes) -> None:
        """Delete a row if it is there. Inside a transaction."""
        self._writer.execute("DELETE FROM block WHERE key = ?", (key,))

    def touch(self, order: Mapping[bytes, int]) -> None:
        """Make blocks the most recently used ones; equal numbers were used together. Inside a transaction."""
        [(newest,)] = self._writer.execute("SELECT COALESCE(MAX(used), 0) FROM block").fetchall()
        rank = {number: newest + 1 + i for i, number in enumerate(sorted(set(order.values())))}
        now = time.time()
        rows = [(rank[number], now, key) for key, number in order.items()]
        self._writer.executemany("UPDATE block SET used = ?, seen = ? WHERE key = ?", rows)

    def close(self) -> None:
        """Closing twice is harmless; afterwards every question has the answer of an empty index."""
        with self._write_lock, self._read_lock:
            if not self._closed:
                self._closed = True
                self._reader.close()
                self._writer.close()

    def _rows(self, sql: str, *values: bytes | int) -> list[Any]:
        with self._read_lock:
            return [] if self._closed else self._reader.execute(sql, values).fetchall()


def _open_newest(folder: Path) -> tuple[sqlite3.Connection, Path]:
    """The newest generation, or the one after it when that is damaged; older ones are deleted."""
    found = [int(m[1]) for p in folder.iterdir() if (m := re.fullmatch(r"index-(\d{1,9})\.db", p.name))]
    number = max(found, default=1)
    try:
        connection = _open(_generation(folder, number))
    except sqlite3.OperationalError:  # a DatabaseError too, but of the moment
        raise
    except sqlite3.DatabaseError:
        number += 1
        connection = _open(_generation(folder, number))
    for old in found:
        if old < number:
            for suffix in ("", "-journal", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{_generation(folder, old)}{suffix}")
    return connection, _generation(folder, number)


def _generation(folder: Path, number: int) -> Path:
    return folder / f"index-{number}.db"


def _open(path: Path) -> sqlite3.Connection:
    """Raises DatabaseError when the file is damaged, OperationalError or OSError when it cannot be written."""
    _make(path)
    connection = _connect(path, BUSY_SECONDS)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_spill = OFF")  # or a large change would shut our own reader out before its end
        connection.execute("BEGIN IMMEDIATE")
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
        if version == 0:
            for statement in _TABLE.split(";"):
                connection.execute(statement)
        elif version != SCHEMA:
            raise sqlite3.DatabaseError(f"schema {version}, and this edgellm has {SCHEMA}")
        connection.execute("COMMIT")
        if connection.execute("PRAGMA journal_mode = TRUNCATE").fetchall() != [("truncate",)]:
            raise sqlite3.DatabaseError("another program keeps it in another journal mode")
        if connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            raise sqlite3.DatabaseError("the check failed")
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path) -> None:
    """Make the file, for its owner only, unless it is there. Raises OSError.

    One that is there is not opened: closing it would end the locks that this process holds on it through SQLite.
    """
    with _making:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if not path.is_file():
                raise OSError(errno.EINVAL, f"{path.name} is not a regular file") from None


def _connect(path: Path | str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA mmap_size = 0")  # of which some builds have another default
    return connection
