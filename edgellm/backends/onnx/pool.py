"""Where the KV state of sequences lies: SharedPool for GroupQueryAttention, CopiedPool for graphs that join past and
present.

Shared   one slab per tensor, (rows, heads, capacity, size), one row per sequence: its id. A pass reads and writes it in
         place: a contiguous slice of rows is bound as past and as present. Rows and capacity grow in steps, by copying;
         rows are swapped where sequences that decode together do not lie side by side.
Copied   two flat buffers per tensor and sequence. Past is (1, heads, length, size) at the start of one, present
         (1, heads, length + new, size) at the start of the other; after the pass they change roles.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from edgellm import pages
from edgellm.backends.onnx.graph import Kept
from edgellm.backends.onnx.session import Binding, Session
from edgellm.backends.pool import Held, Limits, Pool, round_up
from edgellm.errors import Busy, NotEnoughMemory
from edgellm.formats.onnx_graph import DATA_TYPES, NUMPY

FIRST_CAPACITY = 512  # tokens of a row; it doubles
FIRST_BUFFER = 64  # tokens of a copied sequence; it doubles
LAYOUT = 8  # bytes of `OnnxPool.layout`
ALIGNED = 64  # bytes, what the start of a slab is a multiple of

State = NDArray[np.generic]  # (heads, tokens, size) of the graph's dtype


class OnnxPool(Pool[Held], ABC):
    """The state of all open sequences. kept: the tensors of one. max_cells: tokens of all together.

    together: the most sequences of a run. layout: tells caches of different shape or dtype apart. token_bytes: of the
    state of a token.
    """

    together: int

    def __init__(self, name: str, limits: Limits, kept: Sequence[Kept], max_cells: int) -> None:
        super().__init__(name, limits)
        self._kept, self._max_cells = kept, max(max_cells, limits.n_ctx)
        text = ";".join(f"{each.dtype},{each.heads},{each.size}" for each in kept)
        self.layout = hashlib.blake2b(text.encode(), digest_size=LAYOUT).digest()
        self.token_bytes = sum(each.heads * each.size * np.dtype(NUMPY[each.dtype]).itemsize for each in kept)

    def lease(self, sequence: Held, expected: int = 0) -> None:
        super().lease(sequence)
        try:
            self._open(sequence)
        except BaseException:
            super().release(sequence)
            raise
        with suppress(Busy, NotEnoughMemory):  # it is only expected
            self.reserve(sequence, expected)

    @abstractmethod
    def _open(self, sequence: Held) -> None:
        """Make room for a new sequence. Raises Busy, NotEnoughMemory."""

    @abstractmethod
    def close(self) -> None:
        """Let go of all memory, and of the bindings to it."""

    @abstractmethod
    def reserve(self, sequence: Held, length: int) -> None:
        """Make sure that it can hold so many tokens. Raises Busy, NotEnoughMemory."""

    @abstractmethod
    def resize(self, sequence: Held, length: int) -> None:
        """Give it so many tokens: the first stay, more are undefined. What `reserve` raises, then nothing changed."""

    @abstractmethod
    def views(self, sequence: Held) -> list[State]:
        """Per tensor the state, at least as many tokens as it was given; valid until anything else is called here."""

    @abstractmethod
    def bind(self, session: Session, sequences: Sequence[Held], tokens: int) -> Binding:
        """A binding with the past and present of these sequences, which `tokens` new ones each were reserved for."""

    def commit(self, sequence: Held, tokens: int) -> None:
        """A run that appended so many tokens was completed."""


class SharedPool(OnnxPool):
    """See above."""

    def __init__(self, name: str, limits: Limits, kept: Sequence[Kept], max_cells: int) -> None:
        super().__init__(name, limits, kept, max_cells)
        self.together = limits.max_sequences
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._slabs: list[NDArray[np.generic]] = []
        self._rows = self._capacity = 0
        self._rebuild(1, min(FIRST_CAPACITY, limits.n_ctx))

    def close(self) -> None:
        self._bindings.clear()
        self._slabs = []

    def reserve(self, sequence: Held, length: int) -> None:
        if length > self._capacity:
            self._grow(len(self.open), length)

    def resize(self, sequence: Held, length: int) -> None:
        self.reserve(sequence, length)

    def views(self, sequence: Held) -> list[State]:
        return [slab[sequence.id] for slab in self._slabs]

    def bind(self, session: Session, sequences: Sequence[Held], tokens: int) -> Binding:
        count = len(sequences)
        first = self._side_by_side(sequences)
        binding = self._bindings.get((first, count))
        if binding is None:
            binding = self._bindings[first, count] = session.binding()
            for each, slab in zip(self._kept, self._slabs, strict=True):
                rows = slab[first : first + count]
                binding.input(each.past, DATA_TYPES[each.dtype], rows)
                binding.output(each.present, DATA_TYPES[each.dtype], rows)
        return binding

    def _open(self, sequence: Held) -> None:
        if sequence.id == self._rows:
            self._grow(self._rows + 1, max(held.length for held in self.open.values()))

    def _side_by_side(self, sequences: Sequence[Held]) -> int:
        """The first row of these sequences, in this order, after moving those that lie elsewhere."""
        count = len(sequences)
        first = sequences[0].id if sequences[0].id + count <= self._rows else self._rows - count
        for row, sequence in enumerate(sequences, first):
            if sequence.id != row:
                self._swap(sequence, row)
        return first

    def _swap(self, sequence: Held, row: int) -> None:
        old, other = sequence.id, self.open.get(row)
        tokens = max(sequence.length, other.length if other else 0)
        for slab in self._slabs:
            moved = slab[old, :, :tokens].copy()
            if other:
                slab[old, :, :tokens] = slab[row, :, :tokens]
            slab[row, :, :tokens] = moved
        del self.open[old]
        self._place(sequence, row)
        if other:
            self._place(other, old)

    def _place(self, sequence: Held, row: int) -> None:
        sequence.id = row
        self.open[row] = sequence

    def _grow(self, rows: int, capacity: int) -> None:
        """Room for at least so many rows of at least so many tokens, and for more where that fits. Raises Busy."""
        wanted = self._rows if rows <= self._rows else min(2 * self._rows, self.together)
        tokens = self._capacity
        if capacity > tokens:
            tokens = min(max(2 * tokens, round_up(capacity, FIRST_CAPACITY)), self.limits.n_ctx)
        if wanted * tokens > self._max_cells:  # rows that nobody uses go first, then tokens
            wanted, tokens = rows, max(capacity, min(tokens, self._max_cells // rows))
        if wanted * tokens > self._max_cells:
            raise Busy(f"the KV cache is full ({self._rows} rows of {self._capacity} tokens)")
        self._rebuild(wanted, tokens)

    def _rebuild(self, rows: int, capacity: int) -> None:
        """Slabs of another size; what is in use moves to the first rows. Raises NotEnoughMemory, nothing changed."""
        order = [self.open[row] for row in sorted(self.open)]
        slabs = []
        shapes = [(rows, each.heads, capacity, each.size) for each in self._kept]
        for at, slab in enumerate(_zeros(shapes, self._kept)):
            for row, held in enumerate(order):
                if held.length:  # a new one has no row yet
                    slab[row, :, : held.length] = self._slabs[at][held.id, :, : held.length]
            slabs.append(slab)
        self._bindings.clear()
        self._slabs, self._rows, self._capacity = slabs, rows, capacity
        self.open.clear()
        for row, held in enumerate(order):
            self._place(held, row)


class _Buffers:
    """The two flat buffers of every tensor of a sequence. length: tokens that the layout of the current one has."""

    def __init__(self) -> None:
        self.now: list[NDArray[np.generic]] = []
        self.next: list[NDArray[np.generic]] = []
        self.capacity = self.length = 0


class CopiedPool(OnnxPool):
    """See above."""

    together = 1

    def __init__(self, name: str, limits: Limits, kept: Sequence[Kept], max_cells: int) -> None:
        super().__init__(name, limits, kept, max_cells)
        self._buffers: dict[int, _Buffers] = {}

    def release(self, sequence: Held) -> None:
        super().release(sequence)
        if sequence.id not in self.open:
            self._buffers.pop(sequence.id, None)

    def close(self) -> None:
        self._buffers.clear()

    def reserve(self, sequence: Held, length: int) -> None:
        buffers = self._buffers[sequence.id]
        if length <= buffers.capacity:
            return
        others = sum(each.capacity for each in self._buffers.values()) - buffers.capacity
        capacity = min(max(2 * buffers.capacity, round_up(length, FIRST_BUFFER)), self.limits.n_ctx)
        capacity = max(length, min(capacity, self._max_cells - others))
        if others + capacity > self._max_cells:
            raise Busy(f"the KV cache is full ({others + buffers.capacity} tokens)")
        shapes = [(each.heads * capacity * each.size,) for each in self._kept]
        now, later = _zeros(shapes, self._kept), _zeros(shapes, self._kept)
        for old, new, each in zip(buffers.now, now, self._kept, strict=False):
            used = each.heads * buffers.length * each.size
            new[:used] = old[:used]
        buffers.now, buffers.next, buffers.capacity = now, later, capacity

    def resize(self, sequence: Held, length: int) -> None:
        self.reserve(sequence, length)
        buffers = self._buffers[sequence.id]
        if length == buffers.length:
            return
        stay = min(length, buffers.length)
        for old, new in zip(self._shaped(buffers.now, buffers.length), self._shaped(buffers.next, length), strict=True):
            new[:, :stay] = old[:, :stay]
        buffers.now, buffers.next, buffers.length = buffers.next, buffers.now, length

    def views(self, sequence: Held) -> list[State]:
        buffers = self._buffers[sequence.id]
        return list(self._shaped(buffers.now, buffers.length))

    def bind(self, session: Session, sequences: Sequence[Held], tokens: int) -> Binding:
        [sequence] = sequences
        buffers = self._buffers[sequence.id]
        binding = session.binding()
        past, present = self._shaped(buffers.now, buffers.length), self._shaped(buffers.next, buffers.length + tokens)
        for each, before, after in zip(self._kept, past, present, strict=True):
            binding.input(each.past, DATA_TYPES[each.dtype], before[None])
            binding.output(each.present, DATA_TYPES[each.dtype], after[None])
        return binding

    def commit(self, sequence: Held, tokens: int) -> None:
        buffers = self._buffers[sequence.id]
        buffers.now, buffers.next = buffers.next, buffers.now
        buffers.length += tokens

    def _open(self, sequence: Held) -> None:
        self._buffers[sequence.id] = _Buffers()

    def _shaped(self, flat: list[NDArray[np.generic]], length: int) -> Iterator[State]:
        for each, values in zip(self._kept, flat, strict=False):
            yield values[: each.heads * length * each.size].reshape(each.heads, length, each.size)


def _zeros(shapes: Sequence[tuple[int, ...]], kept: Sequence[Kept]) -> list[NDArray[np.generic]]:
    """One piece of memory for all tensors, which the system only gives when it is written."""
    dtypes = [np.dtype(NUMPY[each.dtype]) for each in kept]
    sizes = [round_up(math.prod(shape) * dtype.itemsize, ALIGNED) for shape, dtype in zip(shapes, dtypes, strict=True)]
    try:
        memory = pages.zeros(sum(sizes))
    except (MemoryError, ValueError, OverflowError) as error:
        what = f"no memory for a KV cache of {shapes[0]}: {error}; ask for a smaller ctx"
        raise NotEnoughMemory(what) from error
    starts = accumulate(sizes, initial=0)
    return [
        np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
        for shape, dtype, start in zip(shapes, dtypes, starts, strict=False)
    ]
