"""Pipes: lines of bytes from and to the process that started this one, over the standard streams.

Each pipe has a thread that waits for it: event loops cannot wait for pipes on Windows, and for files nowhere.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

WAITING = 1 << 20  # bytes that were not written yet, beyond which the next line waits
PIECE = 1 << 16  # bytes of a read
UNREAD_SECONDS = 60.0  # that the other side may leave lines unread before it is told of


def taken() -> tuple[int, int]:
    """Descriptors of stdin and stdout that nobody else has: from now on, what is printed, by native code too, goes to
    stderr, and who reads stdin finds its end. Child processes inherit neither."""
    sys.stdout.flush()
    reading, writing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for each in (reading, writing):
        with suppress(OSError, AttributeError):  # Windows has it for pipes, and from Python 3.12 on
            os.set_blocking(each, True)
    return reading, writing


def lines(descriptor: int, most: int) -> Iterator[bytes | None]:
    """The lines that come, without their ends, until there are no more; None for one of more than `most` bytes. What
    has no end behind it is none."""
    held, searched, too_long = bytearray(), 0, False
    while piece := _read(descriptor):
        held += piece
        start = 0
        while (end := held.find(b"\n", max(start, searched))) >= 0:
            yield None if too_long or end - start > most else bytes(held[start:end])
            start, too_long = end + 1, False
        del held[:start]
        if len(held) > most:
            held.clear()
            too_long = True
        searched = len(held)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, PIECE)
    except OSError:
        return b""


def read(
    descriptor: int, most: int, take: Callable[[bytes | None], Coroutine[Any, Any, None]], ended: Callable[[], None]
) -> None:
    """Hand the lines to this event loop, one at a time: the next is read when `take` is done with the one before."""
    loop = asyncio.get_running_loop()

    def reading() -> None:
        try:
            for line in lines(descriptor, most):
                taking = take(line)
                try:
                    asyncio.run_coroutine_threadsafe(taking, loop).result()
                except (RuntimeError, CancelledError):  # the event loop has ended
                    taking.close()
                    return
        finally:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended)

    threading.Thread(target=reading, name="edgellm-stdin", daemon=True).start()


class Output:
    """Lines that are written in their order, and no more of them in memory than WAITING, and one.

    broken: is called when nobody can read them any more; what is put then is dropped. unread: when nobody has for
    UNREAD_SECONDS.
    """

    def __init__(self, descriptor: int, broken: Callable[[], None], unread: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._tell_broken = broken
        self._tell_unread = unread
        self._loop = asyncio.get_running_loop()
        self._broken = False
        self._nbytes = 0
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="edgellm-stdout", daemon=True).start()

    async def put(self, line: bytes) -> None:
        """Write a line; waits for those before. If this is cancelled the line is not written."""
        async with self._turn:
            while self._nbytes >= WAITING and not self._broken:
                try:
                    await asyncio.wait_for(self._wait(), UNREAD_SECONDS)
                except asyncio.TimeoutError:
                    self._tell_unread()
            if not self._broken:
                self._nbytes += len(line)
                self._lines.put(line)

    async def written(self, seconds: float) -> None:
        """Wait until all is, or so long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_for_all(), seconds)

    async def _wait_for_all(self) -> None:
        while self._nbytes and not self._broken:
            await self._wait()

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _write(self) -> None:
        while True:
            found = [self._lines.get()]
            with suppress(queue.Empty):
                while True:
                    found.append(self._lines.get_nowait())
            data = b"".join(found)
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(self._descriptor, left[:PIECE]) :]
            except OSError:
                self._say(self._break)
                return
            self._say(self._wrote, len(data))

    def _say(self, told: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(told, *arguments)

    def _wrote(self, nbytes: int) -> None:
        self._nbytes -= nbytes
        self._news.set()

    def _break(self) -> None:
        self._broken = True
        self._news.set()
        self._tell_broken()
