"""Source: the file with the lines of a job. It is read once for their places; what they say is read again, one by one.

A file of millions of lines takes 32 bytes of memory for each.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from array import array
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgellm.errors import CannotWrite, EdgeLLMError, InvalidParameter
from edgellm.files import regular
from edgellm.jobs.line import LARGEST, Flaw, Line, Request, beginning, parsed
from edgellm.jobs.order import Order

SHOWN = 5  # doubled ids that an error tells


class InputChanged(EdgeLLMError):
    """The input is not what it was when the job began."""


class Source:
    """total: lines that are to be answered, `limit` at most; blank ones do not count. requests: how many of them are in
    OpenAI's format. digest: SHA-256 of the whole input, in hex. todo: how many are left."""

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        limit: int | None = None,
        done: Container[int] = (),
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Read it once. done: numbers of lines that are answered already. progress: told the bytes that are read, and
        all. Raises InvalidParameter for an id that comes twice, CannotWrite where sorting has no room on the disk."""
        self.name = name
        self.total = self.requests = 0
        self._file = file
        self._starts = array("Q")  # where each line begins
        self._form = self._stamp()
        self._ids = array("Q"), array("Q")  # hashes of those that lines bring, and the lines' numbers
        digest, order = hashlib.sha256(), Order()
        at, size = 0, os.fstat(file.fileno()).st_size
        file.seek(0)
        for raw, bytes_of_it in _lines(file, digest.update):
            self._starts.append(at)
            at += bytes_of_it
            if progress is not None:
                progress(at, size)
            if not raw.strip() or (limit is not None and self.total >= limit):
                continue
            self.total += 1
            key = self._key(raw, len(self._starts))
            if len(self._starts) not in done:
                with _temporary(name, "sorted"):
                    order.add(key, len(self._starts))
        with _temporary(name, "sorted"):
            self._order = order.numbers()
        self._starts.append(at)
        self.digest = digest.hexdigest()
        self._check_ids()

    @property
    def todo(self) -> int:
        return len(self._order)

    def lines(self) -> Iterator[Line]:
        """Those that are left, so that the ones whose prompts begin alike follow one another. Raises InputChanged."""
        for number in self._order:
            yield Line(number, self._text(number))

    def _key(self, raw: bytes, number: int) -> bytes:
        try:
            asked = parsed(raw)
        except Flaw as flaw:
            self._note_id(flaw.custom_id, number)
            return b""  # the first of all: what is wrong is seen soon
        if isinstance(asked, Request):
            self.requests += 1
            self._note_id(asked.custom_id, number)
        return beginning(asked)

    def _note_id(self, custom_id: str | None, number: int) -> None:
        if custom_id is not None:
            hashed = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._ids[0].append(int.from_bytes(hashed, "little"))
            self._ids[1].append(number)

    def _check_ids(self) -> None:
        hashes, numbers = (np.frombuffer(each, np.uint64) if each else np.zeros(0, np.uint64) for each in self._ids)
        order = np.argsort(hashes, kind="stable")
        alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        doubled: dict[str, list[int]] = {}
        seen, last = dict[str, int](), -2  # of those with one hash, which ids may have that differ
        for at in map(int, alike):
            one, other = (int(numbers[order[each]]) for each in (at, at + 1))
            if at != last + 1:
                if len(doubled) > SHOWN:
                    break
                seen = {self._id(one): one}
            custom_id, last = self._id(other), int(at)
            if custom_id in seen:
                doubled.setdefault(custom_id, [seen[custom_id]]).append(other)
            else:
                seen[custom_id] = other
        del self._ids
        if doubled:
            said = [f"{each[:100]!r} on lines {', '.join(map(str, at[:9]))}" for each, at in doubled.items()]
            more = " and others" if len(said) > SHOWN else ""
            raise InvalidParameter(
                f"{self.name}: a custom_id may come once, and these come again: {'; '.join(said[:SHOWN])}{more}"
            )

    def _id(self, number: int) -> str:
        try:
            asked = parsed(self._text(number))
        except Flaw as flaw:
            return flaw.custom_id or ""
        return asked.custom_id if isinstance(asked, Request) else ""

    def _text(self, number: int) -> bytes:
        if self._stamp() != self._form:
            raise InputChanged(f"{self.name} was changed while it was answered; what is done is kept")
        start, end = self._starts[number - 1], self._starts[number]
        self._file.seek(start)
        return self._file.read(min(end - start, LARGEST + 1))

    def _stamp(self) -> tuple[int, int]:
        about = os.fstat(self._file.fileno())
        return about.st_size, about.st_mtime_ns


def _lines(file: BinaryIO, seen: Callable[[bytes], object]) -> Iterator[tuple[bytes, int]]:
    """Each line, or the beginning of one that is too long, and its bytes in the file."""
    while raw := file.readline(LARGEST + 1):
        seen(raw)
        size = len(raw)
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(1 << 20)):
            seen(rest)
            size += len(rest)
        yield raw, size


def opened(name: str, piped: Callable[[], BinaryIO]) -> BinaryIO:
    """The input, as a file that can be read again: `-` is what is piped, and like every pipe copied to a temporary file
    first. Raises InvalidParameter, CannotWrite."""
    path = Path(os.path.expanduser(name))
    try:
        if name == "-":
            return _copied(piped(), name)
        if stat.S_ISFIFO(path.stat().st_mode):
            with path.open("rb") as pipe:
                return _copied(pipe, name)
        return open(path, "rb", opener=regular)
    except (OSError, ValueError) as error:
        if isinstance(error, EdgeLLMError):
            raise
        raise InvalidParameter(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _copied(pipe: BinaryIO, name: str) -> BinaryIO:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        while piece := pipe.read(1 << 20):
            with _temporary(name, "copied"):
                copy.write(piece)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


@contextmanager
def _temporary(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{name}: cannot be {what} in {tempfile.gettempdir()}: {error.strerror or error}; TMPDIR names another"
        ) from error
