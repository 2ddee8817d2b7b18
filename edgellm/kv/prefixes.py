"""The sequences that finished requests leave behind, and the longest known prefix of a new prompt among them."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np

from edgellm.backends.base import Sequence


@dataclass(frozen=True, slots=True)
class Known:
    """A sequence and the tokens whose state it holds."""

    tokens: list[int]
    sequence: Sequence


class LivePrefixes:
    """Keeps the most recent finished sequence alive; more of them would slow every pass of the others down."""

    def __init__(self) -> None:
        self._known: Known | None = None

    def put(self, tokens: list[int], sequence: Sequence) -> None:
        """Keep `sequence`, which holds `tokens`; the one kept before is closed."""
        self.clear()
        self._known = Known(tokens, sequence)

    def take(self, prompt: list[int]) -> tuple[Known | None, int]:
        """The kept sequence and how many tokens it has in common with `prompt`; it is the caller's from now on."""
        known, self._known = self._known, None
        return known, common_prefix(known.tokens, prompt) if known else 0

    def clear(self) -> bool:
        """Close what is kept. False when there was nothing."""
        known, self._known = self._known, None
        if known is None:
            return False
        known.sequence.close()
        return True


def common_prefix(a: Tokens[int], b: Tokens[int]) -> int:
    """Number of leading tokens that `a` and `b` share."""
    n = min(len(a), len(b))
    different = np.nonzero(np.asarray(a[:n], np.int64) != np.asarray(b[:n], np.int64))[0]
    return int(different[0]) if different.size else n
