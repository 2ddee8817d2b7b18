"""Batch: the tokens of one pass, as llama.cpp reads them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from edgellm.backends.base import Rows, Step
from edgellm.backends.pool import Held


class Batch:
    """A llama_batch with numpy views over its arrays, filled anew for every pass. width: of the vectors that stand in
    place of tokens, 0 for tokens."""

    def __init__(self, lib: Any, size: int, width: int = 0) -> None:
        self._lib = lib
        self.struct = lib.llama_batch_init(size, width, 1)
        view = np.ctypeslib.as_array
        if width:
            self._vectors = view(self.struct.embd, (size, width))  # (size, width) float32
        else:
            self._token = view(self.struct.token, (size,))  # (size,) int32
        self._pos = view(self.struct.pos, (size,))  # (size,) int32
        self._wanted = view(self.struct.logits, (size,))  # (size,) int8
        view(self.struct.n_seq_id, (size,))[:] = 1
        # llama.cpp reads seq_id through one pointer per token; we point them all into one flat array.
        self._seq = np.zeros(size, np.int32)
        pointers = view(ctypes.cast(self.struct.seq_id, ctypes.POINTER(ctypes.c_size_t)), (size,))
        self._own_pointers = pointers.copy()
        self._pointers = pointers
        pointers[:] = self._seq.ctypes.data + 4 * np.arange(size)

    def fill(self, sequences: list[Held], steps: list[Step]) -> list[tuple[int, int]]:
        """Write the tokens of all steps, which fit; per step the batch index of its first wanted row and how many."""
        outputs: list[tuple[int, int]] = []
        at = 0
        for sequence, step in zip(sequences, steps, strict=True):
            start, n = sequence.length, len(step.tokens)
            stop = at + n
            if n == 1:
                self._token[at] = step.tokens[0]
                self._pos[at] = start
            else:
                self._token[at:stop] = step.tokens
                self._pos[at:stop] = np.arange(start, start + n, dtype=np.int32)
            self._seq[at:stop] = sequence.id
            self._wanted[at:stop] = step.logits == "all"
            if step.logits == "last":
                self._wanted[stop - 1] = 1
                outputs.append((stop - 1, 1))
            else:
                outputs.append((at, n if step.logits == "all" else 0))
            at = stop
        self.struct.n_tokens = at
        return outputs

    def fill_texts(self, texts: list[list[int]], start: int) -> int:
        """Write texts, each under its index as sequence id, from position `start` on; how many tokens they have."""
        lengths = [len(text) for text in texts]
        self._token[: sum(lengths)] = [token for text in texts for token in text]
        return self._place(lengths, start)

    def fill_vectors(self, vectors: Rows, lengths: list[int]) -> int:
        """The same for vectors in place of tokens, (tokens, width) float32, of texts of these lengths."""
        self._vectors[: sum(lengths)] = vectors
        return self._place(lengths, 0)

    def _place(self, lengths: list[int], start: int) -> int:
        """Where the tokens of texts are, and that all of them are wanted."""
        n = sum(lengths)
        self._pos[:n] = np.concatenate([np.arange(start, start + length) for length in lengths])
        self._seq[:n] = np.repeat(np.arange(len(lengths)), lengths)
        self._wanted[:n] = 1
        self.struct.n_tokens = n
        return n

    def free(self) -> None:
        self._pointers[:] = self._own_pointers
        self._lib.llama_batch_free(self.struct)
