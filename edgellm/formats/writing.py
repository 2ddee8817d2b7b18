"""What the writers of containers share: files that appear whole or not at all, and data that comes in chunks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CannotWrite, EdgeLLMError, InvalidParameter
from edgellm.files import new_file

_ADVICE = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "the file system takes no file of this size: write to another one",
}
Data = Union[bytes, bytearray, memoryview, "NDArray[Any]", Callable[[], Iterable[Any]]]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that gets its name, complete and on disk, when the block ends; after an error nothing is left.

    Raises CannotWrite, also for an OSError of the block.
    """
    target = Path(path)
    with writing(target), new_file(target) as file:
        yield file


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Small files, by their paths in the folder, which are made. Raises CannotWrite."""
    for name, raw in files.items():
        path = folder / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(raw)


def counted(data: Callable[[], Iterable[Any]], advance: Callable[[int], None]) -> Callable[[], Iterator[Any]]:
    """A function that returns the same arrays; `advance` gets the bytes of each when it was written."""

    def pieces() -> Iterator[Any]:
        for piece in data():
            yield piece
            advance(piece.nbytes)

    return pieces


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """An OSError inside becomes CannotWrite, which names `target`."""
    try:
        yield
    except EdgeLLMError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0, "check the folder, its permissions and its disk")
        raise CannotWrite(f"{target}: cannot be written: {why}; nothing was left there: {advice}") from error


def write_data(file: BinaryIO, name: str, data: Data, expected: int) -> None:
    """Append a tensor: its stored bytes, an array that holds exactly them, or a function that returns chunks of them.

    Raises InvalidParameter unless they are `expected` bytes.
    """
    written = 0
    for chunk in data() if callable(data) else (data,):
        view = memoryview(np.ascontiguousarray(chunk).data if isinstance(chunk, np.ndarray) else chunk)
        written += view.nbytes
        if written > expected:
            break
        if view.nbytes:
            file.write(view.cast("B"))
    if written != expected:
        raise InvalidParameter(f"tensor {name!r}: {written} bytes given, its type and shape need {expected}")
