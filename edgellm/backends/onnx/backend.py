"""OnnxBackend: one ONNX graph in ONNX Runtime, which decodes (`decoder.py`), or embeds or ranks (`encoder.py`)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from edgellm import budget, machine
from edgellm.backends.base import Row, Rows, Step
from edgellm.backends.checked import CheckedBackend
from edgellm.backends.onnx import kernels, library
from edgellm.backends.onnx.decoder import Decoder
from edgellm.backends.onnx.encoder import Encoder
from edgellm.backends.onnx.loading import Plan
from edgellm.backends.onnx.pool import CopiedPool, OnnxPool, SharedPool
from edgellm.backends.onnx.sequence import OnnxSequence
from edgellm.backends.onnx.session import Session
from edgellm.backends.onnx.shape import PASS_SHAPE
from edgellm.backends.pool import Held, Limits

MAX_UNASKED_BYTES = 256 << 20  # logits rows of one pass where the graph gives all, asked for or not


class OnnxBackend(CheckedBackend[Held]):
    """See `edgellm.backends.base.Backend`. Made by `edgellm.backends.onnx.open_onnx`.

    rewritten: what ONNX Runtime got instead of the file; None where that was loaded as it is, and its kernels compute
    all.
    """

    name = "onnx"
    pool: OnnxPool

    def __init__(self, plan: Plan, session: Any) -> None:
        roles, n_vocab = plan.roles, plan.info.n_vocab
        micro_batch = plan.params.micro_batch
        if roles.rows == "all":
            micro_batch = max(16, min(micro_batch, MAX_UNASKED_BYTES // (4 * n_vocab) // 4 * 4))
        max_sequences = plan.params.max_sequences or budget.sequences(plan.max_cells, whole=False)
        limits = Limits.of(plan.n_ctx, max_sequences, micro_batch, n_vocab)
        kind = SharedPool if roles.shared else CopiedPool
        super().__init__(plan.info, plan.tokenizer, kind(plan.info.name, limits, roles.kept, plan.max_cells))
        self._session = Session(session)
        self.threads = plan.threads
        self.provider = self._session.provider
        self.rewritten = plan.rewritten
        self.state_key = _state_key(plan, self.provider)
        self.pass_shape = replace(PASS_SHAPE, all_rows=roles.rows != "last")
        self._computes: Decoder | Encoder
        if plan.pooling is None:
            ours = plan.rewritten is not None and kernels.ATTENTION in plan.rewritten.operators
            self._computes = Decoder(self._session, roles, self.pool, n_vocab, ours=ours)
        else:
            alone = plan.mixes_batches
            self._computes = Encoder(self._session, roles, plan.pooling, limit=self.micro_batch, alone=alone)

    def interrupt(self) -> None:
        self._session.interrupt()

    def _new_sequence(self, expected: int) -> OnnxSequence:
        return OnnxSequence(self.pool, expected)

    def _forward(self, sequences: list[Held], steps: list[Step]) -> list[Rows | None]:
        assert isinstance(self._computes, Decoder)  # or there is no sequence
        return self._computes.forward(sequences, steps)

    def _embed(self, batches: list[list[int]]) -> Rows:
        assert isinstance(self._computes, Encoder)  # as `info` says
        return self._computes.embed(batches, self.info.n_embd)

    def _rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        assert isinstance(self._computes, Encoder)  # as `info` says
        return self._computes.embed(batches, 1, firsts)[:, 0]

    def _free(self) -> None:
        self.pool.close()  # with it go the bindings, which hold the session
        self._session.close()
        del self._computes
        if self.rewritten is not None:
            self.rewritten.close()


def _state_key(plan: Plan, provider: str) -> str:
    build = f"{library.distribution()[1]} {library.load_library().get_build_info()}"
    features = hashlib.blake2b(" ".join(sorted(machine.cpu_features())).encode(), digest_size=8).hexdigest()
    layout = "shared" if plan.roles.shared else "copied"
    ours = "none"
    if plan.rewritten is not None and plan.rewritten.operators:
        ours = " ".join((library.kernel_names(), *sorted(plan.rewritten.operators)))
    return "|".join(("onnxruntime", build, provider, plan.roles.kv_type or "none", layout, features, ours))
