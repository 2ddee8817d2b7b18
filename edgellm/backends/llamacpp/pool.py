"""LlamaPool: one llama_context with a unified KV cache, shared by every open sequence.

It starts small and is rebuilt larger when a pass finds no room (`grow`), up to `max_cells`. State leaves and enters
through the spare id `max_sequences`, never leased, which keeps the rest of a sequence untouched:

    read     seq_cp(id → spare, start, stop)   get_data(spare)        seq_rm(spare)
    write    set_data(bytes → spare)           seq_cp(spare → id)     seq_rm(spare)

State restored this way gave logits equal to the original, bit for bit.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import numpy as np

from edgellm import _native
from edgellm.backends.base import Buffer, Rows
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.context import context_params, new_context
from edgellm.backends.llamacpp.loading import Plan
from edgellm.backends.pool import Held, Limits, Pool, round_up
from edgellm.errors import BackendFailed, Busy, Interrupted, ModelLoadError, NotEnoughMemory

log = logging.getLogger("edgellm.llamacpp")

FIRST_CELLS = 2048  # KV cells of a new context; more are made when they are needed
DECODE_NO_SLOT = 1  # return value of llama_decode, llama.h


class LlamaPool(Pool[Held]):
    """See above. cells: tokens that it has room for. divisible: state can be cut anywhere, as no recurrent model's can.
    window: newest tokens of a sequence whose state is surely there. part: tokens of state that leave at once. causal:
    the model continues texts; else it has no context."""

    def __init__(self, model: int, plan: Plan, limits: Limits, abort: _native.AbortFlag) -> None:
        super().__init__(plan.info.name, limits)
        self._lib: Any = library.load_library()
        self._model, self._plan, self._abort = model, plan, abort
        self.window = self._lib.llama_model_n_swa(model) or 2**31  # tokens a sliding-window layer looks back
        self.part = min(256, self.window)
        self.divisible = not (self._lib.llama_model_is_recurrent(model) or self._lib.llama_model_is_hybrid(model))
        self.cells = min(round_up(plan.n_ctx, 256), FIRST_CELLS)
        self.max_cells = round_up(plan.max_cells, 256)
        self.causal = plan.info.can_generate
        self._adapter: int | None = None  # of the passes from now on: llama.cpp's pointer
        self._context: int | None = None
        self._rows: dict[int, Rows] = {}  # arrays over single rows of the context, by address
        prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)  # it returns a plain address
        self._row_address: Any = prototype(("llama_get_logits_ith", self._lib._lib))
        if self.causal:
            self._context = self._new_context(self.cells)
            if not self._memory:  # the header does not say that it is an encoder, but llama.cpp knows
                self.causal = False
                self.close()

    def close(self) -> None:
        """Free the context. Closing twice is harmless."""
        old, self._context = self._context, None
        self._rows.clear()
        if old is not None:
            self._lib.llama_free(old)

    # Sequences

    def lease(self, sequence: Held, expected: int = 0) -> None:
        self.grow(min(self.used() + expected, self.max_cells), len(self.open) + 1)
        super().lease(sequence, expected)
        self._lib.llama_memory_seq_rm(self._memory, sequence.id, -1, -1)

    def release(self, sequence: Held) -> None:
        super().release(sequence)
        if self._context is not None:
            self._lib.llama_memory_seq_rm(self._memory, sequence.id, -1, -1)

    def lowest(self, id: int) -> int:
        """The first position whose state is complete: above 0 once a sliding-window cell was given away."""
        return max(0, self._lib.llama_memory_seq_pos_min(self._memory, id)) if self.divisible else 0

    def keep(self, id: int, length: int) -> bool:
        """Drop all but the first `length` tokens. False: this architecture cannot."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, id, length, -1))

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Give `target` the state that `source` has of [start, stop): of all its tokens, where it is one whole."""
        if not self.divisible:
            start, stop = -1, -1
        self._lib.llama_memory_seq_cp(self._memory, source, target, start, stop)

    # Passes

    def decode(self, batch: Any) -> int:
        """What llama_decode returns for a llama_batch, after growing as often as it finds no room.

        Raises Busy when there is no more, Interrupted when a sequence was lost on the way.
        """
        while (code := self._lib.llama_decode(self.context, batch)) == DECODE_NO_SLOT:
            if not self.grow(self.cells + 1, len(self.open)):
                raise Interrupted("the state of a sequence was lost while the KV cache grew")
        return int(code)

    def resync(self) -> None:
        """Read all lengths from llama.cpp: after a pass that did not complete."""
        for id, sequence in self.open.items():
            sequence.length = self._lib.llama_memory_seq_pos_max(self._memory, id) + 1

    def rows(self, first: int, count: int, n_vocab: int) -> Rows:
        """Logits rows [first, first + count) of the last pass as an array over llama.cpp's own memory."""
        address = self._row_address(self.context, first)
        if not address:
            raise BackendFailed("llama.cpp returned no logits for a row that was asked for")
        if count > 1:
            return _array(address, count, n_vocab)
        row = self._rows.get(address)
        if row is None:
            row = self._rows[address] = _array(address, 1, n_vocab)
        return row

    def use(self, adapter: int | None) -> None:
        """Compute passes with this adapter (llama.cpp's pointer) from now on, None: with none."""
        if adapter != self._adapter:
            self._set_adapter(self.context, adapter)
            self._adapter = adapter

    def _set_adapter(self, context: int, adapter: int | None) -> None:
        count = int(adapter is not None)
        pointers = (ctypes.c_void_p * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        array = ctypes.cast(pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))
        if self._lib.llama_set_adapters_lora(context, array, count, scales):
            raise BackendFailed("llama.cpp does not take an adapter that it has loaded; load the model again")

    # State

    def read(self, id: int, start: int, stop: int, room: int) -> bytearray:
        """The state of positions [start, stop) behind `room` bytes that the caller fills."""
        spare = self.limits.max_sequences
        self.copy(id, spare, start, stop)
        try:
            size = self._lib.llama_state_seq_get_size(self.context, spare)
            part = bytearray(room + size)
            target = (ctypes.c_uint8 * size).from_buffer(part, room)
            written = self._lib.llama_state_seq_get_data(self.context, target, size, spare)
            if written != size:
                raise BackendFailed(f"llama.cpp saved {written} of {size} bytes of state")
        finally:
            self._lib.llama_memory_seq_rm(self._memory, spare, -1, -1)
        return part

    def write(self, sequence: Held, stop: int, address: int, size: int) -> None:
        """Append state, `size` bytes at `address`, up to position `stop`."""
        lib, spare = self._lib, self.limits.max_sequences
        data = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        while not lib.llama_state_seq_set_data(self.context, data, size, spare):
            if self.cells - self.used() >= stop - sequence.length:  # room is not what was missing
                raise BackendFailed("llama.cpp refused saved state: it is damaged, or of another build or model")
            self.grow(self.cells + 1, len(self.open))
        try:
            low = lib.llama_memory_seq_pos_min(self._memory, spare)
            high = lib.llama_memory_seq_pos_max(self._memory, spare)
            if high != stop - 1 or (low != sequence.length and self.divisible):
                raise BackendFailed(
                    f"a saved block holds positions {low} to {high}, not {sequence.length} to {stop - 1}"
                )
            self.copy(spare, sequence.id, sequence.length, stop)
        finally:
            lib.llama_memory_seq_rm(self._memory, spare, -1, -1)
        sequence.length = stop

    # The context

    @property
    def context(self) -> int:
        """The llama_context pointer."""
        if self._context is None:
            raise BackendFailed(f"{self.name} has no KV cache any more: memory was short; load the model again")
        return self._context

    @property
    def _memory(self) -> Any:
        """The llama_memory_t of the context."""
        return self._lib.llama_get_memory(self.context)

    def _new_context(self, cells: int) -> int:
        sequences = self.limits.max_sequences + 1
        p = context_params(self._plan, self._abort, cells=cells, tokens=self.limits.micro_batch, sequences=sequences)
        p.n_outputs_max = max(self.limits.max_rows, sequences)
        context = new_context(self._model, p, self._plan.info.path)
        if self._adapter is not None:
            self._set_adapter(context, self._adapter)
        return context

    def grow(self, needed: int, sequences: int) -> bool:
        """Rebuild the pool if it has fewer cells than `needed`; every open sequence moves, bit for bit.

        It doubles, but never beyond what that many `sequences` can fill. A sequence that gave away cells behind its
        sliding window cannot be saved: it is empty afterwards, to be fed again, and the result is False. Raises Busy
        when the pool is already as large as it may be.
        """
        if needed <= self.cells:
            return True
        if self.cells >= self.max_cells:
            raise Busy(f"the KV cache of {self.name} is full ({self.cells} tokens)")
        usable = min(2 * self.cells, sequences * self.limits.n_ctx)
        cells = min(round_up(max(usable, needed), 256), self.max_cells)
        held: list[tuple[Held, list[Buffer]]] = []
        lost = 0
        for sequence in self.open.values():
            try:
                held.append((sequence, [sequence.save(0, sequence.length)] if sequence.length else []))
            except BackendFailed as error:
                log.warning("%d tokens are computed again: %s", sequence.length, error)
                held.append((sequence, []))
                lost += 1
        log.debug("KV cache grows from %d to %d tokens", self.cells, cells)
        self.close()
        try:
            self._context = self._new_context(cells)
            self.cells = cells
        except (NotEnoughMemory, ModelLoadError) as error:
            self.max_cells = self.cells
            self._context = self._new_context(self.cells)
            log.warning("the KV cache stays at %d tokens: %s", self.cells, error)
        for sequence, blocks in held:
            sequence.length = 0
            sequence.load(blocks)
        return not lost


def _array(address: int, rows: int, n_vocab: int) -> Rows:
    view = np.ctypeslib.as_array((ctypes.c_float * (rows * n_vocab)).from_address(address))
    view.flags.writeable = False
    return view.reshape(rows, n_vocab)
