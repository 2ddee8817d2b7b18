"""What memory a model takes and which context fits: the sums of loading, of `edgellm show` and of conversion plans."""

from __future__ import annotations

import logging

from edgellm.arguments import instance, whole
from edgellm.backends.base import ModelInfo
from edgellm.errors import NotEnoughMemory
from edgellm.params import DEFAULT_CTX, MICRO_BATCH

log = logging.getLogger("edgellm")

SMALLEST_CTX = 512  # tokens below which a context is of no use
SEQUENCES = 8, 64  # open at once, where nobody says how many
IN_CHUNKS = frozenset({"native"})  # engines whose attention never holds the scores of a whole context
SHARED_CONTEXTS = 4  # the cells that all sequences share are at most so many full contexts


def default_context(trained: int, asked: int | None = None) -> int:
    """Tokens of a context where memory is no matter: what is asked, or else the default, and no more than trained."""
    return min(asked or DEFAULT_CTX, trained)


def memory_needed(info: ModelInfo, ctx: int, micro_batch: int = MICRO_BATCH) -> int:
    """Bytes to run a model with one full context of `ctx` tokens: weights, KV cache and work buffers.

    Those of the engine that `info` names; without one, of the engine that takes most.
    """
    instance("info", info, ModelInfo)
    whole("ctx", ctx, 0)
    whole("micro_batch", micro_batch, 1)
    scored = 0 if info.engine in IN_CHUNKS else ctx
    work = work_bytes(scored, info.n_head, info.n_embd, info.n_ff, micro_batch)
    return info.file_bytes + ctx * info.kv_bytes_per_token + work


def work_bytes(ctx: int, n_head: int, n_embd: int, n_ff: int, micro_batch: int = MICRO_BATCH) -> int:
    """Bytes of work buffers: what attention without flash attention holds for one pass (scores of every head over the
    whole context, twice) plus the widest activations."""
    return 4 * micro_batch * (2 * ctx * n_head + 4 * n_embd + 3 * n_ff) + (32 << 20)


def context_that_fits(info: ModelInfo, asked: int | None, available: int) -> int:
    """Tokens one sequence gets: the smaller of what was trained, asked (None: 8,192) and fits in `available` bytes.

    0 when not even `SMALLEST_CTX` tokens, or all that were asked, fit. Above that it is rounded down to 256 tokens.
    `available` 0 means that the system does not say; then nothing is held back.
    """
    instance("info", info, ModelInfo)
    if asked is not None:
        whole("asked", asked, 1)
    whole("available", available, 0)
    wanted = default_context(info.n_ctx_train, asked)
    least = min(wanted, SMALLEST_CTX)
    if not available or memory_needed(info, wanted) <= available:
        return wanted
    if memory_needed(info, least) > available:
        return 0
    low, high = least, wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory_needed(info, middle) <= available else (low, middle)
    return max(low // 256 * 256, least)


def contexts(info: ModelInfo, asked: int | None, available: int) -> tuple[int, int]:
    """Tokens of one sequence (see `context_that_fits`), and of all together: as many as `SHARED_CONTEXTS` full ones at
    most, and no more than half of what is left has room for.

    Raises NotEnoughMemory; a context smaller than what was asked is logged.
    """
    n_ctx = context_that_fits(info, asked, available)
    if not n_ctx:
        least = min(asked or SMALLEST_CTX, SMALLEST_CTX, info.n_ctx_train)
        raise NotEnoughMemory(
            f"{info.path} needs about {memory_needed(info, least) >> 20} MiB with the smallest useful context "
            f"({least} tokens); {available >> 20} MiB are available. Close other programs or use a smaller quantization"
        )
    if asked and asked > info.n_ctx_train:
        log.warning("ctx %d is more than the %d that %s was trained for", asked, info.n_ctx_train, info.name)
    if n_ctx < default_context(info.n_ctx_train, asked):
        log.warning("the context is %d tokens: that is what fits in the %d MiB available", n_ctx, available >> 20)
    extra = max(0, available - memory_needed(info, n_ctx)) // 2 // max(1, info.kv_bytes_per_token)
    return n_ctx, n_ctx + min(extra, (SHARED_CONTEXTS - 1) * n_ctx)


def sequences(cells: int, *, whole: bool) -> int:
    """How many sequences may be open at once whose tokens are `cells` together.

    whole: each has state of one size, which is there from the beginning, however short it is.
    """
    least, most = SEQUENCES
    return least if whole else min(max(least, cells // SMALLEST_CTX), most)
