"""MappedFile: a file of a model, mapped into memory for reading; Mapped: what the readers of such files share."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, ModelNotFound, NotEnoughMemory

M = TypeVar("M", bound="Mapped")

ADVICE = "the file is damaged or incomplete: fetch or convert it again"
_EDGE = 4096  # bytes


class MappedFile:
    """buffer holds the size bytes of the file; an empty file is not mapped. descriptor: of the open file, until it is
    closed or forgotten.

    Raises ModelNotFound, InvalidModelFile for what is not a regular file that can be read, NotEnoughMemory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.buffer: mmap.mmap | bytes = b""
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidModelFile(f"{path}: not a regular file; give the path of the model's file")
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._close = weakref.finalize(self, os.close, self.descriptor)
            if status.st_size:
                self.buffer = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)
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

    def error(self, what: str, offset: int | None = None) -> InvalidModelFile:
        """What is wrong with the file, and at which byte."""
        where = "" if offset is None else f" (at byte {offset})"
        return InvalidModelFile(f"{self.path}: {what[:600]}{where}; {ADVICE}")

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """A range of bytes: (stop - start,) uint8, read-only, not copied. Raises InvalidModelFile for one that is not
        in the file any more."""
        if start == stop:
            return np.empty(0, np.uint8)
        self._check_there(stop)
        return np.frombuffer(self.buffer, np.uint8, stop - start, start)

    def edges(self, start: int, stop: int) -> bytes:
        """The first and the last 4 KiB of a range."""
        self._check_there(stop)
        return self.buffer[start : min(start + _EDGE, stop)] + self.buffer[max(start, stop - _EDGE) : stop]

    def _check_there(self, stop: int) -> None:
        """Who reads a mapped file behind the end that it has by now is killed by SIGBUS."""
        if isinstance(self.buffer, mmap.mmap) and self.buffer.size() < stop:
            raise self.error(f"it was {self.size} bytes long, and was cut to {self.buffer.size()} while it was read")

    def release(self, start: int, stop: int) -> None:
        """The pages of a range may leave memory; whoever looks again reads them again. A hint, not taken everywhere."""
        if start < stop and isinstance(self.buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError):
                self.buffer.madvise(mmap.MADV_DONTNEED, page, stop - page)

    def close(self) -> None:
        """Unmap the file once no array of it is in use any more. Closing twice is harmless."""
        self._close()
        if isinstance(self.buffer, mmap.mmap):
            with contextlib.suppress(BufferError):  # an array still looks at it; the map goes with the last one
                self.buffer.close()


class Mapped(ABC):
    """A model whose tensors lie in mapped files, to be closed or used in a `with` statement."""

    def __init__(self) -> None:
        self._files: list[MappedFile] = []

    @abstractmethod
    def _place(self, name: str) -> tuple[MappedFile, int, int]:
        """The file of a tensor, and where in it the tensor starts and stops. KeyError if there is none."""

    def data(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor: (nbytes,) uint8, read-only, not copied. KeyError if there is none."""
        file, start, stop = self._place(name)
        return file.view(start, stop)

    def place(self, name: str) -> tuple[int, int, int]:
        """Where its stored bytes lie: the descriptor of the open file, the first byte, and how many. KeyError if there
        is none."""
        file, start, stop = self._place(name)
        return file.descriptor, start, stop - start

    def release(self, name: str) -> None:
        """The tensor's pages may leave memory; whoever looks again reads them again. A hint: not every system takes it.

        Without it, the resident memory of a program that streams through a file grows to the size of the file.
        """
        file, start, stop = self._place(name)
        file.release(start, stop)

    def close(self) -> None:
        """Unmap the files once no array of them is in use any more. Closing twice is harmless."""
        for file in self._files:
            file.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
