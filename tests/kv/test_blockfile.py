"""The file of a block: whatever happens to its bytes, it is either served as written or not at all."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.kv import blockfile
from edgellm.kv.blockfile import Damaged, Stopped, encode, read_block, read_header, remove_leftover, write_block
from edgellm.kv.blocks import Block, chain, root_key

ROOT = root_key("file")
PAYLOAD = bytes(range(256)) * 3
LABEL, WORDS = "smollm2:135m", "Was ist ein Schlüssel?"


def block(n: int = 5) -> Block:
    return chain(ROOT, list(range(100, 100 + n)))[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ab" / "block.kv"
    write_block(path, encode(block(), PAYLOAD, LABEL, WORDS), PAYLOAD)
    return path


def test_what_was_written_comes_back(path: Path) -> None:
    assert read_block(path, block().key) == PAYLOAD
    with path.open("rb", buffering=0) as file:
        header = read_header(file, path.stat().st_size)
    assert header.block == block()
    assert header.block.parent == ROOT
    assert header.block.start == 0
    assert header.block.tokens.tolist() == [100, 101, 102, 103, 104]
    assert (header.label, header.words, header.size) == (LABEL, WORDS, path.stat().st_size)
    assert os.listdir(path.parent) == ["block.kv"]


def test_the_layout_is_the_documented_one(path: Path) -> None:
    """Read with nothing but the table in the documentation."""
    data = path.read_bytes()
    start_of_payload, payload_bytes = struct.unpack_from("<IQ", data, 12)
    crc, start, n, a, b = struct.unpack_from("<5I", data, 24)
    assert data[:12] == b"\x89EKV\r\n\x1a\n\x01\0\0\0"
    assert (start, n) == (0, 5)
    assert data[44:76] == block().key
    assert data[76:108] == ROOT
    assert np.frombuffer(data, "<i4", n, 108).tolist() == block().tokens.tolist()
    assert data[108 + 4 * n :][:a].decode() == LABEL
    assert data[108 + 4 * n + a :][:b].decode() == WORDS
    assert struct.unpack_from("<I", data, start_of_payload - 4)[0] == zlib.crc32(data[: start_of_payload - 4])
    assert data[start_of_payload:] == PAYLOAD
    assert (payload_bytes, crc) == (len(PAYLOAD), zlib.crc32(PAYLOAD))


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_byte_is_never_served(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damage") / "block.kv"
    good = encode(block(), PAYLOAD, LABEL, WORDS) + PAYLOAD
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bad)
    with pytest.raises(Damaged):
        read_block(path, block().key)


def test_every_byte_of_the_header_counts(tmp_path: Path) -> None:
    path = tmp_path / "block.kv"
    head = encode(block(), PAYLOAD, LABEL, WORDS)
    for at in range(len(head)):
        bad = bytearray(head + PAYLOAD)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        with pytest.raises(Damaged):
            read_block(path, block().key)


def test_a_file_of_another_length_is_never_served(path: Path) -> None:
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(Damaged):
            read_block(path, block().key)
    path.write_bytes(good + b"\0")
    with pytest.raises(Damaged, match="longer"):
        read_block(path, block().key)


def test_zeros_where_the_disk_lost_a_page_are_never_served(tmp_path: Path) -> None:
    path = tmp_path / "block.kv"
    payload = os.urandom(3 * 4096)
    good = encode(block(), payload, LABEL, WORDS) + payload
    for at in range(0, len(good) - 4096, 1024):
        path.write_bytes(good[:at] + bytes(4096) + good[at + 4096 :])
        with pytest.raises(Damaged):
            read_block(path, block().key)


def test_another_version_is_named(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(Damaged, match="version 2, and this edgellm reads 1"):
        read_block(path, block().key)


def test_a_block_under_another_name_is_not_that_block(path: Path) -> None:
    with pytest.raises(Damaged, match="another block"):
        read_block(path, block(6).key)


def test_a_key_that_is_not_that_of_its_tokens_is_refused(path: Path) -> None:
    """A header that is whole and lies: the checksum is right, the tokens are others."""
    lie = Block(block().key, ROOT, 0, np.array([1, 2, 3, 4, 5], np.int32))
    path.write_bytes(encode(lie, PAYLOAD, LABEL, WORDS) + PAYLOAD)
    with pytest.raises(Damaged, match="its tokens"):
        read_block(path, block().key)


def test_writing_can_be_given_up(path: Path) -> None:
    other = path.with_name("other.kv")
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        write_block(other, encode(block(), PAYLOAD, "", ""), bytes(5 << 20), lambda: next(asked))
    assert os.listdir(path.parent) == ["block.kv"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr(blockfile, "memoryview", lambda _: full(), raising=False)
    else:
        monkeypatch.setattr(blockfile.os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_block(path.with_name("other.kv"), b"head", PAYLOAD)
    monkeypatch.undo()
    assert os.listdir(path.parent) == ["block.kv"]
    assert read_block(path, block().key) == PAYLOAD


def test_leftovers_go_and_files_being_written_stay(path: Path) -> None:
    leftover = path.with_name("dead.123-00ff.tmp")
    leftover.write_bytes(b"half a bl")
    assert remove_leftover(leftover)
    assert not leftover.exists()
    seen: list[bool] = []

    def look() -> bool:
        [unfinished] = path.parent.glob("*.tmp")
        seen.append(remove_leftover(unfinished))
        return False

    other = path.with_name("other.kv")
    write_block(other, encode(block(), PAYLOAD, LABEL, WORDS), PAYLOAD, look)
    assert seen == [False, False]
    assert read_block(other, block().key) == PAYLOAD


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_owner_may_look(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
