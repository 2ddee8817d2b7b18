"""NativeBackend: one GGUF model on edgellm's own engine (native/engine), with the vocabulary of its file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

from edgellm import _native, budget
from edgellm.backends.base import PassShape, Rows, Step
from edgellm.backends.checked import CheckedBackend
from edgellm.backends.native.loading import Plan
from edgellm.backends.native.rotation import is_long
from edgellm.backends.native.sequence import NativePool, NativeSequence
from edgellm.backends.native.vocabulary import Vocabulary
from edgellm.backends.pool import Limits
from edgellm.errors import BackendFailed, Interrupted


class NativeBackend(CheckedBackend[NativeSequence]):
    """See `edgellm.backends.base.Backend`. Made by `edgellm.backends.native.open_native`. The vocabulary is its own
    once it is made."""

    name = "native"
    pass_shape = PassShape(mixes_prefill_and_decode=True)  # a row's bits depend on nothing but the row
    pool: NativePool

    def __init__(self, model: _native.DenseModel, vocabulary: Vocabulary, plan: Plan) -> None:
        special = vocabulary.special
        n_vocab = plan.hyper.n_vocab
        max_sequences = plan.params.max_sequences or budget.sequences(plan.max_cells, whole=False)
        limits = Limits.of(plan.n_ctx, max_sequences, plan.params.micro_batch, n_vocab)
        info = replace(
            plan.info, n_vocab=n_vocab, bos_id=special.bos_id, eos_id=special.eos_id, stop_ids=special.stop_ids
        )
        super().__init__(info, vocabulary.tokenizer, NativePool(plan, limits))
        self._model = model
        self._vocabulary = vocabulary
        self._abort = _native.AbortFlag()
        self.threads = plan.threads
        self.kernels = model.kernels
        factors = "long" if is_long(plan.hyper, plan.n_ctx) else ""
        self.state_key = "|".join(("native", _build(), self.kernels, plan.kv_type, factors))

    def interrupt(self) -> None:
        self._abort.set()

    def _new_sequence(self, expected: int) -> NativeSequence:
        return NativeSequence(self.pool, expected)

    def _forward(self, sequences: list[NativeSequence], steps: list[Step]) -> list[Rows | None]:
        tables = [sequence.table for sequence in sequences]
        try:
            rows = self._model.forward(
                tables, [step.tokens for step in steps], [step.logits for step in steps], self._abort
            )
        except _native.PassInterrupted:
            self._abort.clear()
            raise Interrupted("the pass was interrupted") from None
        except _native.KvFull:
            raise self.pool.full() from None
        except ValueError as error:
            raise BackendFailed(f"the pass cannot be computed: {error}") from error
        given: list[Rows | None] = []
        at = 0
        for sequence, step in zip(sequences, steps, strict=True):
            sequence.length += len(step.tokens)
            count = {"none": 0, "last": 1, "all": len(step.tokens)}[step.logits]
            given.append(rows[at : at + count] if count else None)
            at += count
        return given

    def _embed(self, batches: list[list[int]]) -> Rows:
        raise AssertionError("`info` says that there are no vectors")

    def _free(self) -> None:
        del self._model, self.pool.pages  # which keep room for the next sequence

    def _free_model(self) -> None:
        self._vocabulary.close()


@cache
def _build() -> str:
    """Names what computes: another build may round otherwise. By its content, as frozen programs unpack it anew."""
    return hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:16]
