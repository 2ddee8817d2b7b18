"""LlamaBackend: one GGUF model in llama.cpp, through the low-level API of llama-cpp-python.

pool      one llama_context with a unified KV cache of `_cells` cells, shared by every open sequence. It starts
          small and is rebuilt larger when a pass finds no room (`_grow`), up to `_max_cells`.
spare id  the sequence id `max_sequences`, never leased: blocks of KV state go out and come in through it.
embedder  a second context for vectors of texts (`embed.py`), where the model makes them. An encoder has that alone.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from edgellm import _native
from edgellm.backends.base import Backend, Buffer, PassShape, Rows, SharedTokenizer, Step
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.batch import Batch
from edgellm.backends.llamacpp.context import context_params, new_context
from edgellm.backends.llamacpp.embed import DECODE_ABORTED, Embedder
from edgellm.backends.llamacpp.info import KV_TYPE
from edgellm.backends.llamacpp.loading import Plan
from edgellm.backends.llamacpp.reason import reason
from edgellm.backends.llamacpp.sequence import LlamaSequence
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
from edgellm.errors import (
    BackendFailed,
    Busy,
    Closed,
    ContextOverflow,
    Interrupted,
    InvalidParameter,
    ModelLoadError,
    NotEnoughMemory,
    Unsupported,
)

log = logging.getLogger("edgellm.llamacpp")

MAX_SEQUENCES = 8
FIRST_CELLS = 2048  # KV cells of a new context; more are made when they are needed
MAX_ROW_BYTES = 64 << 20  # logits rows of one pass
DECODE_NO_SLOT = 1  # return value of llama_decode, llama.h


class LlamaBackend(Backend):
    """See `edgellm.backends.base.Backend`. Made by `edgellm.backends.llamacpp.open_llamacpp`."""

    name = "llamacpp"

    def __init__(self, model: int, plan: Plan) -> None:
        self._lib: Any = library.load_library()
        self._model: int | None = model
        self._context: int | None = None
        self._plan = plan
        lib = self._lib
        vocab = lib.llama_model_get_vocab(model)
        tokenizer = LlamaTokenizer(lib, vocab)
        special = tokenizer.special
        self.tokenizer = SharedTokenizer(tokenizer)
        self.threads = plan.threads
        self.state_key = "|".join(
            map(str, (library.build_name(), plan.params.kv_type or KV_TYPE, plan.flash_attention, plan.gpu_layers))
        )
        self.n_ctx = plan.n_ctx
        self.max_sequences = MAX_SEQUENCES
        self.micro_batch = min(plan.params.micro_batch, -(-plan.n_ctx // 4) * 4)
        n_vocab = lib.llama_vocab_n_tokens(vocab)
        self.max_rows = max(8, min(self.micro_batch, MAX_ROW_BYTES // (4 * n_vocab)))
        recurrent = bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        self.info = replace(
            plan.info,
            n_vocab=n_vocab,
            bos_id=special.bos_id,
            eos_id=special.eos_id,
            stop_ids=special.stop_ids,
            can_truncate=not recurrent,
        )
        self.window = lib.llama_model_n_swa(model) or 2**31  # tokens a sliding-window layer looks back
        # The cells behind a window are given away, so that state can be saved only as long as it is all inside.
        self.pass_shape = PassShape(align=4, shortest=8, rows_independent=False, takes_turns=self.window >= self.n_ctx)
        self.block_tokens = min(256, self.window)  # tokens of state that leave in one part
        self.abort = _native.AbortFlag()
        self._sequences: dict[int, LlamaSequence] = {}
        self._cells = min(_round_up(plan.n_ctx, 256), FIRST_CELLS)
        self._max_cells = _round_up(plan.max_cells, 256)
        self._rows: dict[int, Rows] = {}
        self._row_address = _address_of_row(lib)
        self._batch = Batch(lib, self.micro_batch)
        self._embedder: Embedder | None = None
        try:
            if plan.causal:
                self._context = self._new_context(self._cells)
        except BaseException:
            self.close()
            raise
        if self._context is not None and not self.memory:  # the header does not say it, but llama.cpp knows
            lib.llama_free(self._context)
            self._context, self._plan = None, replace(plan, causal=False)
            self.info = replace(self.info, can_generate=False)
        if plan.pooling is not None:
            limit = self.max_rows if self._plan.causal else self.micro_batch
            self._embedder = Embedder(model, self._plan, self.abort, limit=limit, n_ctx=self.n_ctx)

    @property
    def context(self) -> int:
        """The llama_context pointer. Raises Closed; Unsupported for an encoder, which has none."""
        if self._context is None:
            if self._model is None:
                raise Closed("this model was closed")
            raise Unsupported(
                f"{self.info.name} ({self.info.architecture}) is an encoder: it continues no text and scores none; "
                "model.embed gives its vectors"
            )
        return self._context

    @property
    def lib(self) -> Any:
        """The llama_cpp module."""
        return self._lib

    @property
    def memory(self) -> Any:
        """The llama_memory_t of the context."""
        return self._lib.llama_get_memory(self.context)

    @property
    def spare(self) -> int:
        """The sequence id that blocks pass through."""
        return self.max_sequences

    # Sequences

    def new_sequence(self, expected: int = 0) -> LlamaSequence:
        context = self.context
        needed = min(self._used() + min(expected, self.n_ctx), self._max_cells)
        if needed > self._cells:
            self._grow(needed, len(self._sequences) + 1)
            context = self.context
        free = next((i for i in range(self.max_sequences) if i not in self._sequences), None)
        if free is None:
            raise Busy(f"{self.max_sequences} sequences are open in {self.info.name}; close one first")
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(context), free, -1, -1)
        sequence = self._sequences[free] = LlamaSequence(self, free)
        return sequence

    def release(self, sequence: LlamaSequence) -> None:
        """Take a sequence's cells and id back."""
        if self._sequences.get(sequence.id) is sequence:
            del self._sequences[sequence.id]
            if self._context is not None:
                self._lib.llama_memory_seq_rm(self.memory, sequence.id, -1, -1)

    # Passes

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        context = self.context
        batch, lib = self._batch, self._lib
        self._check(steps)
        outputs = batch.fill(steps)
        rows = sum(count for _first, count in outputs)
        if rows > self.max_rows:  # llama.cpp would abort the process
            raise BackendFailed(f"a pass gives at most {self.max_rows} rows of logits, not {rows}")
        with library.capture_log() as lines:
            code = lib.llama_decode(context, batch.struct)
            while code == DECODE_NO_SLOT:
                if not self._grow(self._cells + 1, len(self._sequences)):
                    raise Interrupted("the state of a sequence was lost while the KV cache grew")
                context = self.context
                code = lib.llama_decode(context, batch.struct)
        if code == 0:
            for step in steps:
                step.sequence.advance(len(step.tokens))  # type: ignore[attr-defined]
            return [self._view(context, first, count) if count else None for first, count in outputs]
        for sequence in self._sequences.values():
            sequence.resync()
        if code == DECODE_ABORTED:
            self.abort.clear()
            raise Interrupted("the pass was interrupted")
        why = reason(lines) or f"llama_decode returned {code}"
        raise BackendFailed(f"llama.cpp failed on a pass over {batch.struct.n_tokens} tokens: {why}")

    def embed(self, batches: list[list[int]]) -> Rows:
        if self._model is None:
            raise Closed("this model was closed")
        if self._embedder is None:
            raise Unsupported(f"{self.info.path} does not say how to pool a vector from its tokens (pooling_type)")
        return self._embedder.embed(batches)

    def interrupt(self) -> None:
        self.abort.set()

    def close(self) -> None:
        for sequence in list(self._sequences.values()):
            sequence.close()
        if self._context is not None:
            self._lib.llama_free(self._context)
            self._context = None
        if self._embedder is not None:
            self._embedder.close()
        self._batch.free()
        self._rows.clear()
        if self._model is not None:
            self.tokenizer.close(partial(self._lib.llama_model_free, self._model))
            self._model = None

    def _check(self, steps: list[Step]) -> None:
        """Every step is of an open sequence of this model that has room: a pass that is refused changes nothing."""
        ids: set[int] = set()
        for step in steps:
            sequence, tokens = step.sequence, step.tokens
            if not isinstance(sequence, LlamaSequence):
                raise BackendFailed("a pass holds a sequence of another backend")
            sequence.check_open()
            if self._sequences.get(sequence.id) is not sequence or sequence.id in ids:
                raise BackendFailed("a pass holds a sequence of another model, or one sequence twice")
            ids.add(sequence.id)
            needed = sequence.length + len(tokens)
            if needed > self.n_ctx:
                message = f"{needed} tokens do not fit the context of {self.n_ctx}"
                raise ContextOverflow(message, needed=needed, n_ctx=self.n_ctx)
            if tokens and not (min(tokens) >= 0 and max(tokens) < self.info.n_vocab):
                bad = next(token for token in tokens if not 0 <= token < self.info.n_vocab)
                raise InvalidParameter(f"token {bad} is outside the vocabulary of {self.info.n_vocab}")

    def _view(self, context: int, first: int, count: int) -> Rows:
        """Logits rows [first, first + count) of the pass as an array over llama.cpp's own memory."""
        address = self._row_address(context, first)
        if not address:
            raise BackendFailed("llama.cpp returned no logits for a row that was asked for")
        n_vocab = self.info.n_vocab
        if count == 1:
            rows = self._rows.get(address)
            if rows is None:
                rows = self._rows[address] = _array(address, 1, n_vocab)
            return rows
        return _array(address, count, n_vocab)

    # The pool of KV cells

    def _new_context(self, cells: int) -> int:
        assert self._model is not None  # the callers have a context, or are making the first one
        sequences = self.max_sequences + 1
        p = context_params(self._plan, self.abort, cells=cells, tokens=self.micro_batch, sequences=sequences)
        p.n_outputs_max = max(self.max_rows, sequences)
        return new_context(self._model, p, self.info.path)

    def make_room(self, tokens: int) -> None:
        """llama.cpp had no room for `tokens` more: grow, unless room is not what was missing."""
        if self._cells - self._used() >= tokens:
            raise BackendFailed("llama.cpp refused saved state: it is damaged, or of another build or another model")
        self._grow(self._cells + 1, len(self._sequences))

    def _used(self) -> int:
        return sum(sequence.length for sequence in self._sequences.values())

    def _grow(self, needed: int, sequences: int) -> bool:
        """Rebuild the pool if it has fewer cells than `needed`; every open sequence moves, bit for bit.

        It doubles, but never beyond what that many `sequences` can fill. A sequence that gave away cells behind its
        sliding window cannot be saved: it is empty afterwards, to be fed again, and the result is False. Raises Busy
        when the pool is already as large as it may be.
        """
        if needed <= self._cells:
            return True
        if self._cells >= self._max_cells:
            raise Busy(f"the KV cache of {self.info.name} is full ({self._cells} tokens)")
        usable = min(2 * self._cells, sequences * self.n_ctx)
        cells = min(_round_up(max(usable, needed), 256), self._max_cells)
        held: list[tuple[LlamaSequence, list[Buffer]]] = []
        lost = 0
        for sequence in self._sequences.values():
            try:
                held.append((sequence, [sequence.save(0, sequence.length)] if sequence.length else []))
            except BackendFailed as error:
                log.warning("%d tokens are computed again: %s", sequence.length, error)
                held.append((sequence, []))
                lost += 1
        log.debug("KV cache grows from %d to %d tokens", self._cells, cells)
        old, self._context = self._context, None
        self._rows.clear()
        self._lib.llama_free(old)
        try:
            self._context = self._new_context(cells)
            self._cells = cells
        except (NotEnoughMemory, ModelLoadError) as error:
            self._max_cells = self._cells
            self._context = self._new_context(self._cells)
            log.warning("the KV cache stays at %d tokens: %s", self._cells, error)
        for sequence, blocks in held:
            sequence.length = 0
            sequence.load(blocks)
        return not lost


def _address_of_row(lib: Any) -> Any:
    """llama_get_logits_ith as a function that returns a plain address."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
    return prototype(("llama_get_logits_ith", lib._lib))


def _array(address: int, rows: int, n_vocab: int) -> Rows:
    view = np.ctypeslib.as_array((ctypes.c_float * (rows * n_vocab)).from_address(address))
    view.flags.writeable = False
    return view.reshape(rows, n_vocab)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
