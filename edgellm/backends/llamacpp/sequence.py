"""LlamaSequence: one sequence id in the unified KV cache of a llama_context.

A block of state leaves and enters through the spare id, which keeps the rest of the sequence untouched:

    save(start, stop)   seq_cp(id → spare, start, stop)   get_data(spare)        seq_rm(spare)
    load(block)         set_data(block → spare)           seq_cp(spare → id)     seq_rm(spare)

State restored this way gave logits equal to the original, bit for bit. llama.cpp writes only what the sliding window
of the last saved position still sees, so a save goes out in parts that no window can cut.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

import numpy as np

from edgellm.backends.base import Buffer, Sequence
from edgellm.errors import BackendFailed, Closed, ContextOverflow, Unsupported

if TYPE_CHECKING:
    from edgellm.backends.llamacpp.backend import LlamaBackend

HEADER = struct.Struct("<4sII")  # magic, start, stop (positions); parts follow
PART = struct.Struct("<IQ")  # stop (position), bytes of llama.cpp's state that follow
MAGIC = b"LCS1"


class LlamaSequence(Sequence):
    """See `edgellm.backends.base.Sequence`. `length` is kept here and re-read after an interrupted pass."""

    __slots__ = ("_backend", "_closed", "id", "length")

    length: int

    def __init__(self, backend: LlamaBackend, id: int) -> None:
        self._backend = backend
        self._closed = False
        self.id = id
        self.length = 0

    def advance(self, n: int) -> None:
        """The backend computed `n` more tokens."""
        self.length += n

    def resync(self) -> None:
        """Read the length from llama.cpp: after a pass that did not complete."""
        self.length = self._backend.lib.llama_memory_seq_pos_max(self._backend.memory, self.id) + 1

    def truncate(self, length: int) -> bool:
        self.check_open()
        if not 0 <= length <= self.length:
            raise BackendFailed(f"cannot keep {length} of {self.length} tokens")
        if length == self.length:
            return True
        if self._lowest() > max(0, length - self._backend.window):
            return False
        if not self._backend.lib.llama_memory_seq_rm(self._backend.memory, self.id, length, -1):
            return False
        self.length = length
        return True

    def fork(self, length: int | None = None) -> LlamaSequence:
        self.check_open()
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise BackendFailed(f"cannot fork {length} of {self.length} tokens")
        if length < self.length and not self._backend.info.can_truncate:
            raise Unsupported(f"{self._backend.info.architecture} models can be forked only at their end")
        if self._lowest() > max(0, length - self._backend.window):
            raise Unsupported(f"the first {length} tokens have left the sliding window of this sequence")
        twin = self._backend.new_sequence()
        if length:
            self._copy(self.id, twin.id, 0, length)
        twin.length = length
        return twin

    def save(self, start: int, stop: int) -> Buffer:
        self.check_open()
        if not 0 <= start < stop <= self.length:
            raise BackendFailed(f"cannot save positions {start} to {stop} of {self.length}")
        if not self._backend.info.can_truncate:
            if (start, stop) != (0, self.length):
                raise Unsupported(f"{self._backend.info.architecture} models can be saved only as a whole")
            return HEADER.pack(MAGIC, start, stop) + self._save_part(start, stop)
        if self._lowest() > start:
            raise BackendFailed(f"positions {start} to {stop} have left the sliding window of this sequence")
        step = self._backend.block_tokens
        parts = [self._save_part(at, min(at + step, stop)) for at in range(start, stop, step)]
        return b"".join([HEADER.pack(MAGIC, start, stop), *parts])

    def _save_part(self, start: int, stop: int) -> bytes:
        lib, context, spare = self._backend.lib, self._backend.context, self._backend.spare
        self._copy(self.id, spare, start, stop)
        try:
            size = lib.llama_state_seq_get_size(context, spare)
            part = bytearray(PART.size + size)
            PART.pack_into(part, 0, stop, size)
            target = (ctypes.c_uint8 * size).from_buffer(part, PART.size)
            written = lib.llama_state_seq_get_data(context, target, size, spare)
            del target
            if written != size:
                raise BackendFailed(f"llama.cpp saved {written} of {size} bytes of state")
        finally:
            lib.llama_memory_seq_rm(self._backend.memory, spare, -1, -1)
        return bytes(part)

    def load(self, blocks: list[Buffer]) -> None:
        self.check_open()
        before = self.length
        try:
            for block in blocks:
                self._load_one(block)
        except BaseException:
            if self.length != before:
                self._backend.lib.llama_memory_seq_rm(self._backend.memory, self.id, before, -1)
                self.length = before
            raise

    def _load_one(self, block: Buffer) -> None:
        if len(block) < HEADER.size:
            raise BackendFailed("a saved block is too short to be one")
        magic, start, stop = HEADER.unpack_from(block)
        if magic != MAGIC or start != self.length or stop <= start:
            raise BackendFailed(f"a saved block for positions {start} to {stop} does not continue {self.length} tokens")
        if stop > self._backend.n_ctx:
            raise ContextOverflow(
                f"{stop} tokens do not fit the context of {self._backend.n_ctx}", needed=stop, n_ctx=self._backend.n_ctx
            )
        address, at = _address(block), HEADER.size
        while self.length < stop and at + PART.size <= len(block):
            part_stop, size = PART.unpack_from(block, at)
            at += PART.size
            if not self.length < part_stop <= stop or size > len(block) - at:
                break
            self._load_part(address + at, size, part_stop)
            at += size
        if self.length != stop or at != len(block):
            raise BackendFailed(f"a saved block for positions {start} to {stop} is damaged")

    def _load_part(self, address: int, size: int, stop: int) -> None:
        lib, spare = self._backend.lib, self._backend.spare
        data = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        while not lib.llama_state_seq_set_data(self._backend.context, data, size, spare):
            self._backend.make_room(stop - self.length)
        try:
            low = lib.llama_memory_seq_pos_min(self._backend.memory, spare)
            high = lib.llama_memory_seq_pos_max(self._backend.memory, spare)
            if high != stop - 1 or (low != self.length and self._backend.info.can_truncate):
                raise BackendFailed(f"a saved block holds positions {low} to {high}, not {self.length} to {stop - 1}")
            self._copy(spare, self.id, self.length, stop)
        finally:
            lib.llama_memory_seq_rm(self._backend.memory, spare, -1, -1)
        self.length = stop

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._backend.release(self)
            self.length = 0

    def _lowest(self) -> int:
        """The first position whose state is complete: above 0 once a sliding-window cell was given away."""
        if not self._backend.info.can_truncate:
            return 0
        return max(0, int(self._backend.lib.llama_memory_seq_pos_min(self._backend.memory, self.id)))

    def _copy(self, source: int, target: int, start: int, stop: int) -> None:
        if not self._backend.info.can_truncate:
            start, stop = -1, -1
        self._backend.lib.llama_memory_seq_cp(self._backend.memory, source, target, start, stop)

    def check_open(self) -> None:
        """Raises Closed."""
        if self._closed:
            raise Closed("this sequence was closed")


def _address(block: Buffer) -> int:
    """Where the bytes of `block` lie, without a copy; the caller keeps `block` alive."""
    return int(np.frombuffer(block, np.uint8).ctypes.data)
