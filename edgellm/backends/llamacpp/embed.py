"""Embedder: vectors of texts, from a context of its own.

    texts ── packed into passes ──▶ one row per token (rows, width) ── pooled per text ──▶ scaled to length 1

The file says how to pool (`pooling_type`); the rows are pooled here, because llama.cpp pools only what fits one pass.
Whether the model's own pipeline scales its vectors is said by no key of a GGUF file; what is compared is their angle,
so every vector is scaled to length 1.

An encoder, whose tokens attend to those behind them, reads a text in one pass, next to others. A causal model reads a
long text in passes of what `max_rows` allows: llama.cpp computes logits for every row of such a context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm import _native
from edgellm.backends.base import Rows
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.batch import Batch
from edgellm.backends.llamacpp.context import context_params, new_context
from edgellm.backends.llamacpp.loading import Plan
from edgellm.backends.llamacpp.reason import reason
from edgellm.backends.pool import round_up
from edgellm.errors import BackendFailed, Interrupted

ENCODER_TEXTS, CAUSAL_TEXTS = 64, 8  # texts of one pass; a causal model may hold a state for each
DECODE_ABORTED = 2  # return value of llama_decode, llama.h

Vector = NDArray[np.float64]  # (width,)


class Embedder:
    """Its context is made by the first call, for the longest text so far, and again for a longer one.

    limit: tokens of a pass, where a text is no longer. causal: it can continue a text.
    """

    def __init__(self, model: int, plan: Plan, abort: _native.AbortFlag, *, limit: int, causal: bool) -> None:
        self._lib: Any = library.load_library()
        self._model, self._plan, self._abort = model, plan, abort
        self._limit, self._causal = limit, causal
        self._pool = POOLS.get(plan.pooling or "")  # None: it is asked for no vectors
        self._width: int = self._lib.llama_model_n_embd_out(model)
        self._context: int | None = None
        self._cells = 0
        self._batch: Batch | None = None
        self._pooling, self._given = self._lib.LLAMA_POOLING_TYPE_NONE, 0  # of the context; see `Batch.width`

    def embed(self, texts: list[list[int]]) -> Rows:
        """(n, width) float32, each row of length 1.

        Raises Interrupted, NotEnoughMemory, BackendFailed.
        """
        vectors = np.empty((len(texts), self._width), np.float32)
        if texts:
            self._make_room(max(map(len, texts)))
        at = 0
        for group in self._groups(texts):
            for vector in self._vectors(group):
                length = float(np.linalg.norm(vector))
                if not (np.isfinite(length) and length > 0):
                    raise BackendFailed(f"{self._plan.info.name} gave no vector for a text: its length is {length}")
                vectors[at] = vector / length
                at += 1
        return vectors

    def close(self) -> None:
        """Free what it holds."""
        self._free_context()

    def _free_context(self) -> None:
        if self._context is not None:
            self._lib.llama_free(self._context)
            self._context = None
        if self._batch is not None:
            self._batch.free()
            self._batch = None

    def _groups(self, texts: list[list[int]]) -> Iterator[list[list[int]]]:
        """Texts that share a pass, in order; one that is longer than a pass is alone."""
        most = CAUSAL_TEXTS if self._causal else ENCODER_TEXTS
        group: list[list[int]] = []
        for text in texts:
            if group and (len(group) == most or sum(map(len, group)) + len(text) > self._limit):
                yield group
                group = []
            group.append(text)
        if group:
            yield group

    def _vectors(self, group: list[list[int]]) -> Iterator[Vector]:
        """The pooled rows of every text of a group."""
        assert self._pool is not None  # as `info` says
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        if len(group) == 1 and self._causal:
            [text] = group
            starts = range(0, len(text), self._limit)
            yield self._pool(self._pass([text[start : start + self._limit]], start) for start in starts)
            return
        rows, at = self._pass(group), 0
        for text in group:
            yield self._pool([rows[at : at + len(text)]])
            at += len(text)

    def _pass(self, texts: list[list[int]], start: int = 0) -> Rows:
        """The rows of all tokens, (rows, width), valid until the next pass. start: the first token's position."""
        assert self._batch is not None  # made with the context
        count = self._batch.fill_texts(texts, start)
        self._decode(count)
        address = ctypes.cast(self._lib.llama_get_embeddings(self._context), ctypes.c_void_p).value
        if not address:
            raise BackendFailed(f"llama.cpp gave no rows for {count} tokens")
        return np.ctypeslib.as_array((ctypes.c_float * (count * self._width)).from_address(address)).reshape(count, -1)

    def _decode(self, count: int) -> None:
        """A pass over the `count` tokens that were written into the batch. Raises Interrupted, BackendFailed."""
        assert self._batch is not None
        with library.capture_log() as lines:
            code = self._lib.llama_decode(self._context, self._batch.struct)
        if code == DECODE_ABORTED:
            self._abort.clear()
            raise Interrupted("the embedding was interrupted")
        if code:
            why = reason(lines) or f"llama_decode returned {code}"
            raise BackendFailed(f"llama.cpp failed to embed {count} tokens: {why}")

    def _make_room(self, longest: int) -> None:
        """A context and a batch for a text of so many tokens."""
        cells = round_up(max(longest, self._limit), 256)
        if cells <= self._cells:
            return
        self._free_context()
        self._cells = 0
        tokens = self._limit if self._causal else cells
        sequences = CAUSAL_TEXTS if self._causal else ENCODER_TEXTS
        p = context_params(self._plan, self._abort, cells=cells, tokens=tokens, sequences=sequences)
        p.embeddings = True
        p.pooling_type = self._pooling
        p.n_outputs_max = tokens
        self._context = new_context(self._model, p, self._plan.info.path)
        self._batch = Batch(self._lib, tokens, self._given)
        self._cells = cells


def _mean(passes: Iterable[Rows]) -> Vector:
    total, count = np.zeros(()), 0
    for rows in passes:
        total, count = total + rows.sum(axis=0, dtype=np.float64), count + len(rows)
    return total / count


def _first(passes: Iterable[Rows]) -> Vector:
    row: Vector = next(iter(passes))[0].astype(np.float64)
    return row


def _last(passes: Iterable[Rows]) -> Vector:
    row: Vector = [rows[-1].astype(np.float64) for rows in passes][-1]
    return row


POOLS: dict[str, Callable[[Iterable[Rows]], Vector]] = {"mean": _mean, "cls": _first, "last": _last}
