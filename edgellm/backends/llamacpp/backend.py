"""LlamaBackend: one GGUF model in llama.cpp, through the low-level API of llama-cpp-python.

pool      the context that passes run in, and the sequences in it (`pool.py`); an encoder has none
embedder  a second context for vectors of texts (`embed.py`) or scores of them (`rank.py`), where the model gives any
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgellm import _native, budget
from edgellm.backends.base import PassShape, Row, Rows, Step
from edgellm.backends.checked import CheckedBackend
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.adapters import Loaded
from edgellm.backends.llamacpp.batch import Batch
from edgellm.backends.llamacpp.embed import DECODE_ABORTED, Embedder
from edgellm.backends.llamacpp.info import KV_TYPE
from edgellm.backends.llamacpp.loading import Plan
from edgellm.backends.llamacpp.pool import LlamaPool
from edgellm.backends.llamacpp.rank import Ranker
from edgellm.backends.llamacpp.reason import reason
from edgellm.backends.llamacpp.sequence import LlamaSequence
from edgellm.backends.llamacpp.tokenizer import LlamaTokenizer
from edgellm.backends.pool import Held, Limits
from edgellm.errors import BackendFailed, Interrupted


class LlamaBackend(CheckedBackend[Held]):
    """See `edgellm.backends.base.Backend`. Made by `edgellm.backends.llamacpp.open_llamacpp`. The model is its own once
    it is made."""

    name = "llamacpp"
    pool: LlamaPool

    def __init__(self, model: int, plan: Plan, adapters: Mapping[str, Loaded] | None = None) -> None:
        lib = self._lib = library.load_library()
        self._model = model
        vocab = lib.llama_model_get_vocab(model)
        tokenizer = LlamaTokenizer(lib, vocab)
        special = tokenizer.special
        n_vocab = lib.llama_vocab_n_tokens(vocab)
        recurrent = bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        max_sequences = plan.params.max_sequences or budget.sequences(plan.max_cells, whole=recurrent)
        limits = Limits.of(plan.n_ctx, max_sequences, plan.params.micro_batch, n_vocab)
        self._abort = _native.AbortFlag()
        pool = LlamaPool(model, plan, limits, self._abort)
        info = replace(
            plan.info,
            n_vocab=n_vocab,
            bos_id=special.bos_id,
            eos_id=special.eos_id,
            stop_ids=special.stop_ids,
            can_truncate=pool.divisible,
            can_generate=pool.causal,
        )
        super().__init__(info, tokenizer, pool)
        # The cells behind a window are given away, so that state can be saved only as long as it is all inside.
        takes_turns = pool.window >= self.n_ctx
        self._adapters = dict(adapters or {})
        self.adapters = {name: loaded.key for name, loaded in self._adapters.items()}
        self.pass_shape = PassShape(
            align=4, shortest=8, rows_independent=False, takes_turns=takes_turns, one_adapter=bool(self._adapters)
        )
        self.threads = plan.threads
        self.state_key = "|".join(
            map(str, (library.build_name(), plan.params.kv_type or KV_TYPE, plan.flash_attention, plan.gpu_layers))
        )
        self._batch = Batch(lib, self.micro_batch)
        self._embedder: Embedder | None = None
        if plan.pooling is not None:
            limit = self.max_rows if pool.causal else self.micro_batch
            self._embedder = Embedder(model, plan, self._abort, limit=limit, causal=pool.causal)
        elif plan.info.can_rerank:
            self._embedder = Ranker(model, plan, self._abort, limit=self.micro_batch)

    def interrupt(self) -> None:
        self._abort.set()

    def _new_sequence(self, expected: int) -> LlamaSequence:
        return LlamaSequence(self.pool, expected)

    def _forward(self, sequences: list[Held], steps: list[Step]) -> list[Rows | None]:
        names = {step.sequence.adapter for step in steps}
        if len(names) > 1:
            raise BackendFailed(f"a pass holds sequences of several adapters: {', '.join(map(repr, sorted(names)))}")
        name = names.pop()
        self.pool.use(self._adapters[name].pointer if name else None)
        outputs = self._batch.fill(sequences, steps)
        with library.capture_log() as lines:
            code = self.pool.decode(self._batch.struct)
        if code == 0:
            for sequence, step in zip(sequences, steps, strict=True):
                sequence.length += len(step.tokens)
            n_vocab = self.info.n_vocab
            return [self.pool.rows(first, count, n_vocab) if count else None for first, count in outputs]
        self.pool.resync()
        if code == DECODE_ABORTED:
            self._abort.clear()
            raise Interrupted("the pass was interrupted")
        why = reason(lines) or f"llama_decode returned {code}"
        raise BackendFailed(f"llama.cpp failed on a pass over {self._batch.struct.n_tokens} tokens: {why}")

    def _embed(self, batches: list[list[int]]) -> Rows:
        assert self._embedder is not None  # or `info` says that there is none
        return self._embedder.embed(batches)

    def _rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        assert isinstance(self._embedder, Ranker)  # or `info` says that there is none
        return self._embedder.rank(batches, firsts)

    def _free(self) -> None:
        self.pool.close()
        if self._embedder is not None:
            self._embedder.close()
        self._batch.free()

    def _free_model(self) -> None:
        self._lib.llama_model_free(self._model)
