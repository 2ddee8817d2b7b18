"""Decoder: the passes of a graph that continues texts.

A pass is one or more runs of the session (`runs.py`). Lengths change when the whole pass is computed.

    input_ids (b, s)   attention_mask (b, longest)   position_ids (b, s)   past (b, heads, …, size)   keep (1,)
                                        │ session, bound to memory of ours
    logits (b, rows, n_vocab) float32 or float16                       present (b, heads, …, size)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows, Step
from edgellm.backends.onnx.graph import Roles
from edgellm.backends.onnx.pool import OnnxPool
from edgellm.backends.onnx.runs import Cutter, Run
from edgellm.backends.onnx.session import Session
from edgellm.backends.pool import Held
from edgellm.formats.onnx_graph import DATA_TYPES

FLOAT16 = DATA_TYPES["FLOAT16"]


class Decoder:
    """ours: attention is edgellm's own kernel."""

    def __init__(self, session: Session, roles: Roles, pool: OnnxPool, n_vocab: int, *, ours: bool) -> None:
        limits = pool.limits
        self._session, self._roles, self._pool, self._n_vocab = session, roles, pool, n_vocab
        self._cutter = Cutter(roles, limits.n_ctx, pool.together, pool.name, ours=ours)
        self._ones = np.ones(limits.n_ctx, np.int64)
        self._ids = np.empty(limits.micro_batch + 1, np.int64)  # and one that `shape` may add
        self._keep_rows = np.empty(1, np.int64)
        dtype = np.float16 if roles.types[roles.output] == FLOAT16 else np.float32
        self._logits: NDArray[np.generic] = np.empty(0, dtype)

    def forward(self, sequences: list[Held], steps: list[Step]) -> list[Rows | None]:
        """See `CheckedBackend._forward`."""
        runs = self._cutter.runs(sequences, steps)
        for run in runs:
            for sequence, tokens in zip(run.sequences, run.tokens, strict=True):
                self._pool.reserve(sequence, sequence.length + run.start + len(tokens))
        sizes = [len(run.sequences) * run.keep * self._n_vocab for run in runs]
        if sum(sizes) > self._logits.size:
            self._logits = np.empty(sum(sizes), self._logits.dtype)
        found: list[list[NDArray[np.generic]]] = [[] for _ in steps]  # of each step the rows of its runs
        with self._session.running():
            used = 0
            for run, size in zip(runs, sizes, strict=True):
                logits = self._logits[used : used + size].reshape(len(run.sequences), run.keep, self._n_vocab)
                used += size
                self._run(run, logits)
                for at, rows in zip(run.at, logits, strict=True):
                    found[at].append(rows[: run.keep - run.extra])
        for step, sequence in zip(steps, sequences, strict=True):
            self._pool.commit(sequence, len(step.tokens))
            sequence.length += len(step.tokens)
        return [_wanted(rows, step) for rows, step in zip(found, steps, strict=True)]

    def _run(self, run: Run, logits: NDArray[np.generic]) -> None:
        """Run the session: the cells and `logits` (sequences, rows, n_vocab) are written."""
        roles, count, tokens = self._roles, len(run.sequences), len(run.tokens[0])
        binding = self._pool.bind(self._session, run.sequences, tokens)
        lengths = np.array([sequence.length + run.start for sequence in run.sequences], np.int64)
        longest = int(lengths.max()) + tokens
        ids = self._ids[: count * tokens].reshape(count, tokens)
        ids[:] = run.tokens
        if count == 1:
            mask = self._ones[:longest].reshape(1, -1)
        else:
            mask = (np.arange(longest) < (lengths + tokens)[:, None]).astype(np.int64)
        self._keep_rows[0] = run.keep
        fed = [(roles.ids, ids), (roles.mask, mask), (roles.keep, self._keep_rows)]
        if roles.positions is not None:
            fed.append((roles.positions, lengths[:, None] + np.arange(tokens)))
        if roles.token_types is not None:
            fed.append((roles.token_types, np.zeros_like(ids)))
        for name, values in fed:
            if name is not None:
                binding.input(name, roles.types[name], roles.cast(name, values))
        binding.output(roles.output, roles.types[roles.output], logits)
        self._session.run_bound(binding, count * tokens)


def _wanted(rows: list[NDArray[np.generic]], step: Step) -> Rows | None:
    """The rows that a step asks for out of those (rows, n_vocab) that the graph gave in one or more runs."""
    if step.logits == "none":
        return None
    chosen = rows[-1][-1:] if step.logits == "last" else rows[0] if len(rows) == 1 else np.concatenate(rows)
    wanted: Rows = chosen.astype(np.float32, copy=False)
    wanted.flags.writeable = False
    return wanted
