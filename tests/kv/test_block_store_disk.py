"""The disk tier on a disk that refuses: full, read-only, locked or somebody else's; nothing here ever raises."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kv_store import ROOT, file_of, match, opened, payload, posix, put

from edgellm.errors import ResourceError
from edgellm.home import home
from edgellm.kv import blockfile, index, writer
from edgellm.kv.blocks import chain
from edgellm.kv.store import BlockStore, store_path


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


def test_without_a_thread_nothing_more_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = BlockStore(tmp_path)
    put(before, [1, 2, 3, 4])
    before.close()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    store = BlockStore(tmp_path)
    assert "edgellm-kv-writer cannot be started" in str(store.problem)
    store.touch([ROOT])
    block = chain(ROOT, [5, 6, 7, 8], 4)[0]
    store.write(block, payload(block.key), label="model", words="words")
    assert store.flush(1)
    assert (store.dropped, match(store, [1, 2, 3, 4])[1]) == (1, 4)
    store.close()
