"""Embedding: vectors of texts, and scores of texts beside a query, computed between the passes of other requests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Backend, Row, Rows
from edgellm.engine.engine import Engine
from edgellm.engine.progress import OnProgress, Progress
from edgellm.errors import ContextOverflow, Interrupted, InvalidParameter

AT_ONCE = 64  # texts that are computed before other requests have their turn


def check_batches(batches: list[list[int]], n_ctx: int, name: str, *, beside: str = "") -> None:
    """Raise InvalidParameter for a text without tokens, ContextOverflow for one that the model `name` does not hold.
    beside: what counts with each."""
    for at, tokens in enumerate(batches):
        if not tokens:
            raise InvalidParameter(f"text {at} has no tokens, and so no vector; leave it out")
        if len(tokens) > n_ctx:
            raise ContextOverflow(
                f"text {at} has {len(tokens)} tokens{beside} and {name} takes at most {n_ctx}; split it",
                needed=len(tokens),
                n_ctx=n_ctx,
            )


def vectors(engine: Engine, batches: list[list[int]], progress: OnProgress | None) -> Rows:
    """Vectors of texts, (n, n_embd) float32. `progress` is called between some of them and the next ones."""
    return _computed(engine, batches, progress, lambda part, backend: backend.embed(batches[part]))


def scores(engine: Engine, pairs: list[tuple[list[int], int]], progress: OnProgress | None) -> Row:
    """Scores of pairs as `Tokenizer.joined` gives them, (n,) float32; `progress` is as that of `vectors`."""
    batches, firsts = [tokens for tokens, _ in pairs], [first for _, first in pairs]
    return _computed(engine, batches, progress, lambda part, backend: backend.rank(batches[part], firsts[part]))


def _computed(
    engine: Engine,
    batches: list[list[int]],
    progress: OnProgress | None,
    compute: Callable[[slice, Backend], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """What `compute` makes of all texts, some at a time; once also of none."""
    found, done = [], 0
    tell = Progress(progress if batches else None, sum(map(len, batches)))
    tell(done)
    for at in range(0, max(len(batches), 1), AT_ONCE):
        found.append(_called(engine, partial(compute, slice(at, at + AT_ONCE))))
        done += sum(map(len, batches[at : at + AT_ONCE]))
        tell(done)
    return np.concatenate(found)


def _called(engine: Engine, compute: Callable[[Backend], NDArray[np.float32]]) -> NDArray[np.float32]:
    """What is computed of some texts. An interruption meant for others only repeats it; a closed engine ends it."""
    while True:
        with suppress(Interrupted):
            return engine.call(compute)
