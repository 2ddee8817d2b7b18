"""The disk tier: what was written is found again, behind the answer and within a budget."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_store import ROOT, file_of, files, match, opened, payload, put

from edgellm.kv import blockfile, index, store, writer
from edgellm.kv.blocks import chain, make_block
from edgellm.kv.store import BlockStore

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
