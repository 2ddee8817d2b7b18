"""OnnxSequence: the KV state of one token sequence in the cells of its backend.

A block of state is the same bytes wherever the sequence lies and however much room it has:

    magic | start | stop (positions) | layout | per tensor of the cache (heads, stop - start, size) of the graph's dtype
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from edgellm.backends.base import Buffer, Sequence
from edgellm.errors import BackendFailed, Closed, ContextOverflow

if TYPE_CHECKING:
    from edgellm.backends.onnx.backend import OnnxBackend

HEADER = struct.Struct("<4sII8s")
MAGIC = b"ORS1"


class OnnxSequence(Sequence):
    """See `edgellm.backends.base.Sequence`. row: where its cells are, kept by them."""

    __slots__ = ("_backend", "_closed", "length", "row")

    length: int

    def __init__(self, backend: OnnxBackend) -> None:
        self._backend = backend
        self._closed = False
        self.row = -1
        self.length = 0

    def truncate(self, length: int) -> bool:
        self.check_open()
        self._check_range(0, length)
        self._backend.cells.resize(self, length)
        self.length = length
        return True

    def fork(self, length: int | None = None) -> OnnxSequence:
        self.check_open()
        length = self.length if length is None else length
        self._check_range(0, length)
        twin = self._backend.new_sequence(length)
        try:
            self._backend.cells.resize(twin, length)
        except BaseException:
            twin.close()
            raise
        twin.length = length
        if length:
            pairs = zip(self._backend.cells.views(self), self._backend.cells.views(twin), strict=True)
            for source, target in pairs:
                target[:, :length] = source[:, :length]
        return twin

    def save(self, start: int, stop: int) -> Buffer:
        self.check_open()
        self._check_range(start, stop)
        if start == stop:
            raise BackendFailed(f"cannot save no tokens (at position {start})")
        header = HEADER.pack(MAGIC, start, stop, self._backend.cells.layout)
        return b"".join([header, *(view[:, start:stop].tobytes() for view in self._backend.cells.views(self))])

    def load(self, blocks: list[Buffer]) -> None:
        self.check_open()
        stops = self._check_blocks(blocks)
        if not stops:
            return
        self._backend.cells.resize(self, stops[-1])
        views = self._backend.cells.views(self)
        for block, stop in zip(blocks, stops, strict=True):
            at, start = HEADER.size, self.length
            for view in views:
                heads, _, size = view.shape
                count = heads * (stop - start) * size
                part = np.frombuffer(block, view.dtype, count, at)
                view[:, start:stop] = part.reshape(heads, stop - start, size)
                at += part.nbytes
            self.length = stop

    def _check_blocks(self, blocks: list[Buffer]) -> list[int]:
        """Where each of the blocks ends, all of which fit and follow one another."""
        stops: list[int] = []
        here = self.length
        for block in blocks:
            if len(block) < HEADER.size:
                raise BackendFailed(f"a saved block of {len(block)} bytes is too short to be one")
            magic, start, stop, layout = HEADER.unpack_from(block)
            if magic != MAGIC or layout != self._backend.cells.layout:
                raise BackendFailed("a saved block is damaged, or of another model")
            if start != here or stop <= start:
                raise BackendFailed(f"a saved block for positions {start} to {stop} does not continue {here} tokens")
            if len(block) != HEADER.size + (stop - start) * self._backend.info.kv_bytes_per_token:
                raise BackendFailed(f"a saved block for positions {start} to {stop} has {len(block)} bytes: damaged")
            n_ctx = self._backend.n_ctx
            if stop > n_ctx:
                message = f"{stop} tokens do not fit the context of {n_ctx}"
                raise ContextOverflow(message, needed=stop, n_ctx=n_ctx)
            stops.append(stop)
            here = stop
        return stops

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._backend.release(self)
            self.length = 0

    def check_open(self) -> None:
        """Raises Closed."""
        if self._closed:
            raise Closed("this sequence was closed")

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.length:
            raise BackendFailed(f"positions {start} to {stop} are not in a sequence of {self.length} tokens")
