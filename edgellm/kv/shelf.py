"""The folder of the disk tier: block files, and the index that must agree with them.

Every change of a file's existence and of its row is made inside one SQLite transaction, whose write lock all processes
share, so nobody adds a block while somebody else evicts it. A process killed in between leaves a file without a row or
a row without a file; `repair` mends both.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from edgellm.backends.base import Buffer, SavedFile
from edgellm.files import regular
from edgellm.kv.blockfile import (
    SUFFIX,
    UNFINISHED,
    Damaged,
    Header,
    encode,
    open_block,
    read_block,
    read_header,
    remove_leftover,
    write_block,
)
from edgellm.kv.blocks import Block
from edgellm.kv.index import Index

log = logging.getLogger("edgellm.kv")


class Shelf:
    """Blocks in `folder`. problem says why it cannot be written, and is None when it can.

    Methods raise OSError and sqlite3.Error; only the constructor does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index(folder)
        with contextlib.suppress(OSError):  # somebody else made it
            folder.chmod(0o700)
        self.problem = self.index.problem

    def read(self, key: bytes) -> Buffer:
        """The payload, verified. Raises Damaged too, and FileNotFoundError when there is no such block."""
        return read_block(self._path(key), key)

    def open(self, key: bytes) -> AbstractContextManager[SavedFile]:
        """The same, for whoever reads and verifies the payload."""
        return open_block(self._path(key), key)

    def has(self, block: Block) -> bool:
        """Whether the block is on disk already."""
        return self.index.has(block.key) and self._path(block.key).exists()

    def put(self, block: Block, payload: Buffer, names: tuple[str, str], stop: Callable[[], bool]) -> bool:
        """Write a block's file, then its row. names: label and words. Raises Stopped when `stop` said so.

        False: its parent is not there, so that nobody would ever find it.
        """
        if not self._reachable(block):
            return False
        head = encode(block, payload, *names)
        path = self._path(block.key)
        write_block(path, head, payload, stop)
        with self.index.transaction():
            if not self._reachable(block):  # another process has evicted the parent meanwhile
                self._delete(block.key)
                return False
            if path.exists():  # or this block, just now
                self.index.add(Header(block, *names, len(head), 0, len(head) + len(payload)), time.time())
        return True

    def evict(self, to_bytes: int) -> int:
        """Delete the least recently used blocks that none follows until `to_bytes` are left; returns bytes freed."""
        freed = 0
        with self.index.transaction():
            excess = self.index.total()[0] - to_bytes
            while freed < excess and (leaf := self.index.oldest_leaf()) is not None:
                self._delete(leaf[0])
                freed += leaf[1]
        return freed

    def check(self, key: bytes) -> bool:
        """Delete a block that is not whole, or renew its row. False: it can be neither read nor deleted."""
        with self.index.transaction():
            try:
                self.read(key)
            except FileNotFoundError:
                self.index.remove(key)
            except Damaged:
                if self.problem is not None:
                    return False
                self._delete(key)
            except OSError:
                return False
            else:
                self._adopt(self._path(key), time.time())
        return True

    def remove(self, key: bytes) -> bool:
        """Delete a block, whole or not. False: nothing can be deleted here."""
        if self.problem is None:
            with self.index.transaction():
                self._delete(key)
        return self.problem is None

    def repair(self) -> None:
        """Make rows and files agree, and delete what killed writers left.

        Files without a row get one in the order of their time stamps, which after the loss of the index is the best
        guess at what was used when. A file whose parent is gone is deleted, because nobody would ever find it: its
        writer was killed before it had a row, and the parent, which none seemed to follow, was evicted.
        """
        files: dict[bytes, tuple[float, Path]] = {}
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.suffix == UNFINISHED and self.problem is None:
                    remove_leftover(path)
                elif path.suffix == SUFFIX and path.is_file():
                    with contextlib.suppress(ValueError, OSError):
                        files[bytes.fromhex(path.stem)] = (path.stat().st_mtime, path)
        rows = self.index.keys()
        for key in rows - files.keys():
            with self.index.transaction():
                if not self._path(key).exists():
                    self.index.remove(key)
        new = sorted((*files[key], key) for key in files.keys() - rows)
        for at in range(0, len(new), 64):
            with self.index.transaction():
                for written, path, _ in new[at : at + 64]:
                    self._adopt(path, written)
        if self.problem is None:
            self._delete_orphans({key for _, _, key in new})

    def _delete_orphans(self, new: set[bytes]) -> None:
        """Delete those of these blocks whose parent is gone, then those that followed them."""
        parents = {row.key: row.parent for row in self.index.rows() if row.key in new and row.start > 0}
        while parents:
            with self.index.transaction():
                orphans = [key for key, parent in parents.items() if not self.index.has(parent)]
                for key in orphans:
                    self._delete(key)
            if not orphans:
                return
            for key in orphans:
                del parents[key]

    def _reachable(self, block: Block) -> bool:
        return block.start == 0 or self.index.has(block.parent)

    def _adopt(self, path: Path, written: float) -> None:
        """A row for a file; a file that is no block is deleted. Inside a transaction."""
        try:
            with open(path, "rb", buffering=0, opener=regular) as file:
                header = read_header(file, path.stat().st_size)
            if self._path(header.block.key) != path:
                raise Damaged("it holds another block")
        except FileNotFoundError:
            return
        except Damaged as error:
            if self.problem is None:
                log.warning("deleted %s: %s", path, error)
                path.unlink(missing_ok=True)
            return
        self.index.add(header, written)

    def _delete(self, key: bytes) -> None:
        """File and row of a block. Inside a transaction."""
        try:
            self._path(key).unlink(missing_ok=True)
        except PermissionError:
            if sys.platform != "win32":
                raise  # on Windows somebody is reading it, and the next repair finds the file again
        self.index.remove(key)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name}{SUFFIX}"
