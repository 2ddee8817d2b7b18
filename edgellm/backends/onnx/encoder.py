"""Encoder: vectors of texts, or scores of pairs, from a graph that continues none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows
from edgellm.backends.onnx.graph import Roles
from edgellm.backends.onnx.pooling import Pooling
from edgellm.backends.onnx.session import Session


class Encoder:
    """limit: tokens of a run, with their padding. alone: a text's vector would depend on the texts beside it."""

    def __init__(self, session: Session, roles: Roles, pooling: Pooling, *, limit: int, alone: bool) -> None:
        self._session, self._roles, self._pooling = session, roles, pooling
        self._limit, self._alone = limit, alone

    def embed(self, batches: list[list[int]], width: int, firsts: list[int] | None = None) -> Rows:
        """(n, width) float32. firsts: how many tokens of each text have the type 0, and those behind 1; None: all.

        Raises Interrupted, BackendFailed.
        """
        vectors: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(batches)
        with self._session.running():
            for group in self._groups(batches):
                lengths = np.array([len(batches[at]) for at in group], np.int64)
                mask = np.arange(lengths.max()) < lengths[:, None]
                ids = np.zeros(mask.shape, np.int64)
                ids[mask] = np.concatenate([batches[at] for at in group])
                types = np.zeros_like(ids)
                if firsts is not None:
                    types[:] = mask & (np.arange(mask.shape[1]) >= np.array([[firsts[at]] for at in group]))
                hidden = self._hidden(ids, mask, types).astype(np.float32, copy=False)
                for at, vector in zip(group, self._pooling(hidden, lengths), strict=True):
                    vectors[at] = vector
        return np.stack(vectors) if vectors else np.zeros((0, width), np.float32)

    def _hidden(self, ids: NDArray[np.int64], mask: NDArray[np.bool_], types: NDArray[np.int64]) -> NDArray[np.generic]:
        """The graph's output for token ids, their mask and their types, all (n, tokens)."""
        roles = self._roles
        values = {
            roles.ids: ids,
            roles.mask: mask,
            roles.token_types: types,
            roles.positions: np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
        }
        feed = {name: roles.cast(name, value) for name, value in values.items() if name is not None}
        found: NDArray[np.generic] = self._session.run([roles.output], feed, ids.size)[0]
        return found

    def _groups(self, batches: list[list[int]]) -> Iterator[list[int]]:
        """Indices of texts that are embedded in one run: of about the same length, within the limit."""
        group: list[int] = []
        for at in sorted(range(len(batches)), key=lambda at: len(batches[at])):
            full = (len(group) + 1) * len(batches[at]) > self._limit
            if group and (full or self._alone):
                yield group
                group = []
            group.append(at)
        if group:
            yield group
