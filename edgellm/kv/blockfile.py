"""The file of one block, written once and never changed.

       0   8  magic 89 45 4B 56 0D 0A 1A 0A
       8   4  version
      12   4  H, where the payload starts
      16   8  P, bytes of the payload
      24   4  CRC-32 of the payload
      28   4  start: position of the first token
      32   4  n: tokens
      36   4  a: bytes of the label
      40   4  b: bytes of the words
      44  32  key
      76  32  parent
     108  4n  tokens, int32
           a  label, UTF-8
           b  words, UTF-8
     H-4   4  CRC-32 of bytes 0 .. H-4
       H   P  payload, to the end of the file

Integers are little-endian and unsigned unless said otherwise. The key is checked against parent and tokens as well, so
a file can only ever answer for the prefix that it was written for. docs/kv-store.md describes the folder around it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgellm import pages
from edgellm._native import crc32
from edgellm.backends.base import Buffer, SavedFile
from edgellm.files import regular, sync_folder
from edgellm.kv.blocks import Block, block_key

MAGIC = b"\x89EKV\r\n\x1a\n"
VERSION = 1
SUFFIX, UNFINISHED = ".kv", ".tmp"
MAX_HEADER = 64 << 20  # bytes; a longer one is damage
HEAD = 12  # bytes of a payload that say what it is (backends/checked.py)
CHUNK = 1 << 20  # bytes written between two looks at `stop`

_PROLOGUE = struct.Struct("<8sII")
_FIXED = struct.Struct("<QIIIII32s32s")
_CRC = struct.Struct("<I")


class Damaged(ValueError):
    """The file is not a whole block of this version; the message says in which way."""


class Stopped(Exception):
    """Writing was given up because `stop` said so."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself. label: the model's name; words: how the conversation begins; size: of the file."""

    block: Block
    label: str
    words: str
    payload_start: int
    payload_crc: int
    size: int


def encode(block: Block, payload: Buffer, label: str, words: str) -> bytes:
    """The bytes of the file that come before the payload."""
    names = [label.encode(), words.encode()]
    tokens = block.tokens.astype("<i4", copy=False).tobytes()
    length = _PROLOGUE.size + _FIXED.size + len(tokens) + len(names[0]) + len(names[1]) + _CRC.size
    fixed = _FIXED.pack(
        len(payload),
        crc32(payload),
        block.start,
        len(block.tokens),
        len(names[0]),
        len(names[1]),
        block.key,
        block.parent,
    )
    head = _PROLOGUE.pack(MAGIC, VERSION, length) + fixed + tokens + names[0] + names[1]
    return head + _CRC.pack(crc32(head))


def read_header(file: BinaryIO, size: int) -> Header:
    """The header of a file of `size` bytes that is open at its beginning; checks all but the payload's bytes.

    Raises Damaged, OSError.
    """
    prologue = file.read(_PROLOGUE.size)
    if len(prologue) < _PROLOGUE.size:
        raise Damaged("truncated")
    magic, version, length = _PROLOGUE.unpack(prologue)
    if magic != MAGIC:
        raise Damaged("not a block file")
    if version != VERSION:
        raise Damaged(f"version {version}, and this edgellm reads {VERSION}")
    if not _PROLOGUE.size + _FIXED.size + _CRC.size <= length <= min(size, MAX_HEADER):
        raise Damaged("truncated, or the header's length is wrong")
    head = prologue + file.read(length - _PROLOGUE.size)
    if len(head) < length or crc32(head[: -_CRC.size]) != _CRC.unpack(head[-_CRC.size :])[0]:
        raise Damaged("the header's checksum is wrong")
    payload, crc, start, n, a, b, key, parent = _FIXED.unpack_from(head, _PROLOGUE.size)
    at = _PROLOGUE.size + _FIXED.size
    if at + 4 * n + a + b + _CRC.size != length:
        raise Damaged("the header's lengths do not add up")
    if length + payload != size:
        raise Damaged("truncated" if size < length + payload else "longer than it says")
    tokens = np.frombuffer(head, "<i4", n, at).astype(np.int32, copy=False)
    if block_key(parent, start, tokens) != key:
        raise Damaged("its key is not that of its tokens")
    at += 4 * n
    label, words = head[at : at + a].decode(errors="replace"), head[at + a : at + a + b].decode(errors="replace")
    return Header(Block(key, parent, start, tokens), label, words, length, crc, size)


def _open(path: Path, key: bytes) -> tuple[FileIO, Header]:
    """The file of the block `key`, where its payload begins."""
    file = FileIO(path, "r", opener=regular)
    try:
        header = read_header(file, os.fstat(file.fileno()).st_size)
        if header.block.key != key:
            raise Damaged("it holds another block")
        return file, header
    except BaseException:
        file.close()
        raise


@contextlib.contextmanager
def open_block(path: Path, key: bytes) -> Iterator[SavedFile]:
    """The block `key`, for whoever reads its payload and verifies it. Raises what `read_block` does."""
    file, header = _open(path, key)
    with file:
        payload = header.size - header.payload_start
        head = file.read(min(HEAD, payload))
        if len(head) < min(HEAD, payload):
            raise Damaged("truncated")
        yield SavedFile(head, file.fileno(), payload, header.payload_crc)


def read_block(path: Path, key: bytes) -> Buffer:
    """The payload of the block `key`, verified. Raises Damaged, OSError (FileNotFoundError among them), MemoryError."""
    file, header = _open(path, key)
    with file:
        payload = pages.zeros(header.size - header.payload_start)
        at = 0
        while at < len(payload):
            got = file.readinto(payload[at:])
            if not got:
                raise Damaged("truncated")
            at += got
    if crc32(payload) != header.payload_crc:
        raise Damaged("the payload's checksum is wrong")
    return payload.toreadonly()


def write_block(path: Path, head: bytes, payload: Buffer, stop: Callable[[], bool] = lambda: False) -> None:
    """Put a block under its name, whole or not at all, safe against power loss where the platform can.

    The temporary file is locked while its writer lives, which is how `remove_leftover` tells (on Windows an open file
    cannot be deleted, which does the same). Raises OSError, Stopped.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent.parent)
    name, file = _temporary(path)
    try:
        with file:
            view = memoryview(payload)
            for piece in [memoryview(head), *(view[at : at + CHUNK] for at in range(0, len(view), CHUNK))]:
                if stop():
                    raise Stopped
                while piece:
                    piece = piece[file.write(piece) :]
            os.fsync(file.fileno())
            if sys.platform != "win32":
                os.replace(name, path)  # still locked
        if sys.platform == "win32":
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> tuple[Path, FileIO]:
    """A new temporary file beside `path`, locked where locks are known."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        name = path.with_name(f"{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
        file = FileIO(os.open(name, flags, 0o600), "w")
        _lock(file)
        if name.exists():
            return name, file
        file.close()  # between opening and locking, another process took it for a leftover


def remove_leftover(path: Path) -> bool:
    """Delete a temporary file whose writer is gone. False while the writer lives, or when that cannot be told."""
    try:
        if sys.platform == "win32":
            path.unlink()
            return True
        with open(path, "rb", opener=regular) as file:
            if not _lock(file):
                return False
            path.unlink()
            return True
    except OSError:
        return False


def _lock(file: BinaryIO) -> bool:
    """Lock an open file for this process. False when another has it, or the file system has no locks."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
