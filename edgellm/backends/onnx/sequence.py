"""OnnxSequence: the KV state of one token sequence in the pool of its backend.

A block of state is the same bytes wherever the sequence lies and however much room it has; behind the header:

    layout (8 bytes) | per tensor of the cache (heads, stop - start, size) of the graph's dtype
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.base import Buffer
from edgellm.backends.checked import HEADER, CheckedSequence
from edgellm.backends.onnx.pool import LAYOUT, OnnxPool
from edgellm.errors import BackendFailed

STATE = HEADER.size + LAYOUT  # where the state of a block begins


class OnnxSequence(CheckedSequence[OnnxPool]):
    """See `edgellm.backends.base.Sequence`."""

    magic = b"ORS1"

    def _truncate(self, length: int) -> bool:
        self._pool.resize(self, length)
        return True

    def _copy_to(self, twin: OnnxSequence, length: int) -> None:
        self._pool.resize(twin, length)
        for source, target in zip(self._pool.views(self), self._pool.views(twin), strict=True):
            target[:, :length] = source[:, :length]

    def _save(self, start: int, stop: int, head: bytes) -> Buffer:
        state = (view[:, start:stop].tobytes() for view in self._pool.views(self))
        return b"".join([head, self._pool.layout, *state])

    def _load(self, blocks: list[Buffer], stops: list[int]) -> None:
        start = self.length
        for block, stop in zip(blocks, stops, strict=True):
            if bytes(block[HEADER.size : STATE]) != self._pool.layout:
                raise BackendFailed("a saved block is damaged, or of another model")
            if len(block) != STATE + (stop - start) * self._pool.token_bytes:
                raise BackendFailed(f"a saved block for positions {start} to {stop} has {len(block)} bytes: damaged")
            start = stop
        if not stops:
            return
        self._pool.resize(self, stops[-1])
        views = self._pool.views(self)
        for block, stop in zip(blocks, stops, strict=True):
            at, start = STATE, self.length
            for view in views:
                heads, _, size = view.shape
                count = heads * (stop - start) * size
                part = np.frombuffer(block, view.dtype, count, at)
                view[:, start:stop] = part.reshape(heads, stop - start, size)
                at += part.nbytes
            self.length = stop
