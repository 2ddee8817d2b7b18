"""Where the KV state of sequences lies: Shared for GroupQueryAttention, Copied for graphs that join past and present.

Shared   one slab per tensor, (rows, heads, capacity, size), one row per sequence. A pass reads and writes it in place:
         a contiguous slice of rows is bound as past and as present. Rows and capacity grow in steps, by copying; rows
         are swapped where sequences that decode together do not lie side by side.
Copied   two flat buffers per tensor and sequence. Past is (1, heads, length, size) at the start of one, present
         (1, heads, length + new, size) at the start of the other; after the pass they change roles.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm import pages
from edgellm.backends.onnx.binding import Binding
from edgellm.backends.onnx.graph import Kept
from edgellm.errors import Busy, NotEnoughMemory
from edgellm.formats.onnx_graph import DATA_TYPES, NUMPY

FIRST_CAPACITY = 512  # tokens of a row; it doubles
FIRST_BUFFER = 64  # tokens of a copied sequence; it doubles
ALIGNED = 64  # bytes, what the start of a slab is a multiple of

State = NDArray[np.generic]  # (heads, tokens, size) of the graph's dtype


class Held(Protocol):
    """What the cells know of a sequence: where it lies, which they change, and how many tokens it has."""

    row: int
    length: int


class Cells(Protocol):
    """The state of all open sequences. together: the most sequences of one run."""

    together: int
    layout: bytes

    def open(self, sequence: Held) -> None:
        """Make room for a new sequence. Raises Busy, NotEnoughMemory."""
        ...

    def close(self, sequence: Held) -> None:
        """Take it back."""
        ...

    def reserve(self, sequence: Held, length: int) -> None:
        """Make sure that it can hold so many tokens. Raises Busy, NotEnoughMemory."""
        ...

    def resize(self, sequence: Held, length: int) -> None:
        """Give it so many tokens: the first stay, more are undefined. What `reserve` raises, then nothing changed."""
        ...

    def views(self, sequence: Held) -> list[State]:
        """Per tensor the state, at least as many tokens as it was given; valid until anything else is called here."""
        ...

    def bind(self, session: Any, sequences: Sequence[Held], tokens: int) -> Binding:
        """A binding with the past and present of these sequences, which `tokens` new ones each were reserved for."""
        ...

    def commit(self, sequence: Held, tokens: int) -> None:
        """A run that appended so many tokens was completed."""
        ...


def layout_of(kept: Sequence[Kept]) -> bytes:
    """8 bytes that tell caches of different shape or dtype apart."""
    text = ";".join(f"{each.dtype},{each.heads},{each.size}" for each in kept)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


class Shared:
    """See above. max_cells: tokens of all rows together. n_ctx: tokens of a row."""

    def __init__(self, kept: Sequence[Kept], together: int, n_ctx: int, max_cells: int) -> None:
        self.together = together
        self.layout = layout_of(kept)
        self._kept, self._n_ctx, self._max_cells = kept, n_ctx, max(max_cells, n_ctx)
        self._open: list[Held] = []
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._slabs: list[NDArray[np.generic]] = []
        self._rows = self._capacity = 0
        self._rebuild(1, min(FIRST_CAPACITY, n_ctx))

    def open(self, sequence: Held) -> None:
        if len(self._open) == self._rows:
            self._grow(self._rows + 1, max(held.length for held in self._open))
        taken = {held.row for held in self._open}
        sequence.row = next(row for row in range(self._rows) if row not in taken)
        self._open.append(sequence)

    def close(self, sequence: Held) -> None:
        self._open.remove(sequence)

    def reserve(self, sequence: Held, length: int) -> None:
        if length > self._capacity:
            self._grow(len(self._open), length)

    def resize(self, sequence: Held, length: int) -> None:
        self.reserve(sequence, length)

    def views(self, sequence: Held) -> list[State]:
        return [slab[sequence.row] for slab in self._slabs]

    def bind(self, session: Any, sequences: Sequence[Held], tokens: int) -> Binding:
        count = len(sequences)
        first = self._side_by_side(sequences)
        binding = self._bindings.get((first, count))
        if binding is None:
            binding = self._bindings[first, count] = Binding(session)
            for each, slab in zip(self._kept, self._slabs, strict=True):
                rows = slab[first : first + count]
                binding.input(each.past, DATA_TYPES[each.dtype], rows)
                binding.output(each.present, DATA_TYPES[each.dtype], rows)
        return binding

    def commit(self, sequence: Held, tokens: int) -> None:
        return  # written in place

    def _side_by_side(self, sequences: Sequence[Held]) -> int:
        """The first row of these sequences, in this order, after moving those that lie elsewhere."""
        count = len(sequences)
        first = sequences[0].row if sequences[0].row + count <= self._rows else self._rows - count
        by_row: dict[int, Held] = {held.row: held for held in self._open}
        for row, sequence in enumerate(sequences, first):
            if sequence.row != row:
                self._swap(sequence, row, by_row)
        return first

    def _swap(self, sequence: Held, row: int, by_row: dict[int, Held]) -> None:
        old, other = sequence.row, by_row.pop(row, None)
        tokens = max(sequence.length, other.length if other else 0)
        for slab in self._slabs:
            moved = slab[old, :, :tokens].copy()
            if other:
                slab[old, :, :tokens] = slab[row, :, :tokens]
            slab[row, :, :tokens] = moved
        sequence.row, by_row[row] = row, sequence
        by_row.pop(old)
        if other:
            other.row, by_row[old] = old, other

    def _grow(self, rows: int, capacity: int) -> None:
        """Room for at least so many rows of at least so many tokens, and for more where that fits. Raises Busy."""
        wanted = self._rows if rows <= self._rows else min(2 * self._rows, self.together)
        tokens = self._capacity
        if capacity > tokens:
            tokens = min(max(2 * tokens, _round_up(capacity, FIRST_CAPACITY)), self._n_ctx)
        if wanted * tokens > self._max_cells:  # rows that nobody uses go first, then tokens
            wanted, tokens = rows, max(capacity, min(tokens, self._max_cells // rows))
        if wanted * tokens > self._max_cells:
            raise Busy(f"the KV cache is full ({self._rows} rows of {self._capacity} tokens)")
        self._rebuild(wanted, tokens)

    def _rebuild(self, rows: int, capacity: int) -> None:
        """Slabs of another size; what is in use moves to the first rows. Raises NotEnoughMemory, nothing changed."""
        order = sorted(self._open, key=lambda held: held.row)
        slabs = []
        shapes = [(rows, each.heads, capacity, each.size) for each in self._kept]
        for at, slab in enumerate(_slabs(shapes, self._kept)):
            for row, held in enumerate(order):
                slab[row, :, : held.length] = self._slabs[at][held.row, :, : held.length]
            slabs.append(slab)
        self._bindings.clear()
        self._slabs, self._rows, self._capacity = slabs, rows, capacity
        for row, held in enumerate(order):
            held.row = row


class _Buffers:
    """The two flat buffers of every tensor of a sequence. length: tokens that the layout of the current one has."""

    def __init__(self) -> None:
        self.now: list[NDArray[np.generic]] = []
        self.next: list[NDArray[np.generic]] = []
        self.capacity = self.length = 0


class Copied:
    """See above. max_cells: tokens of all sequences together. n_ctx: tokens of a sequence."""

    together = 1

    def __init__(self, kept: Sequence[Kept], n_ctx: int, max_cells: int) -> None:
        self.layout = layout_of(kept)
        self._kept, self._n_ctx, self._max_cells = kept, n_ctx, max(max_cells, n_ctx)
        self._buffers: dict[int, _Buffers] = {}

    def open(self, sequence: Held) -> None:
        sequence.row = next(row for row in range(len(self._buffers) + 1) if row not in self._buffers)
        self._buffers[sequence.row] = _Buffers()

    def close(self, sequence: Held) -> None:
        del self._buffers[sequence.row]

    def reserve(self, sequence: Held, length: int) -> None:
        buffers = self._buffers[sequence.row]
        if length <= buffers.capacity:
            return
        others = sum(each.capacity for each in self._buffers.values()) - buffers.capacity
        capacity = min(max(2 * buffers.capacity, _round_up(length, FIRST_BUFFER)), self._n_ctx)
        capacity = max(length, min(capacity, self._max_cells - others))
        if others + capacity > self._max_cells:
            raise Busy(f"the KV cache is full ({others + buffers.capacity} tokens)")
        now, later = (
            [_zeros((each.heads * capacity * each.size,), NUMPY[each.dtype]) for each in self._kept] for _ in range(2)
        )
        for old, new, each in zip(buffers.now, now, self._kept, strict=False):
            used = each.heads * buffers.length * each.size
            new[:used] = old[:used]
        buffers.now, buffers.next, buffers.capacity = now, later, capacity

    def resize(self, sequence: Held, length: int) -> None:
        self.reserve(sequence, length)
        buffers = self._buffers[sequence.row]
        if length == buffers.length:
            return
        stay = min(length, buffers.length)
        for old, new in zip(self._shaped(buffers.now, buffers.length), self._shaped(buffers.next, length), strict=True):
            new[:, :stay] = old[:, :stay]
        buffers.now, buffers.next, buffers.length = buffers.next, buffers.now, length

    def views(self, sequence: Held) -> list[State]:
        buffers = self._buffers[sequence.row]
        return list(self._shaped(buffers.now, buffers.length))

    def bind(self, session: Any, sequences: Sequence[Held], tokens: int) -> Binding:
        [sequence] = sequences
        buffers = self._buffers[sequence.row]
        binding = Binding(session)
        past, present = self._shaped(buffers.now, buffers.length), self._shaped(buffers.next, buffers.length + tokens)
        for each, before, after in zip(self._kept, past, present, strict=True):
            binding.input(each.past, DATA_TYPES[each.dtype], before[None])
            binding.output(each.present, DATA_TYPES[each.dtype], after[None])
        return binding

    def commit(self, sequence: Held, tokens: int) -> None:
        buffers = self._buffers[sequence.row]
        buffers.now, buffers.next = buffers.next, buffers.now
        buffers.length += tokens

    def _shaped(self, flat: list[NDArray[np.generic]], length: int) -> Iterator[State]:
        for each, values in zip(self._kept, flat, strict=False):
            yield values[: each.heads * length * each.size].reshape(each.heads, length, each.size)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _zeros(shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    """Memory that the system only gives when it is written."""
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise _no_memory(shape, error) from error


def _slabs(shapes: Sequence[tuple[int, ...]], kept: Sequence[Kept]) -> list[NDArray[np.generic]]:
    """One piece of memory for the slabs of all tensors."""
    dtypes = [np.dtype(NUMPY[each.dtype]) for each in kept]
    sizes = [_round_up(math.prod(shape) * dtype.itemsize, ALIGNED) for shape, dtype in zip(shapes, dtypes, strict=True)]
    try:
        memory = pages.zeros(sum(sizes))
    except (MemoryError, ValueError, OverflowError) as error:
        raise _no_memory(shapes[0], error) from error
    starts = accumulate(sizes, initial=0)
    return [
        np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
        for shape, dtype, start in zip(shapes, dtypes, starts, strict=False)
    ]


def _no_memory(shape: tuple[int, ...], error: Exception) -> NotEnoughMemory:
    return NotEnoughMemory(f"no memory for a KV cache of {shape}: {error}; ask for a smaller ctx")
