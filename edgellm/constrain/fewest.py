"""may_end: whether an answer of so few tokens can be complete, by trying all of their beginnings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from edgellm.backends.base import ModelInfo, Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

FEW = 32  # tokens: of more nothing is tried
MOST = 200  # texts that are tried
SECONDS = 0.02  # of the processor


def may_end(start: LLMatcher, info: ModelInfo, tokenizer: Tokenizer, most: int) -> bool:
    """Whether `most` tokens behind the state of a matcher can be a whole answer. True where it takes too long to tell,
    as it does wherever many things may come next. Different tokens of one text lead to one state."""
    if most > FEW or start.is_accepting():
        return True
    until, words = time.thread_time() + SECONDS, -(-info.n_vocab // 32)
    reached, seen = {b"": start}, {b""}
    for _ in range(most):
        further: dict[bytes, LLMatcher] = {}
        for text, at in reached.items():
            mask = np.frombuffer(at.compute_bitmask(), np.uint8, 4 * words)
            tokens = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
            if len(tokens) > MOST:
                return True
            for token in tokens:
                longer = text + (tokenizer.piece(token) or b"\xff%d" % token)
                if longer in seen:
                    continue
                seen.add(longer)
                then = at.deep_copy()
                then.consume_token(token)
                if then.is_accepting() or then.is_error() or len(seen) > MOST or time.thread_time() > until:
                    return True
                further[longer] = then
        reached = further
    return False
