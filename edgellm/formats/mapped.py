"""MappedFile: a file of a model, mapped into memory for reading."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, ModelNotFound, NotEnoughMemory

ADVICE = "the file is damaged or incomplete: fetch or convert it again"
_EDGE = 4096  # bytes


class MappedFile:
    """buffer holds the size bytes of the file; an empty file is not mapped.

    Raises ModelNotFound, InvalidModelFile for what is not a regular file that can be read, NotEnoughMemory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.buffer: mmap.mmap | bytes = b""
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidModelFile(f"{path}: not a regular file; give the path of the model's file")
            if status.st_size:
                with open(path, "rb") as file:
                    self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelNotFound(f"{path}: no such file; check the path, and fetch all files of the model") from None
        except (OSError, ValueError) as error:  # ValueError: emptied in the meantime
            if getattr(error, "errno", None) == errno.ENOMEM:
                raise NotEnoughMemory(
                    f"{path}: no room to map its {status.st_size} bytes; close other programs"
                ) from None
            why = getattr(error, "strerror", None) or error
            raise InvalidModelFile(f"{path}: cannot be read: {why}; check its permissions, or fetch it again") from None
        self.size = len(self.buffer)

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """A range of bytes: (stop - start,) uint8, read-only, not copied."""
        if start == stop:
            return np.empty(0, np.uint8)
        return np.frombuffer(self.buffer, np.uint8, stop - start, start)

    def edges(self, start: int, stop: int) -> bytes:
        """The first and the last 4 KiB of a range."""
        return self.buffer[start : min(start + _EDGE, stop)] + self.buffer[max(start, stop - _EDGE) : stop]

    def release(self, start: int, stop: int) -> None:
        """The pages of a range may leave memory; whoever looks again reads them again. A hint, not taken everywhere."""
        if start < stop and isinstance(self.buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError):
                self.buffer.madvise(mmap.MADV_DONTNEED, page, stop - page)

    def close(self) -> None:
        """Unmap the file once no array of it is in use any more. Closing twice is harmless."""
        if isinstance(self.buffer, mmap.mmap):
            with contextlib.suppress(BufferError):  # an array still looks at it; the map goes with the last one
                self.buffer.close()
