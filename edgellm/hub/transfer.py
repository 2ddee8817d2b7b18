"""What every download shares: progress events, the check for room, hashing, and a lock between processes."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import DownloadError, EdgeLLMError, ResourceError
from edgellm.files import regular
from edgellm.lock import try_lock, unlock

BLOCK = 1 << 20  # bytes read at a time

log = logging.getLogger("edgellm.hub")


class Unreachable(DownloadError):
    """There is no way to the source: no network, or nobody who answers."""


@dataclass(frozen=True, slots=True)
class PullEvent:
    """A line to announce (total 0), or how far a transfer is: done of total bytes."""

    text: str
    done: int = 0
    total: int = 0


Progress = Callable[[PullEvent], None]


def log_progress(event: PullEvent) -> None:
    """Where events go when the caller gives no callback: announcements to the `edgellm.hub` logger."""
    if not event.total:
        log.warning("%s", event.text)


def megabytes(count: int) -> str:
    """A byte count for people, in decimal units: "98.4 MB"."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 999.95:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def check_room(folder: Path, needed: int) -> None:
    """Raises ResourceError unless `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{megabytes(needed)} are needed in {folder} and {megabytes(free)} are free; "
            "free some space, or set EDGELLM_HOME to a folder on another disk"
        )


@contextmanager
def trying(to: str, folder: Path) -> Iterator[None]:
    """An OSError becomes a ResourceError that says what failed (to: "read", "write in"), where and why."""
    try:
        yield
    except EdgeLLMError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceError(f"the disk of {folder} is full; free some space and pull again") from error
        raise ResourceError(
            f"cannot {to} {folder}: {error.strerror or error}; mend that, or set EDGELLM_HOME to another folder"
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb", opener=regular) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a file lock, which the system frees when the process dies; `waiting` is called once if another holds it.

    The file stays behind: deleting it would let two processes lock two different files of one name.
    """
    with open(path, "a+b", opener=regular) as file:
        told = False
        while not try_lock(file.fileno()):
            if not told:
                waiting()
                told = True
            time.sleep(0.1)
        try:
            yield
        finally:
            unlock(file.fileno())
