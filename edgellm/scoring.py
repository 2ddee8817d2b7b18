"""Scoring: the logits after every token of a text, and how likely each token was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Backend, Rows, Step
from edgellm.engine.engine import Engine
from edgellm.engine.progress import OnProgress, Progress


def scores(slices: Generator[Rows], tokens: list[int], progress: OnProgress | None) -> NDArray[np.float64]:
    """Log-probability of every token after the first, (n_tokens - 1,) float64, from the logits before them."""
    found: list[NDArray[np.float64]] = []
    following, done = iter(tokens[1:]), 0
    with closing(slices):
        tell = Progress(progress, len(tokens) - 1)
        tell(0)
        for rows in slices:
            logits = rows.astype(np.float64)  # (n, n_vocab)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = logits[np.arange(len(rows)), list(islice(following, len(rows)))]
            found.append(chosen - np.log(np.exp(logits).sum(axis=1)))
            done += len(rows)
            tell(done)
    return np.concatenate(found)


def logits(engine: Engine, tokens: list[int], start: int, owner: object) -> Generator[Rows]:
    """Logits after the tokens from position `start` on. One pass per slice, between the passes of other requests.
    Prefill passes keep the pass shape.

    owner: what must not be forgotten meanwhile: the Model, which is closed when nobody holds it.
    """
    sequence = engine.call(lambda backend: backend.new_sequence(len(tokens)), needs_room=True)
    shape = engine.backend.pass_shape
    first = shape.reusable(start, len(tokens))  # where rows are asked for
    if first < shape.shortest:
        first = 0

    def forward(backend: Backend) -> Rows | None:
        at = sequence.length
        if at < first:
            size = shape.prefill_size(first - at, backend.micro_batch)
            engine.forward([Step(sequence, tokens[at : at + size], "none")])
            return None
        most = min(backend.micro_batch, backend.max_rows // shape.align * shape.align)
        size = shape.prefill_size(len(tokens) - at, most)
        rows = engine.forward([Step(sequence, tokens[at : at + size], "all")])[0]
        assert rows is not None  # "all" was asked for
        wanted: Rows = rows[max(0, start - at) :].copy()
        return wanted

    try:
        while sequence.length < len(tokens):
            rows = engine.call(forward, needs_room=True)
            if rows is not None and len(rows):
                yield rows
    finally:
        engine.post(lambda backend: sequence.close())
