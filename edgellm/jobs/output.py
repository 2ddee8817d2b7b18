"""Output: the file with the answers of a job. Each is appended whole; so whenever the job ends, it can go on.

OUT.jsonl       the answers, in the order in which they came
OUT.jsonl.job   which input, model and options they belong to; locked while a job writes them
"""

from __future__ import annotations

import errno
import json
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import Busy, CannotWrite, InvalidParameter
from edgellm.files import new_file, regular, sync_folder
from edgellm.jobs.line import Answer, number_of
from edgellm.lock import try_lock

WHOLE_NAME = 40  # characters of a name that `new_file` puts into that of its unfinished file
BEGUN = b'{"job":1'  # how a record begins, but for white space
MOST_LINES = 1 << 28  # of which a byte of memory is taken
AGAIN = "--restart deletes what is there and begins anew"
WORDS = {"input": "another input", "model": "another model", "options": "other options"}


class Numbers:
    """Numbers of lines, a byte for each up to the largest."""

    def __init__(self) -> None:
        self._there = bytearray()
        self._count = 0

    def add(self, number: int) -> None:
        if number >= len(self._there):
            self._there.extend(bytes(number + 1 - len(self._there)))
        self._count += not self._there[number]
        self._there[number] = 1

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._there) and bool(self._there[number])

    def __len__(self) -> int:
        return self._count


class Output:
    """Locked from the beginning to `close`. done: the lines that are answered there, by their numbers.

    A last line that is not whole is cut off. Raises Busy where another process writes there, InvalidParameter for a
    file that no job wrote, CannotWrite.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path = Path(os.path.realpath(path))
        self.done = Numbers()
        self._record = path.with_name(f"{path.name}.job")
        self._size = 0
        self._file = self._job = -1
        self._about: dict[str, Any] | None = None
        self._new = False  # whether the record is: then it goes where nothing comes of the job
        if path.exists() and not path.is_file():
            raise InvalidParameter(f"{path}: must be a file; - writes to standard output")
        try:
            self._lock()
            self._about = self._recorded(restart)
            if self._about is not None:
                self._open()
        except BaseException:
            self.close()
            raise

    def belong(self, about: Mapping[str, Any]) -> None:
        """Say whose answers these are: "input", "model" and "options" of the job. Raises InvalidParameter if they are
        another one's."""
        wanted = json.loads(json.dumps(about))
        if self._about is None:
            with self._writing(self.path), suppress(FileNotFoundError):
                os.truncate(self.path, 0)  # nothing is there, or what is to be deleted
            with self._writing(self._record):
                os.ftruncate(self._job, 0)
                os.lseek(self._job, 0, os.SEEK_SET)
                _put(self._job, json.dumps({"job": 1, **wanted}, ensure_ascii=False, indent=1).encode() + b"\n")
                os.fsync(self._job)
                sync_folder(self.path.parent)
            self._about = wanted
            self._open()
            return
        other = [words for name, words in WORDS.items() if self._about.get(name) != wanted.get(name)]
        if other:
            options = _difference(self._about.get("options"), wanted.get("options"))
            more = f" ({options})" if options and WORDS["options"] in other else ""
            raise InvalidParameter(
                f"{self.path} has answers to {' and '.join(other)}{more}; choose another -o; {AGAIN}"
            )

    def write(self, answer: Answer) -> None:
        """Append it. Raises CannotWrite, and nothing of it is there then."""
        text = answer.text
        with self._writing(self.path):
            try:
                _put(self._file, text)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise
        self._size += len(text)
        self.done.add(answer.number)

    def order(self) -> None:
        """Put the answers into the order of their lines: at once, or not at all. Raises CannotWrite."""
        with self._writing(self.path):
            self._tidy()
            os.fsync(self._file)
            with open(self.path, "rb", opener=regular) as file:
                starts, numbers = array("Q", [0]), array("Q")
                for raw in file:
                    starts.append(starts[-1] + len(raw))
                    numbers.append(number_of(raw) or 0)
                order = np.argsort(np.array(numbers, np.uint64), kind="stable")
                if (order[1:] > order[:-1]).all():
                    return
                with new_file(self.path) as copy:
                    for at in order:
                        file.seek(starts[at])
                        copy.write(file.read(starts[at + 1] - starts[at]))
                    os.close(self._file)  # whose name is about to be another file's
                    self._file = -1

    def close(self) -> None:
        """What is written is on the disk then, if it takes it; another process may go on."""
        if self._job >= 0 and self._about is None and self._new:  # nothing came of it
            with suppress(OSError):
                self._record.unlink()
        for each in (self._file, self._job):
            if each >= 0:
                with suppress(OSError):
                    os.fsync(each)
                os.close(each)
        self._file = self._job = -1

    def _tidy(self) -> None:
        """Remove what a process left that was killed while it ordered these answers."""
        if len(self.path.name) <= WHOLE_NAME:
            for left in self.path.parent.glob(f"{escape(self.path.name)}.{'[0-9a-f]' * 16}.part"):
                left.unlink(missing_ok=True)

    def _recorded(self, restart: bool) -> dict[str, Any] | None:
        """What stands in the record; None if nothing does, or nothing that is to stay. Where writing it was cut off,
        nothing was answered yet. Raises InvalidParameter for files that no job wrote, which stay as they are."""
        with self._writing(self._record):
            if not stat.S_ISREG(os.fstat(self._job).st_mode):
                raise InvalidParameter(f"{self._record} is no file; choose another -o")
            with open(self._job, "rb", closefd=False) as file:
                raw = file.read()
        begun = b"".join(raw[:64].split())[: len(BEGUN)]
        if begun != BEGUN[: len(begun)]:
            raise InvalidParameter(f"{self._record} is there, and no job wrote it; choose another -o")
        self._new = not raw
        there = self.path.exists() and self.path.stat().st_size > 0
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if restart:
            if there and found is None and not self._answers():
                raise InvalidParameter(f"{self.path} is there, and no job wrote it; delete it, or choose another -o")
            return None
        if isinstance(found, dict):
            return found
        if there:
            raise InvalidParameter(
                f"{self.path} is there, and {self._record.name} does not say which job wrote it; choose another -o; "
                f"{AGAIN}"
            )
        return None

    def _answers(self) -> bool:
        """Whether what is there begins as answers do."""
        with self._writing(self.path), open(self.path, "rb", opener=regular) as file:
            return number_of(file.read(1000)) is not None

    def _open(self) -> None:
        """See which lines are answered, and cut off one that is not whole."""
        with self._writing(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._file = os.open(self.path, flags, 0o666)
            with open(self.path, "rb", opener=regular) as file:
                for at, raw in enumerate(file, 1):
                    if not raw.endswith(b"\n"):
                        break
                    number = number_of(raw)
                    if number is None or number > MOST_LINES:
                        raise InvalidParameter(
                            f"{self.path}: line {at} was written by no job; choose another -o; {AGAIN}"
                        )
                    self.done.add(number)
                    self._size += len(raw)
            os.ftruncate(self._file, self._size)

    def _lock(self) -> None:
        with self._writing(self._record):
            while True:
                self._job = os.open(self._record, os.O_RDWR | os.O_CREAT, 0o666)
                if not try_lock(self._job):
                    os.close(self._job)
                    self._job = -1
                    raise Busy(f"{self.path}: another process is writing there; wait for it, or choose another -o")
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self._job), os.stat(self._record)):
                        return
                os.close(self._job)  # of a job that came to nothing: it was just removed
                self._job = -1

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except CannotWrite:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            advice = "free some space; the same command goes on then" if full else "check its folder and permissions"
            raise CannotWrite(f"{path}: cannot be written: {error.strerror or error}; {advice}") from error


class Loose:
    """Answers that go to a stream as they come; nothing is known of them later."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.done = Numbers()
        self._write = write

    def write(self, answer: Answer) -> None:
        self._write(answer.text)
        self.done.add(answer.number)


def _put(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _difference(one: Any, other: Any) -> str:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ""
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    said = [f"{name} was {one.get(name, 'unset')}, is {other.get(name, 'unset')}" for name in names]
    return ", ".join(said)[:300]
