"""OnnxBackend: one ONNX graph in ONNX Runtime.

A pass (`forward`) is one or more runs of the session: sequences that each get one token share a run where the graph
takes them side by side, every prompt is a run of its own, or several (`shape`). Lengths change when the whole pass is
computed.

    input_ids (b, s)   attention_mask (b, longest)   position_ids (b, s)   past (b, heads, …, size)   keep (1,)
                                        │ session, bound to memory of ours
    logits (b, rows, n_vocab) float32 or float16                       present (b, heads, …, size)
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm import machine
from edgellm.backends.base import Backend, Rows, SharedTokenizer, Step
from edgellm.backends.onnx import kernels, library
from edgellm.backends.onnx.cells import Cells, Copied, Shared
from edgellm.backends.onnx.loading import Plan
from edgellm.backends.onnx.sequence import OnnxSequence
from edgellm.backends.onnx.shape import PASS_SHAPE, cut, l2_cache
from edgellm.errors import (
    BackendFailed,
    Busy,
    Closed,
    ContextOverflow,
    Interrupted,
    InvalidParameter,
    NotEnoughMemory,
    Unsupported,
)
from edgellm.formats.onnx_graph import DATA_TYPES

log = logging.getLogger("edgellm.onnx")

MAX_SEQUENCES = 8
MAX_ROW_BYTES = 64 << 20  # logits rows of one pass that are asked for
MAX_UNASKED_BYTES = 256 << 20  # logits rows of one pass where the graph gives all, asked for or not
INT32, FLOAT16 = DATA_TYPES["INT32"], DATA_TYPES["FLOAT16"]


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: as many tokens of each of some steps. `at` are their places among the steps of the pass."""

    at: list[int]
    sequences: list[OnnxSequence]
    tokens: list[list[int]]
    start: int  # tokens of the same step that an earlier run computes
    extra: int  # tokens at the end whose rows nobody wants
    keep: int  # rows of logits that the graph gives per sequence


class OnnxBackend(Backend):
    """See `edgellm.backends.base.Backend`. Made by `edgellm.backends.onnx.open_onnx`."""

    name = "onnx"
    pass_shape = PASS_SHAPE

    def __init__(self, plan: Plan, session: Any) -> None:
        self._session = session
        self._plan, self._roles = plan, plan.roles
        self.info = plan.info
        self.tokenizer = SharedTokenizer(plan.tokenizer)
        self.threads = plan.threads
        self.n_ctx = plan.n_ctx
        self.max_sequences = MAX_SEQUENCES
        self.provider = session.get_providers()[0]
        row = 4 * self.info.n_vocab
        self.micro_batch = min(plan.params.micro_batch, -(-plan.n_ctx // 4) * 4)
        if self._roles.rows == "all":
            self.micro_batch = max(16, min(self.micro_batch, MAX_UNASKED_BYTES // row // 4 * 4))
        self.max_rows = max(8, min(self.micro_batch, MAX_ROW_BYTES // row))
        self.rewritten = plan.rewritten  # without operators, or None: ONNX Runtime's kernels compute all
        self.state_key = self._state_key()
        if self._roles.shared:
            self.cells: Cells = Shared(self._roles.kept, MAX_SEQUENCES, plan.n_ctx, plan.max_cells)
        else:
            self.cells = Copied(self._roles.kept, plan.n_ctx, plan.max_cells)
        self._sequences: set[OnnxSequence] = set()
        # Attention of ours needs no cuts: it takes any run alike.
        ours = plan.rewritten is not None and kernels.ATTENTION in plan.rewritten.operators
        self._head_sizes, self._l2 = set() if ours else {each.size for each in self._roles.kept}, l2_cache()
        self._ones = np.ones(plan.n_ctx, np.int64)
        self._ids = np.empty(self.micro_batch + 1, np.int64)  # and one that `shape` may add
        self._keep_rows = np.empty(1, np.int64)
        self._logits: NDArray[np.generic] = np.empty(0, self._dtype(self._roles.output))
        self._lock = threading.Lock()  # guards the two below
        self._interrupted = False
        self._running: Any = None  # RunOptions of the pass in flight
        self._options: Any = None  # those of the last one, if it was not stopped

    def _state_key(self) -> str:
        build = f"{library.distribution()[1]} {library.load_library().get_build_info()}"
        features = hashlib.blake2b(" ".join(sorted(machine.cpu_features())).encode(), digest_size=8).hexdigest()
        layout = "shared" if self._roles.shared else "copied"
        ours = "none"
        if self.rewritten is not None and self.rewritten.operators:
            ours = " ".join((kernels.names(), *sorted(self.rewritten.operators)))
        return "|".join(("onnxruntime", build, self.provider, self._roles.kv_type or "none", layout, features, ours))

    # Sequences

    def new_sequence(self, expected: int = 0) -> OnnxSequence:
        self._check_open()
        if not self._roles.decodes:
            raise Unsupported(f"{self.info.name} gives embeddings and no text: use embed()")
        if len(self._sequences) >= self.max_sequences:
            raise Busy(f"{self.max_sequences} sequences are open in {self.info.name}; close one first")
        sequence = OnnxSequence(self)
        self.cells.open(sequence)
        self._sequences.add(sequence)
        with suppress(Busy, NotEnoughMemory):  # it is only expected
            self.cells.reserve(sequence, min(expected, self.n_ctx))
        return sequence

    def release(self, sequence: OnnxSequence) -> None:
        """Take a sequence's cells back."""
        if sequence in self._sequences:
            self._sequences.remove(sequence)
            self.cells.close(sequence)

    # Passes

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        session = self._check_open()
        sequences = self._check(steps)
        runs = self._runs(sequences, steps)
        for run in runs:
            for sequence, tokens in zip(run.sequences, run.tokens, strict=True):
                self.cells.reserve(sequence, sequence.length + run.start + len(tokens))
        sizes = [len(run.sequences) * run.keep * self.info.n_vocab for run in runs]
        if sum(sizes) > self._logits.size:
            self._logits = np.empty(sum(sizes), self._logits.dtype)
        found: list[list[NDArray[np.generic]]] = [[] for _ in steps]  # of each step the rows of its runs
        with self._pass() as options:
            used = 0
            for run, size in zip(runs, sizes, strict=True):
                logits = self._logits[used : used + size].reshape(len(run.sequences), run.keep, self.info.n_vocab)
                used += size
                self._run(session, options, run, logits)
                for at, rows in zip(run.at, logits, strict=True):
                    found[at].append(rows[: run.keep - run.extra])
        for step, sequence in zip(steps, sequences, strict=True):
            self.cells.commit(sequence, len(step.tokens))
            sequence.length += len(step.tokens)
        return [_wanted(rows, step) for rows, step in zip(found, steps, strict=True)]

    def embed(self, batches: list[list[int]]) -> Rows:
        session, pooling = self._check_open(), self._plan.pooling
        if pooling is None:
            raise Unsupported(f"{self.info.name} gives no embeddings; load an embedding model")
        for tokens in batches:
            self._check_tokens(tokens)
            if len(tokens) > self.n_ctx:
                message = f"a text of {len(tokens)} tokens does not fit the {self.n_ctx} that {self.info.name} reads"
                raise ContextOverflow(message, needed=len(tokens), n_ctx=self.n_ctx)
        vectors: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(batches)
        with self._pass() as options:
            for group in self._groups(batches):
                lengths = np.array([len(batches[at]) for at in group], np.int64)
                mask = np.arange(lengths.max()) < lengths[:, None]
                ids = np.zeros(mask.shape, np.int64)
                ids[mask] = np.concatenate([batches[at] for at in group])
                found = self._hidden(session, options, ids, mask)
                for at, vector in zip(group, pooling(found.astype(np.float32, copy=False), lengths), strict=True):
                    vectors[at] = vector
        return np.stack(vectors) if vectors else np.zeros((0, self.info.n_embd), np.float32)

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._running is not None:
                self._running.terminate = True

    def close(self) -> None:
        for sequence in list(self._sequences):
            sequence.close()
        self.tokenizer.close()
        if self._session is not None:
            self._session = None
            del self.cells, self._logits  # with them go the bindings, which hold the session
            if self.rewritten is not None:
                self.rewritten.close()

    # One run

    def _run(self, session: Any, options: Any, run: _Run, logits: NDArray[np.generic]) -> None:
        """Run the session: the cells and `logits` (sequences, rows, n_vocab) are written."""
        roles, count, tokens = self._roles, len(run.sequences), len(run.tokens[0])
        binding = self.cells.bind(session, run.sequences, tokens)
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
                kind = roles.types[name]
                binding.input(name, kind, np.ascontiguousarray(values, np.int32 if kind == INT32 else np.int64))
        binding.output(roles.output, roles.types[roles.output], logits)
        try:
            session.run_with_iobinding(binding.native, options)
        except Exception as error:
            if not self._interrupted:
                count_all = count * tokens
                raise BackendFailed(f"ONNX Runtime failed on a pass over {count_all} tokens: {error}") from error
        if self._interrupted:
            self._clear()
            raise Interrupted("the pass was interrupted")

    def _hidden(self, session: Any, options: Any, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[Any]:
        """The encoder's output for token ids and their mask, both (n, tokens)."""
        roles = self._roles
        values = {
            roles.ids: ids,
            roles.mask: mask,
            roles.token_types: np.zeros_like(ids),
            roles.positions: np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
        }
        feed = {
            name: np.ascontiguousarray(value, np.int32 if roles.types[name] == INT32 else np.int64)
            for name, value in values.items()
            if name is not None
        }
        try:
            found: NDArray[Any] = session.run([roles.output], feed, options)[0]
        except Exception as error:
            if not self._interrupted:
                raise BackendFailed(f"ONNX Runtime failed on {ids.size} tokens: {error}") from error
        if self._interrupted:
            self._clear()
            raise Interrupted("the pass was interrupted")
        return found

    @contextmanager
    def _pass(self) -> Iterator[Any]:
        """RunOptions, which `interrupt` reaches inside the block. Raises Interrupted if it was called before."""
        if self._options is None:
            self._options = library.load_library().RunOptions()
            self._options.log_severity_level = library.FATAL
            # Its absence is an exception inside every run, which costs a hundredth of a step of a small model.
            self._options.add_run_config_entry("gpu_graph_id", "0")
        with self._lock:
            if self._interrupted:
                self._interrupted = False
                raise Interrupted("the pass was interrupted")
            self._running = self._options
        try:
            yield self._options
        finally:
            with self._lock:
                self._running = None
                if self._options.terminate:
                    self._options = None

    def _clear(self) -> None:
        with self._lock:
            self._interrupted = False

    # Preparation

    def _runs(self, sequences: list[OnnxSequence], steps: list[Step]) -> list[_Run]:
        """Steps of one token side by side, as many as the graph takes; each of the others alone, cut by `shape`."""
        single = [at for at, step in enumerate(steps) if len(step.tokens) == 1]
        single.sort(key=lambda at: sequences[at].row)
        width = self.cells.together
        groups = [single[at : at + width] for at in range(0, len(single), width)]
        runs = []
        for group in groups:
            chosen, every = [sequences[at] for at in group], any(steps[at].logits == "all" for at in group)
            runs.append(_Run(group, chosen, [steps[at].tokens for at in group], 0, 0, self._keep(1, 0, every)))
        for at, step in enumerate(steps):
            runs += self._cut(at, sequences[at], step) if len(step.tokens) > 1 else ()
        return runs

    def _cut(self, at: int, sequence: OnnxSequence, step: Step) -> Iterator[_Run]:
        """The runs of a step of several tokens."""
        count, start = len(step.tokens), 0
        shared = self._roles.shared
        parts = cut(sequence.length, count, self._head_sizes, self._l2) if shared else [(count, False)]
        for size, more in parts:
            tokens = step.tokens[start : start + size]
            room = sequence.length + start + size < self.n_ctx
            extra = int(more and room and self._roles.rows != "last")
            keep = self._keep(size, extra, step.logits == "all")
            yield _Run([at], [sequence], [tokens + tokens[-1:] * extra], start, extra, keep)
            start += size

    def _keep(self, tokens: int, extra: int, every: bool) -> int:
        """Rows of logits that the graph gives for each sequence of a run. every: all are wanted, not the last alone."""
        if self._roles.rows == "all":
            return tokens + extra
        if self._roles.rows == "last" and every and tokens > 1:
            raise Unsupported(f"{self.info.name}: the graph gives the last row of logits alone; export it with all")
        return tokens + extra if every else 1 + extra

    def _check(self, steps: list[Step]) -> list[OnnxSequence]:
        """The sequences of the steps, which are all valid: a pass that is refused changes nothing."""
        sequences: list[OnnxSequence] = []
        for step in steps:
            sequence = step.sequence
            if not isinstance(sequence, OnnxSequence):
                raise BackendFailed("a pass holds a sequence of another backend")
            sequence.check_open()
            if sequence not in self._sequences or sequence in sequences:
                raise BackendFailed("a pass holds a sequence of another model, or one sequence twice")
            self._check_tokens(step.tokens)
            needed = sequence.length + len(step.tokens)
            if needed > self.n_ctx:
                message = f"{needed} tokens do not fit the context of {self.n_ctx}"
                raise ContextOverflow(message, needed=needed, n_ctx=self.n_ctx)
            sequences.append(sequence)
        count = sum(len(step.tokens) for step in steps)
        if not 1 <= count <= self.micro_batch:
            raise BackendFailed(f"a pass holds 1 to {self.micro_batch} tokens, not {count}")
        rows = sum(len(step.tokens) if step.logits == "all" else step.logits == "last" for step in steps)
        if rows > self.max_rows:
            raise BackendFailed(f"a pass gives at most {self.max_rows} rows of logits, not {rows}")
        return sequences

    def _check_tokens(self, tokens: list[int]) -> None:
        if not tokens:
            raise BackendFailed("a pass holds no tokens for one of its sequences")
        bad = next((token for token in tokens if not 0 <= token < self.info.n_vocab), None)
        if bad is not None:
            raise InvalidParameter(f"token {bad} is outside the vocabulary of {self.info.n_vocab}")

    def _groups(self, batches: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of texts that are embedded in one run: of about the same length, at most `micro_batch` tokens with
        their padding. One by one where a text's vector would depend on the others."""
        group: list[int] = []
        for at in sorted(range(len(batches)), key=lambda at: len(batches[at])):
            full = (len(group) + 1) * len(batches[at]) > self.micro_batch
            if group and (full or self._plan.mixes_batches):
                yield group
                group = []
            group.append(at)
        if group:
            yield group

    def _check_open(self) -> Any:
        if self._session is None:
            raise Closed("this model was closed")
        return self._session

    def _dtype(self, name: str) -> type[np.generic]:
        return np.float16 if self._roles.types[name] == FLOAT16 else np.float32


def _wanted(rows: list[NDArray[np.generic]], step: Step) -> Rows | None:
    """The rows that a step asks for out of those (rows, n_vocab) that the graph gave in one or more runs."""
    if step.logits == "none":
        return None
    chosen = rows[-1][-1:] if step.logits == "last" else rows[0] if len(rows) == 1 else np.concatenate(rows)
    wanted: Rows = chosen.astype(np.float32, copy=False)
    wanted.flags.writeable = False
    return wanted
