"""The disk tier: what was written is found again, nothing wrong is served, and nothing here ever raises."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import ResourceError
from edgellm.home import home
from edgellm.kv import blockfile, index, shelf, store, writer
from edgellm.kv.blocks import Block, chain, make_block, root_key
from edgellm.kv.store import BlockStore, store_path

ROOT = root_key("store")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_store.py"
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")


def payload(key: bytes, size: int = 1000) -> bytes:
    """Bytes that follow from the key, so that a wrong answer shows."""
    return hashlib.shake_128(key).digest(size)


def put(store: BlockStore, tokens: list[int], words: str = "words", size: int = 4) -> list[Block]:
    blocks = chain(ROOT, tokens, size)
    for block in blocks:
        store.write(block, payload(block.key), label="model", words=words)
    assert store.flush(30)
    return blocks


def match(store: BlockStore, tokens: list[int]) -> tuple[list[bytes], int]:
    """Keys of the blocks that hold the longest known prefix of `tokens`, and its length: a reader's walk."""
    node, keys, at = ROOT, [], 0
    while True:
        best, common = None, 0
        for child in store.children(node):
            same = 0
            while same < min(len(child.tokens), len(tokens) - at) and child.tokens[same] == tokens[at + same]:
                same += 1
            if same > common:
                best, common = child, same
        if best is None:
            return keys, at
        keys, at = [*keys, best.key], at + common
        if common < len(best.tokens):
            return keys, at
        node = best.key


@contextmanager
def opened(folder: Path, budget: int | None = 10**9) -> Iterator[BlockStore]:
    store = BlockStore(folder, budget=budget)
    try:
        assert store.flush(30)
        yield store
    finally:
        store.close()


def files(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*/*.kv")}


def file_of(folder: Path, key: bytes) -> Path:
    return folder / key.hex()[:2] / f"{key.hex()}.kv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


# What it is for


def test_a_new_process_finds_what_another_wrote(folder: Path) -> None:
    with opened(folder) as first:
        blocks = put(first, list(range(10)))
    with opened(folder) as second:
        keys, common = match(second, [*range(9), 77])
        assert (keys, common) == ([block.key for block in blocks], 9)
        assert [second.read(key) for key in keys] == [payload(key) for key in keys]
        assert second.has(blocks[0].key)
        assert second.problem is None
        assert second.rejected == []


@settings(max_examples=25)
@given(
    known=st.lists(st.lists(st.integers(0, 1), max_size=14), max_size=6),
    prompts=st.lists(st.lists(st.integers(0, 1), max_size=14), min_size=1, max_size=6),
)
def test_the_longest_known_prefix_is_found(
    tmp_path_factory: pytest.TempPathFactory, known: list[list[int]], prompts: list[list[int]]
) -> None:
    """Against the obvious: the prompt compared with every conversation there was."""
    with opened(tmp_path_factory.mktemp("kv")) as store:
        for tokens in known:
            put(store, tokens)
        for prompt in prompts:
            shared = [
                len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, t, strict=False))])
                for t in known
            ]
            expected = max(shared, default=0)
            keys, common = match(store, prompt)
            assert common == expected
            assert [store.read(key) for key in keys] == [payload(key) for key in keys]


def test_a_shared_beginning_is_stored_once(folder: Path) -> None:
    with opened(folder) as store:
        for last in range(64):
            put(store, [*range(40), 1000 + last])
        assert len(files(folder)) == 10 + 64
        entries = store.conversations()
        assert len(entries) == 64
        assert {(e.tokens, e.model, e.words) for e in entries} == {(41, "model", "words")}
        [head] = {e.shared for e in entries}
        assert sum(e.nbytes - head for e in entries) + head == store.stats().nbytes
        assert store.stats().nbytes == sum(path.stat().st_size for path in folder.glob("*/*.kv"))


def test_blocks_may_begin_inside_their_parent(folder: Path) -> None:
    with opened(folder) as store:
        [first] = put(store, [0, 1, 2, 3])
        inside = make_block(first.key, 2, [7, 8])
        after = make_block(first.key, 4, [4, 5, 6])
        for block in (inside, after):
            store.write(block, payload(block.key), label="model", words="words")
        assert store.flush(30)
        assert {(child.start, *child.tokens) for child in store.children(first.key)} == {(2, 7, 8), (4, 4, 5, 6)}
        assert sorted(entry.tokens for entry in store.conversations()) == [4, 7]
        assert make_block(first.key, 3, [7, 8]).key != inside.key


@pytest.mark.parametrize("threads", [0, 1, 99])
def test_blocks_read_ahead_come_in_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    submit, left = ThreadPoolExecutor.submit, [threads]

    def limited(self: ThreadPoolExecutor, *args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        return submit(self, *args, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", limited)
    with opened(folder) as store:
        keys = [block.key for block in put(store, list(range(40)))]
        assert len(keys) == 10
        file_of(folder, keys[6]).unlink()
        assert list(store.read_ahead(keys)) == [None if key == keys[6] else payload(key) for key in keys]
        assert list(store.read_ahead([])) == []
        first = store.read_ahead(keys)
        assert next(first) == payload(keys[0])
        first.close()  # with others under way


def test_a_known_block_is_not_written_again(folder: Path) -> None:
    with opened(folder) as store:
        [block] = put(store, [1, 2, 3])
        before = file_of(folder, block.key).stat()
        put(store, [1, 2, 3])
        after = file_of(folder, block.key).stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        assert store.dropped == 0


def test_a_block_that_nobody_could_reach_is_not_written(folder: Path) -> None:
    with opened(folder) as store:
        block = chain(ROOT, list(range(8)), 4)[1]
        store.write(block, payload(block.key), label="m", words="w")
        assert store.flush(30)
        assert (files(folder), store.dropped) == (set(), 1)


def test_names_are_one_short_line(folder: Path) -> None:
    with opened(folder) as store:
        put(store, [1], words="  What\n\tis \x1b[31mred\x07 \ud800?  " + "x" * 1000)
        [entry] = store.conversations()
        assert entry.words.startswith("What is  [31mred   ?")
        assert len(entry.words) == 120


# Behind the answer


def test_writing_waits_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, sync = threading.Event(), os.fsync
    with opened(folder) as store:
        monkeypatch.setattr(blockfile.os, "fsync", lambda handle: (go.wait(30), sync(handle)))
        blocks = chain(ROOT, list(range(12)), 4)
        for block in blocks:
            store.write(block, payload(block.key), label="m", words="w")
        assert all(store.has(block.key) for block in blocks)
        assert not store.flush(0.05)
        assert store.children(ROOT) == []
        go.set()
        assert store.flush(30)
        assert match(store, list(range(12)))[1] == 12


def test_a_full_queue_drops_the_newest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, sync = threading.Event(), os.fsync
    monkeypatch.setattr(writer, "QUEUE_BYTES", 2500)
    with opened(folder) as stored:
        monkeypatch.setattr(blockfile.os, "fsync", lambda handle: (go.wait(30), sync(handle)))
        for block in chain(ROOT, list(range(16)), 4):
            stored.write(block, payload(block.key), label="m", words="w")
        assert stored.dropped == 2
        go.set()
        assert stored.flush(30)
        assert match(stored, list(range(16)))[1] == 8


def test_many_touches_are_one_transaction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    touch = index.Index.touch
    monkeypatch.setattr(index.Index, "touch", lambda self, order: (seen.append(len(order)), touch(self, order)))
    with opened(folder) as store:
        blocks = put(store, list(range(20)))
        for _ in range(500):
            store.touch(block.key for block in blocks)
        assert store.flush(30)
    assert seen == [5]


def test_closing_without_time_leaves_a_clean_store(folder: Path) -> None:
    store = BlockStore(folder, budget=10**9)
    blocks = chain(ROOT, list(range(400)), 4)
    for block in blocks:
        store.write(block, payload(block.key, 100_000), label="m", words="w")
    store.close(0.02)
    store.close()
    assert store.dropped > 0
    assert list(folder.glob("*/*.tmp")) == []
    store.write(blocks[0], b"", label="m", words="w")
    store.touch([blocks[0].key])
    assert store.flush(5)
    assert store.children(ROOT) == []
    with opened(folder) as again:
        assert len(match(again, list(range(400)))[0]) == len(blocks) - store.dropped + 1
        assert again.problem is None


def test_closing_with_time_writes_everything(folder: Path) -> None:
    store = BlockStore(folder, budget=10**9)
    for block in chain(ROOT, list(range(80)), 4):
        store.write(block, payload(block.key), label="m", words="w")
    store.close(30)
    assert len(files(folder)) == 20


# Budget


def test_the_oldest_leaves_go_first_and_shared_prefixes_last(folder: Path) -> None:
    with opened(folder) as store:
        shared = put(store, list(range(8)))
        for name in range(4):
            put(store, [*range(8), 100 + name])
        one = store.stats().nbytes // 6
        store.touch([block.key for block in chain(ROOT, [*range(8), 100], 4)])
        assert store.flush(30)
        assert store.prune(store.stats().nbytes - one) > 0
        assert match(store, [*range(8), 101])[1] == 8
        assert match(store, [*range(8), 100])[1] == 9
        store.prune(3 * one + one // 2)
        assert match(store, [*range(8), 100])[1] == 9
        store.prune(2 * one + one // 2)
        assert files(folder) == {block.key.hex() for block in shared}
        store.prune(one + one // 2)
        assert files(folder) == {shared[0].key.hex()}
        assert store.clear() > 0
        assert files(folder) == set()
        assert store.stats().blocks == 0


def test_writing_keeps_to_the_budget(folder: Path) -> None:
    with opened(folder, budget=8000) as store:
        for name in range(30):
            put(store, [name, name])
            assert store.stats().nbytes <= 8000
        assert [match(store, [name, name])[1] for name in (0, 27, 28, 29)] == [0, 2, 2, 2]


def test_a_conversation_over_the_budget_keeps_its_beginning(folder: Path) -> None:
    with opened(folder, budget=8000) as store:
        put(store, list(range(100)))
        keys, common = match(store, list(range(100)))
        assert len(keys) == len(files(folder)) >= 5
        assert common == 4 * len(keys)
        [block] = chain(ROOT, [999])
        store.write(block, bytes(8001), label="m", words="w")
        assert store.flush(30)
        assert not store.has(block.key)


def test_the_default_budget_is_a_share_of_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 50_000_000

    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: Usage)
    with opened(folder, budget=None) as stored:
        assert stored.budget == 5_000_000
        put(stored, list(range(400)))
        used = stored.stats().nbytes
    Usage.free -= used
    with opened(folder, budget=None) as stored:
        assert stored.budget == 5_000_000
    Usage.free = 10**12
    with opened(folder, budget=None) as stored:
        assert stored.budget == 4_000_000_000


def test_a_clock_that_jumps_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 2e9
    monkeypatch.setattr(time, "time", lambda: clock)
    with opened(folder, budget=8000) as store:
        put(store, [1, 1])
        clock = 1.0
        for name in range(2, 20):
            put(store, [name, name])
            store.touch([chain(ROOT, [1, 1])[0].key])
            clock = 4e9 if name % 2 else 3.0
        assert store.flush(30)
        assert match(store, [1, 1])[1] == 2
        assert match(store, [19, 19])[1] == 2
        assert match(store, [2, 2])[1] == 0
        assert all(entry.age >= 0 and entry.idle >= 0 for entry in store.conversations())
    with opened(folder) as store:
        assert match(store, [1, 1])[1] == 2


# Damage


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


# A disk that refuses


def test_a_full_disk_stops_writing_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    caplog.set_level(logging.WARNING, "edgellm.kv")
    with opened(folder) as stored:
        [block] = put(stored, [1, 2, 3])
        with monkeypatch.context() as patch:
            patch.setattr(blockfile.os, "fsync", full)
            put(stored, list(range(50, 70)))
            put(stored, list(range(80, 90)))
            assert stored.problem is not None
            assert "disk is full" in stored.problem
            assert stored.dropped == 8
            assert stored.read(block.key) == payload(block.key)
        assert len([r for r in caplog.records if "disk is full" in r.message]) == 1
        assert list(folder.glob("*/*.tmp")) == []
        put(stored, [4])
        assert stored.dropped == 9
        monkeypatch.setattr(writer, "RETRY_SECONDS", 0.0)
        stored._writer._paused_until = 0.0
        put(stored, [4])
        assert stored.problem is None
        assert match(stored, [4])[1] == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        with opened(mount / "kv") as stored:
            blocks = chain(ROOT, list(range(120)), 4)
            for block in blocks:
                stored.write(block, payload(block.key, 100_000), label="m", words="w")
            assert stored.flush(30)
            assert stored.problem is not None
            assert "full" in stored.problem
            keys, common = match(stored, list(range(120)))
            assert 0 < common < 120
            assert [stored.read(key) for key in keys] == [payload(key, 100_000) for key in keys]
        with opened(mount / "kv") as again:
            assert match(again, list(range(120)))[0][: len(keys)] == keys
            assert again.clear() > 0
            assert match(again, list(range(120)))[1] == 0
            put(again, [1])
            assert again.problem is None
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_read_only_folder_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as stored:
        blocks = put(stored, list(range(10)))
    bad = file_of(folder, blocks[-1].key)
    bad.write_bytes(bad.read_bytes()[:-1])
    leftover = bad.with_suffix(".1-aa.tmp")
    leftover.touch()
    before = sorted(folder.rglob("*"))
    real = os.open

    def refuse(path: str | Path, flags: int, *rest: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with opened(folder) as stored:
        assert stored.problem is not None
        assert "Read-only file system" in stored.problem
        keys, _ = match(stored, list(range(10)))
        assert [stored.read(key) is not None for key in keys] == [True, True, False][: len(keys)]
        stored.read(blocks[-1].key)
        put(stored, [5, 5])
        assert stored.flush(30)
        assert match(stored, list(range(10)))[1] == 8
        assert stored.dropped == 1
        with pytest.raises(ResourceError, match="Read-only"):
            stored.prune(0)
    assert sorted(folder.rglob("*")) == before


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_of_somebody_else_is_not_written(folder: Path) -> None:
    with opened(folder) as stored:
        put(stored, [1])
    (folder / "index-1.db").chmod(0o400)
    with opened(folder) as stored:
        assert stored.problem is not None
        assert match(stored, [1])[1] == 1


def test_a_store_without_a_folder_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with opened(tmp_path / "file" / "kv") as stored:
        put(stored, [1])
        assert stored.problem is not None
        assert stored.children(ROOT) == []
        assert stored.read(chain(ROOT, [1])[0].key) is None
        assert stored.conversations() == []
        assert stored.dropped == 1


def test_a_locked_index_does_not_stop_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BUSY_SECONDS", 0.1)
    with opened(folder) as stored:
        blocks = put(stored, [1, 2, 3])
        other = sqlite3.connect(folder / "index-1.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        put(stored, [9])
        assert stored.problem is not None
        assert "locked" in stored.problem
        assert match(stored, [1, 2, 3])[1] == 3
        assert stored.read(blocks[0].key) == payload(blocks[0].key)
        other.execute("ROLLBACK")
        other.close()
    with opened(folder) as stored:
        assert match(stored, [9])[1] == 1  # its file was whole, and the repair found it


@posix
def test_only_the_owner_may_look(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with opened(folder) as stored:
        put(stored, [1, 2, 3])
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in folder.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_store_is_in_the_state_folder() -> None:
    assert store_path() == home("kv")


# Several processes

PARTNER = """
import random, sys
from pathlib import Path
from typing import Any
from edgellm.kv.store import BlockStore
from edgellm.kv.blocks import chain, root_key
import hashlib
root, seed = root_key("store"), int(sys.argv[2])
random.seed(seed)
store = BlockStore(Path(sys.argv[1]), budget=int(sys.argv[3]))
names = [*range(20), *range(100 * seed, 100 * seed + 10)]
random.shuffle(names)
for name in names:
    for block in chain(root, [1, 2, 3, 4, 5, 6, 7, 8, name, name], 4):
        store.write(block, hashlib.shake_128(block.key).digest(1000), label="m", words="w")
        for child in store.children(block.parent):
            found = store.read(child.key)
            assert found in (None, hashlib.shake_128(child.key).digest(1000))
assert store.flush(60)
assert store.problem is None, store.problem
assert store.rejected == [], store.rejected
store.close()
"""


@pytest.mark.parametrize("budget", [10**9, 9000])
def test_processes_share_a_store(folder: Path, budget: int) -> None:
    partners = [
        subprocess.Popen([sys.executable, "-c", PARTNER, str(folder), str(seed), str(budget)], stderr=subprocess.PIPE)
        for seed in (1, 2, 3)
    ]
    errors = [partner.communicate(timeout=120)[1].decode() for partner in partners]
    assert errors == ["", "", ""]
    with opened(folder, budget) as stored:
        assert stored.stats().blocks == len(files(folder))
        assert list(folder.glob("*/*.tmp")) == []
        if budget > 9000:
            assert len(files(folder)) == 2 + 20 + 30
        else:
            assert stored.stats().nbytes <= budget


def test_threads_share_a_store(folder: Path) -> None:
    wrong: list[bytes] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
            for block in chain(ROOT, tokens, 4):
                stored.write(block, payload(block.key), label="m", words="w")
            keys, _ = match(stored, tokens)
            wrong.extend(key for key in keys if stored.read(key) not in (None, payload(key)))
            stored.touch(keys)

    with opened(folder, budget=30_000) as stored:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stored.flush(60)
        assert stored.problem is None
        assert stored.stats().nbytes <= 30_000
    assert wrong == []


def test_killed_writers_leave_a_clean_store(tmp_path: Path) -> None:
    program = [sys.executable, str(BENCHMARK), "--kills", "15", "--folder", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["kills"] == 15
    assert report["blocks_at_end"] > 0
