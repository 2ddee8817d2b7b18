"""LlamaSequence: one sequence id in the unified KV cache of a llama_context.

llama.cpp writes only what the sliding window of the last saved position still sees, so a save goes out in parts that no
window can cut. Behind the header a block has, for each part:

    stop (position, uint32) | size (bytes, uint64) | llama.cpp's state
"""

from __future__ import annotations

import struct

import numpy as np

from edgellm.backends.base import Buffer
from edgellm.backends.checked import HEADER, CheckedSequence
from edgellm.backends.llamacpp.pool import LlamaPool
from edgellm.errors import BackendFailed, Unsupported

PART = struct.Struct("<IQ")


class LlamaSequence(CheckedSequence[LlamaPool]):
    """See `edgellm.backends.base.Sequence`. `length` is read again after an interrupted pass."""

    magic = b"LCS1"

    def _truncate(self, length: int) -> bool:
        seen = self._pool.lowest(self.id) <= max(0, length - self._pool.window)
        return seen and self._pool.keep(self.id, length)

    def _copy_to(self, twin: LlamaSequence, length: int) -> None:
        if length < self.length and not self._pool.divisible:
            raise Unsupported(f"the state of {self._pool.name} is one whole: it can be forked only at its end")
        if self._pool.lowest(self.id) > max(0, length - self._pool.window):
            raise Unsupported(f"the first {length} tokens have left the sliding window of this sequence")
        self._pool.copy(self.id, twin.id, 0, length)

    def _save(self, start: int, stop: int, head: bytes) -> Buffer:
        step = self._pool.part
        if not self._pool.divisible:
            if (start, stop) != (0, self.length):
                raise Unsupported(f"the state of {self._pool.name} is one whole: it can be saved only as such")
            step = stop
        elif self._pool.lowest(self.id) > start:
            raise BackendFailed(f"positions {start} to {stop} have left the sliding window of this sequence")
        parts: list[bytes | bytearray] = [head]
        for at in range(start, stop, step):
            part = self._pool.read(self.id, at, min(at + step, stop), PART.size)
            PART.pack_into(part, 0, min(at + step, stop), len(part) - PART.size)
            parts.append(part)
        return b"".join(parts)

    def _load(self, blocks: list[Buffer], stops: list[int]) -> None:
        before = self.length
        try:
            for block, stop in zip(blocks, stops, strict=True):
                self._load_one(block, stop)
        except BaseException:
            if self.length != before:
                self._pool.keep(self.id, before)
                self.length = before
            raise

    def _load_one(self, block: Buffer, stop: int) -> None:
        start, at = self.length, HEADER.size
        address = int(np.frombuffer(block, np.uint8).ctypes.data)  # without a copy: the caller keeps the block alive
        while self.length < stop and at + PART.size <= len(block):
            part_stop, size = PART.unpack_from(block, at)
            at += PART.size
            if not self.length < part_stop <= stop or size > len(block) - at:
                break
            self._pool.write(self, part_stop, address + at, size)
            at += size
        if self.length != stop or at != len(block):
            raise BackendFailed(f"a saved block for positions {start} to {stop} is damaged")
