"""Embedding: vectors of texts, computed between the passes of other requests."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from edgellm.backends.base import Rows
from edgellm.engine.engine import Engine
from edgellm.engine.progress import OnProgress, Progress
from edgellm.errors import ContextOverflow, Interrupted, InvalidParameter

AT_ONCE = 64  # texts that are embedded before other requests have their turn


def check_batches(batches: list[list[int]], n_ctx: int, name: str) -> None:
    """Raise InvalidParameter for a text without tokens, ContextOverflow for one that the model `name` does not hold."""
    for at, tokens in enumerate(batches):
        if not tokens:
            raise InvalidParameter(f"text {at} has no tokens, and so no vector; leave it out")
        if len(tokens) > n_ctx:
            raise ContextOverflow(
                f"text {at} has {len(tokens)} tokens and {name} takes at most {n_ctx}; split it",
                needed=len(tokens),
                n_ctx=n_ctx,
            )


def vectors(engine: Engine, batches: list[list[int]], progress: OnProgress | None) -> Rows:
    """Vectors of texts, (n, n_embd) float32. `progress` is called between some of them and the next ones."""
    groups = [batches[at : at + AT_ONCE] for at in range(0, len(batches), AT_ONCE)]
    found, done = [], 0
    tell = Progress(progress if groups else None, sum(map(len, batches)))
    tell(done)
    for group in groups or [[]]:
        found.append(_embed(engine, group))
        done += sum(map(len, group))
        tell(done)
    return np.concatenate(found)


def _embed(engine: Engine, batches: list[list[int]]) -> Rows:
    """Vectors of some texts. An interruption meant for others only repeats it; a closed engine ends it."""
    while True:
        with suppress(Interrupted):
            return engine.call(lambda backend: backend.embed(batches))
