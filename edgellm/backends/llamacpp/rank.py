"""Ranker: scores of pairs of texts, by llama.cpp's pooling of the type "rank": the first token's row through the
classifier.

llama.cpp gives every token the type 0. Where a model tells the second text by type 1, a pass gets vectors in place of
tokens: their rows of the embedding, and for the second text the difference of the two types.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm import _native
from edgellm.backends.base import Row, Rows
from edgellm.backends.llamacpp.embed import Embedder
from edgellm.backends.llamacpp.ggml import Ggml
from edgellm.backends.llamacpp.loading import Plan
from edgellm.errors import BackendFailed, Unsupported
from edgellm.formats.gguf import GGUFFile

EMBEDDING, TYPES = "token_embd.weight", "token_types.weight"


class Ranker(Embedder):
    """limit: tokens of a pass. The file stays open, for the rows of its embedding."""

    def __init__(self, model: int, plan: Plan, abort: _native.AbortFlag, *, limit: int) -> None:
        super().__init__(model, plan, abort, limit=limit, causal=False)
        self._pooling = self._lib.LLAMA_POOLING_TYPE_RANK
        self._file = GGUFFile.open(plan.path)
        self._apart: Row | None = None  # what the second type has over the first one
        types = self._file.tensors.get(TYPES)
        if types is not None and types.shape[0] > 1:
            first, second = self._rows(TYPES, np.arange(2))
            self._apart, self._given = second - first, types.shape[1]

    def rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        """See `edgellm.backends.base.Backend`. Raises Interrupted, NotEnoughMemory, BackendFailed, Unsupported."""
        scores = np.empty(len(batches), np.float32)
        if batches:
            self._make_room(max(map(len, batches)))
        at = 0
        for group in self._groups(batches):
            assert self._batch is not None  # made with the context
            if self._apart is None:
                count = self._batch.fill_texts(group, 0)
            else:
                vectors = [self._vectors_of(*pair) for pair in zip(group, firsts[at : at + len(group)], strict=True)]
                count = self._batch.fill_vectors(np.concatenate(vectors), [len(text) for text in group])
            self._decode(count)
            for sequence in range(len(group)):
                found = self._lib.llama_get_embeddings_seq(self._context, sequence)
                if not found or not np.isfinite(found[0]):
                    raise BackendFailed(f"{self._plan.info.name} gave no score for a text")
                scores[at] = found[0]
                at += 1
        return scores

    def close(self) -> None:
        super().close()
        self._file.close()

    def _vectors_of(self, tokens: list[int], first: int) -> Rows:
        """What llama.cpp is given for a pair, of which the first so many tokens are of the first type."""
        vectors = self._rows(EMBEDDING, np.array(tokens))
        vectors[first:] += 0 if self._apart is None else self._apart
        return vectors

    def _rows(self, name: str, which: NDArray[np.int64]) -> Rows:
        """Rows of a matrix in the file as numbers: (n, columns) float32. Raises Unsupported."""
        info = self._file.tensors[name]
        stored = np.ascontiguousarray(self._file.data(name).reshape(info.shape[0], -1)[which])
        try:
            rows: Rows = Ggml(self._lib).dequantized(info.type.name, stored, info.shape[1])
        except AttributeError:
            raise Unsupported(f"{self._plan.path}: {name} is {info.type.name}, of which ggml reads no rows") from None
        return rows
