"""Quantizers: rows go to a child process that quantizes them on all cores; stored bytes come back, in order.

    parent                                       child
    rows ──▶ memory that both have mapped        one thread per core, each takes some of the rows
    {"kind", "rows", "columns", "slot", …} ──▶   quantizes from the slot's first part to its second
    stored bytes ◀────────── {"ok"} ─────────    or {"error"}

    shared memory: two slots, so that one is filled and emptied while the other is computed

    | importance (columns) | rows (n, columns) float32 … | stored bytes … |   × 2
     ◀────────────── PIECE bytes ──────────────────────▶ ◀─ STORED bytes ─▶

ggml stops its process when an assertion fails; here that costs a conversion, not the application. The memory has no
name (on Windows: none that outlives its processes), and the child ends when its input does: whatever becomes of the
parent, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgellm.child import Child, Parent
from edgellm.errors import BackendFailed, Closed, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.machine import usable_cores

from . import ggml

PIECE = 8 << 20  # bytes of float32 that the child gets at once
STORED = PIECE * 5 // 16  # the largest quantized type has 34 bytes for 32 weights
SLOTS = 2
SHARES = 4  # of a piece's rows per thread: the threads end together


class Quantizers:
    """A context manager. After an error, and after `close`, it refuses with Closed.

    threads: of the child process; by default one for each core that this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InvalidParameter(f"threads={threads}: must be at least 1")
        self._threads = threads or usable_cores()
        self._child: _Worker | None = None
        self._closed = False

    def run(
        self,
        name: str,
        kind: GGMLType,
        chunks: Iterable[NDArray[np.float32]],
        importance: NDArray[np.float32] | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Stored bytes of a tensor, in order and a few megabytes at a time: (n, bytes of a row) uint8.

        name: of the tensor, for errors. chunks: its rows, (n, columns) float32 each; they are asked for while the ones
        before are being quantized. importance: (columns,) float32, or None; stacked experts have one each, so every
        expert is a run of its own. F32, F16 and BF16 are stored right here. One run at a time: a run that is abandoned
        closes the quantizers.

        Raises InvalidModelFile for weights that are not finite or do not fit the type, BackendFailed when the child
        dies, and what `ggml.quantize` raises.
        """
        pending: deque[tuple[int, int, int]] = deque()  # slot, rows, bytes of a row
        try:
            for count, piece in enumerate(self._pieces(name, kind, chunks, importance)):
                if kind in ggml.FLOATS:
                    yield _named(name, kind, piece)
                    continue
                if len(pending) == SLOTS:
                    yield self._open().receive(name, kind, *pending.popleft())
                slot = count % SLOTS
                self._open().send(kind, slot, piece, importance)
                pending.append((slot, len(piece), kind.nbytes(piece.shape[-1:])))
            while pending:
                yield self._open().receive(name, kind, *pending.popleft())
        except BaseException:  # GeneratorExit too: an answer that nobody takes would be the next tensor's
            self.close()
            raise

    def _pieces(
        self, name: str, kind: GGMLType, chunks: Iterable[NDArray[np.float32]], importance: NDArray[np.float32] | None
    ) -> Iterator[NDArray[np.float32]]:
        if self._closed:
            raise Closed("these quantizers were closed, by close() or by an error before; open new ones")
        ggml.offered(kind)
        for chunk in chunks:
            ggml.check(kind, chunk.shape[-1], importance)
            step = PIECE // (4 * chunk.shape[-1]) - (importance is not None)
            if step < 1:
                raise Unsupported(f"{name}: rows of {chunk.shape[-1]} weights are longer than the quantizers take")
            for start in range(0, len(chunk), step):
                piece = chunk[start : start + step]
                if not np.isfinite(piece).all():
                    raise InvalidModelFile(f"{name}: a weight is infinite or not a number; the checkpoint is damaged")
                yield piece

    def _open(self) -> _Worker:
        if self._child is None:
            self._child = _Worker(self._threads)
        return self._child

    def close(self) -> None:
        """End the child, whatever it does."""
        self._closed = True
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Quantizers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _named(name: str, kind: GGMLType, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    try:
        return ggml.quantize(kind, rows)
    except InvalidModelFile as error:
        raise InvalidModelFile(f"{name}: {error}") from None


class _Worker:
    """The parent's end of the child process and of the memory they share."""

    def __init__(self, threads: int) -> None:
        ggml.library_file()  # or the child would find out
        size = SLOTS * (PIECE + STORED)
        with contextlib.ExitStack() as until_started:
            if sys.platform == "win32":
                where, shared = f"edgellm-{os.getpid()}-{id(self)}", ()
                self._memory = mmap.mmap(-1, size, tagname=where)
            else:
                handle = until_started.enter_context(_anonymous_file(size)).fileno()
                where, shared = str(handle), (handle,)
                self._memory = mmap.mmap(handle, size)
            self.process = Child(
                f"{__spec__.name}:run_child",
                {"where": where, "threads": threads},
                environment={"GGML_NO_BACKTRACE": "1"},  # or a failed assertion starts a debugger
                pass_fds=shared,
            )

    def send(
        self, kind: GGMLType, slot: int, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
    ) -> None:
        start = slot * (PIECE + STORED)
        if importance is not None:
            self._floats(start, importance.size)[:] = importance
            start += 4 * importance.size
        self._floats(start, rows.size)[:] = rows.reshape(-1)
        job = {"kind": int(kind), "slot": slot, "shape": rows.shape, "importance": importance is not None}
        self.process.send(job)

    def receive(self, name: str, kind: GGMLType, slot: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        try:
            answer = self.process.receive(None, {"ok": bool})
        except BackendFailed as error:
            raise BackendFailed(f"{name}: quantizing it to {kind.name} failed: {error}") from error
        if answer is None:
            raise BackendFailed(
                f"{name}: the process that quantizes it to {kind.name} {self.process.end}; check the memory that is "
                "left, or choose another type"
            )
        if not answer["ok"]:
            raise InvalidModelFile(f"{name}: weights too large for {kind.name}; choose bf16 or f32 for this model")
        start = slot * (PIECE + STORED) + PIECE
        stored: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8, rows * row_bytes, start).copy()
        return stored.reshape(rows, row_bytes)

    def _floats(self, start: int, count: int) -> NDArray[np.float32]:
        return np.frombuffer(self._memory, np.float32, count, start)

    def close(self) -> None:
        self.process.close()
        with contextlib.suppress(BufferError):  # an array of a run that is being abandoned; it goes with that
            self._memory.close()


def _anonymous_file(size: int) -> IO[bytes]:
    """A file without a name: in memory where the system has such files."""
    in_memory = sys.platform == "linux"
    file = open(os.memfd_create("edgellm-quantize"), "r+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def run_child(parent: Parent, where: str, threads: int) -> None:
    """The child: quantize until the parent wants no more."""
    size = SLOTS * (PIECE + STORED)
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size, tagname=where)
    else:
        memory = mmap.mmap(int(where), size)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with ThreadPoolExecutor(threads) as executor:
        for job in parent:
            parent.say(ok=_compute(executor, threads, base, **job))


def _compute(
    executor: ThreadPoolExecutor, threads: int, base: int, *, kind: int, slot: int, shape: list[int], importance: bool
) -> bool:
    rows, columns = shape
    start = base + slot * (PIECE + STORED)
    source, stored = start + 4 * columns * importance, start + PIECE
    row_bytes = GGMLType(kind).nbytes((columns,))
    step = max(1, -(-rows // (threads * SHARES)))

    def share(first: int) -> bool:
        count = min(step, rows - first)
        return ggml.quantize_at(
            GGMLType(kind),
            source + 4 * columns * first,
            stored + row_bytes * first,
            (count, columns),
            start if importance else 0,
        )

    return all(list(executor.map(share, range(0, rows, step))))
