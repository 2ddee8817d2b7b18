"""Files that are read: regular ones. A pipe would be waited for, and a device may have no end. And `new_file`.

    with open(path, "rb", opener=regular) as file: …
    raw = read_file(path)

What is refused raises OSError, as what cannot be opened does; so whoever handles that one handles both.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SMALL = 16 << 20  # bytes; settings and state have far fewer
_PIECE = 1 << 20
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its other end; regular files do not mind


def regular(path: str, flags: int, mode: int = 0o666) -> int:
    """An opener for `open` that raises OSError for what is no regular file."""
    descriptor = os.open(path, flags | _AT_ONCE, mode)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _regular_or_pipe(path: str, flags: int) -> int:
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return regular(path, flags)
    return os.open(path, flags)


def read_file(path: Path, limit: int = SMALL, *, pipe: bool = False) -> bytes:
    """The bytes of a regular file, or of a pipe up to its end where that is meant. Raises OSError, for more than
    `limit` bytes too."""
    with open(path, "rb", opener=_regular_or_pipe if pipe else regular) as file:
        raw = bytearray()  # piece by piece: all of `limit` would be set aside at once
        while len(raw) <= limit and (piece := file.read(_PIECE)):
            raw += piece
    if len(raw) > limit:
        raise OSError(errno.EFBIG, f"more than {limit >> 20} MiB", os.fspath(path))
    return bytes(raw)


@contextmanager
def new_file(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file that gets its name, complete and on disk, when the block ends; after an error nothing is left.

    mode: its permissions; None: those that the umask leaves. Raises OSError, and ValueError for a null byte.
    """
    if (
        path.exists() and not path.is_file() and not path.is_dir()
    ):  # it would be replaced, as /dev/null for all programs
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    name = path.parent / f"{path.name[:40]}.{os.urandom(8).hex()}.part"
    # opening minds the umask; asking what that is would mean setting it, for all threads
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in a folder durable; Windows does that by itself."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
