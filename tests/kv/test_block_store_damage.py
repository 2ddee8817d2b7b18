"""The disk tier and damage: nothing wrong is served, what is damaged goes, and the index is made anew."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kv_store import ROOT, file_of, files, match, opened, payload, posix, put

from edgellm.kv import shelf
from edgellm.kv.store import BlockStore


def flip(offset: int) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        data[offset] ^= 0x10
        return bytes(data)

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip(0), "not a block file"),
        (flip(9), "version 4097"),
        (flip(13), "header"),
        (flip(17), "header's checksum"),
        (flip(50), "header's checksum"),
        (flip(80), "header's checksum"),
        (flip(109), "header's checksum"),
        (flip(-1001), "header's checksum"),
        (flip(-1000), "payload's checksum"),
        (flip(-1), "payload's checksum"),
        (lambda data: bytes(data[:-1]), "truncated"),
        (lambda data: bytes(data[:10]), "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: bytes(data) + b"more", "longer than it says"),
        (lambda data: bytes(data[:8]) + b"\x02\0\0\0" + bytes(data[12:]), "version 2"),
    ],
)
def test_a_damaged_block_is_deleted_and_can_be_written_again(
    folder: Path, damage: Callable[[bytearray], bytes], reason: str
) -> None:
    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        path = file_of(folder, block.key)
        path.write_bytes(damage(bytearray(path.read_bytes())))
        assert store.read(block.key) is None
        assert store.children(ROOT) == []
        assert not store.has(block.key)
        [(key, why)] = store.rejected
        assert key == block.key
        assert reason in why
        assert store.flush(30)
        assert files(folder) == set()
        assert store.stats().blocks == 0
        put(store, [1, 2, 3])
        assert store.read(block.key) == payload(block.key)


def test_a_block_that_became_good_again_is_not_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may replace a damaged file between our look and our cleaning up."""
    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        path = file_of(folder, block.key)
        good = path.read_bytes()
        path.write_bytes(good[:-5])
        check = shelf.Shelf.check
        monkeypatch.setattr(shelf.Shelf, "check", lambda self, key: (path.write_bytes(good), check(self, key))[1])
        assert store.read(block.key) is None
        assert store.flush(30)
        assert store.read(block.key) == payload(block.key)
        assert [child.key for child in store.children(ROOT)] == [block.key]


def test_a_file_that_is_gone_is_forgotten(folder: Path) -> None:
    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        file_of(folder, block.key).unlink()
        assert store.read(block.key) is None
        assert store.flush(30)
        assert store.children(ROOT) == []
        assert store.rejected == []


def test_a_block_that_cannot_be_read_now_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(24, "Too many open files")

    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        monkeypatch.setattr(shelf, "read_block", fail)
        assert store.read(block.key) is None
        assert "Too many open files" in store.rejected[0][1]
        assert store.flush(30)
        assert files(folder) == {block.key.hex()}


def test_a_damaged_row_is_not_believed(folder: Path) -> None:
    """The file is whole, but the index says that it holds other tokens."""
    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        with sqlite3.connect(folder / "index-1.db") as other:
            other.execute("UPDATE block SET tokens = ?", (np.array([1, 2, 4], "<i4").tobytes(),))
        other.close()
        assert match(store, [1, 2, 4])[1] == 0
        assert "row" in store.rejected[0][1]
        assert store.flush(30)
        assert match(store, [1, 2, 3]) == ([block.key], 3)  # mended from the file


def test_a_damaged_row_that_is_mended_at_once_is_not_offered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may mend the row between the reader's look at it and the reader's answer."""
    doubt = BlockStore._doubt

    def doubt_and_wait(self: BlockStore, key: bytes, reason: str | None) -> None:
        doubt(self, key, reason)
        assert self.flush(30)

    monkeypatch.setattr(BlockStore, "_doubt", doubt_and_wait)
    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        with sqlite3.connect(folder / "index-1.db") as other:
            other.execute("UPDATE block SET tokens = ?", (np.array([1, 2, 4], "<i4").tobytes(),))
        other.close()
        assert match(store, [1, 2, 4])[1] == 0
        assert match(store, [1, 2, 3]) == ([block.key], 3)


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "another schema", "torn"])
def test_the_index_is_rebuilt_from_the_files(folder: Path, damage: str) -> None:
    tokens = list(range(30))
    with opened(folder) as store:
        blocks = put(store, tokens)
        put(store, [7, 7, 7])
        before = store.conversations()
    path = folder / "index-1.db"
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "torn":
        data = path.read_bytes()
        path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    else:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99")
        other.close()
    with opened(folder) as store:
        assert store.problem is None
        assert match(store, tokens) == ([block.key for block in blocks], 30)
        assert {(e.key, e.tokens, e.nbytes, e.model, e.words) for e in store.conversations()} == {
            (e.key, e.tokens, e.nbytes, e.model, e.words) for e in before
        }
        assert [child.key for child in store.children(blocks[-2].key)] == [blocks[-1].key]
    assert len(list(folder.glob("index-*.db"))) == 1


EMPTIED = """
import sys
from pathlib import Path
from edgellm.kv.blocks import chain, root_key
from edgellm.kv.store import BlockStore
folder = Path(sys.argv[1])
store = BlockStore(folder, budget=10**9)
blocks = chain(root_key("store"), [1, 2, 3], 4)
store.write(blocks[0], b"state", label="m", words="w")
assert store.flush(30) and store.children(blocks[0].parent)
for path in folder.glob("index-*"):
    path.write_bytes(b"")
assert store.children(blocks[0].parent) == []
store.write(chain(root_key("store"), [7], 4)[0], b"state", label="m", words="w")
assert store.flush(30)
assert store.problem is not None
store.close()
"""


def test_an_index_emptied_while_open_is_all_that_is_lost(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EMPTIED, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cannot be read" in done.stderr
    with opened(folder) as store:
        assert match(store, [1, 2, 3])[1] == 3
        assert store.problem is None


def test_an_open_index_with_a_write_ahead_log_is_replaced(folder: Path) -> None:
    with opened(folder) as store:
        put(store, [1, 2, 3])
    older = sqlite3.connect(folder / "index-1.db", isolation_level=None)
    older.execute("PRAGMA journal_mode = WAL")
    older.execute("PRAGMA user_version = 2")
    with opened(folder) as store:
        assert match(store, [1, 2, 3])[1] == 3
        assert store.problem is None
        assert list(folder.glob("*-shm")) == list(folder.glob("*-wal")) == []
    older.close()


@posix
def test_what_is_no_file_keeps_the_index_in_memory(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "index-1.db")
    with opened(folder) as store:
        assert "not a regular file" in str(store.problem)


def test_rows_and_files_are_made_to_agree(folder: Path) -> None:
    with opened(folder) as store:
        [lost], [_kept], [strange] = put(store, [1, 1]), put(store, [2, 2]), put(store, [3, 3])
    file_of(folder, lost.key).unlink()
    with sqlite3.connect(folder / "index-1.db") as other:
        other.execute("DELETE FROM block WHERE key = ?", (strange.key,))
    other.close()
    junk = file_of(folder, bytes(32))
    junk.parent.mkdir(exist_ok=True)
    junk.write_bytes(b"no block")
    moved = file_of(folder, b"\1" * 32)
    moved.parent.mkdir(exist_ok=True)
    moved.write_bytes(file_of(folder, strange.key).read_bytes())
    leftover = junk.with_name("dead.1-aabbccdd.tmp")
    leftover.write_bytes(b"half")
    foreign = folder / "README"
    foreign.write_text("mine")
    with opened(folder) as store:
        assert [match(store, [n, n])[1] for n in (1, 2, 3)] == [0, 2, 2]
        assert store.stats().blocks == 2
    assert len(files(folder)) == 2
    assert not leftover.exists()
    assert foreign.exists()


def test_what_a_killed_writer_left_behind_an_evicted_block_goes(folder: Path) -> None:
    with opened(folder) as store:
        first, *rest = put(store, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
        put(store, [1, 2, 3, 4, 11, 12])
    with sqlite3.connect(folder / "index-1.db") as other:  # killed before its rows, and then the others evicted theirs
        for block in rest:
            other.execute("DELETE FROM block WHERE key = ?", (block.key,))
    other.close()
    file_of(folder, rest[0].key).unlink()
    assert len(files(folder)) == 3
    with opened(folder) as store:
        assert match(store, [1, 2, 3, 4, 11, 12])[1] == 6
        assert store.stats().blocks == 2
    assert rest[1].key.hex() not in files(folder)
    assert first.key.hex() in files(folder)
