"""The blocks of the disk tier as people see them: one for each conversation."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from edgellm.kv.blocks import LOGITS
from edgellm.kv.index import Row


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation: everything up to a block whose end none follows.

    nbytes counts the whole chain, shared the part of it that other conversations use too. age and idle are seconds by
    the clock, since it was written and since it was last used.
    """

    key: bytes
    model: str
    words: str
    tokens: int
    nbytes: int
    shared: int
    age: float
    idle: float


def conversations(rows: list[Row]) -> list[Conversation]:
    """They come in the order of the rows of their last blocks. Logits after a prompt are no part of one."""
    rows = [row for row in rows if row.first != LOGITS]
    by_key = {row.key: row for row in rows}
    followed = {(row.parent, row.start) for row in rows}
    chains = [_upwards(row, by_key) for row in rows if (row.key, row.start + row.n) not in followed]
    users = Counter(row.key for chain in chains for row in chain)
    now = time.time()
    return [
        Conversation(
            key=chain[0].key,
            model=chain[0].label,
            words=chain[0].words,
            tokens=chain[0].start + chain[0].n,
            nbytes=sum(row.nbytes for row in chain),
            shared=sum(row.nbytes for row in chain if users[row.key] > 1),
            age=max(0.0, now - chain[0].created),
            idle=max(0.0, now - chain[0].seen),
        )
        for chain in chains
    ]


def _upwards(row: Row, by_key: dict[bytes, Row]) -> list[Row]:
    """A block and those before it, as far as they are there."""
    chain = [row]
    while (above := by_key.get(chain[-1].parent)) is not None:
        chain.append(above)
    return chain
