"""Token blocks and their chained keys.

    root ──▶ tokens 0..255 ──▶ tokens 256..511 ──▶ tokens 512..600 (unfinished)
    key₀       key₁ = H(key₀, 0, tokens)   key₂ = H(key₁, 256, tokens)   ...

A key names the whole prefix that ends with its block, so conversations that begin alike share keys exactly as far as
they share tokens. The root stands for everything else that the state depends on: weights, engine, layout, adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidParameter

BLOCK_TOKENS = 256
KEY_BYTES = 32
LOGITS = -2  # stands for a token in a block that holds the logits after the prompt before it

Tokens = NDArray[np.int32]  # (n,) int32


@dataclass(frozen=True, slots=True)
class Block:
    """A run of tokens at position `start`, after the prefix that `parent` names. Equal when the keys are."""

    key: bytes
    parent: bytes = field(compare=False)
    start: int = field(compare=False)
    tokens: Tokens = field(compare=False)

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


def root_key(*parts: bytes | str | int) -> bytes:
    """The parent of first blocks: 32 bytes that change with any part, its type or its place."""
    digest = blake2b(digest_size=KEY_BYTES, person=b"edgellm-root")
    for part in parts:
        kind = type(part).__name__.encode()
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(b"%s:%d:" % (kind, len(data)) + data)
    return digest.digest()


def block_key(parent: bytes, start: int, tokens: Tokens) -> bytes:
    """BLAKE2b-256 (RFC 7693) over the parent's key, the start as little-endian uint32 and the tokens as int32."""
    data = parent + start.to_bytes(4, "little") + tokens.astype("<i4", copy=False).tobytes()
    return blake2b(data, digest_size=KEY_BYTES).digest()


def make_block(parent: bytes, start: int, tokens: Sequence[int] | Tokens) -> Block:
    """The block that continues `parent` at position `start`, which may lie inside it."""
    array = np.asarray(tokens, np.int32)
    return Block(block_key(parent, start, array), parent, start, array)


def sound(block: Block) -> bool:
    """Whether it is a block that `make_block` made: of some tokens, with their key."""
    try:
        return len(block.tokens) > 0 and make_block(block.parent, block.start, block.tokens) == block
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False


def chain(root: bytes, tokens: Sequence[int] | Tokens, size: int = BLOCK_TOKENS, at: int = 0) -> list[Block]:
    """Blocks of `size` tokens from position `at` on, after `root`, a key; and the unfinished last one, if any."""
    if len(root) != KEY_BYTES:
        raise InvalidParameter(f"a root has {KEY_BYTES} bytes, this one {len(root)}; make it with root_key()")
    array = np.asarray(tokens, np.int32)
    blocks, parent = [], root
    for begin in range(0, len(array), size):
        blocks.append(make_block(parent, at + begin, array[begin : begin + size]))
        parent = blocks[-1].key
    return blocks
