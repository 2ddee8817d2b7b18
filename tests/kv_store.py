"""A store for the tests of the disk tier: what is put into it, and how a reader finds it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgellm.kv.blocks import Block, chain, root_key
from edgellm.kv.store import BlockStore

ROOT = root_key("store")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")


def payload(key: bytes, size: int = 1000) -> bytes:
    """Bytes that follow from the key, so that a wrong answer shows."""
    return hashlib.shake_128(key).digest(size)


def put(store: BlockStore, tokens: list[int], words: str = "words", size: int = 4) -> list[Block]:
    blocks = chain(ROOT, tokens, size)
    for block in blocks:
        store.write(block, payload(block.key), label="model", words=words)
    assert store.flush(30)
    return blocks


def match(store: BlockStore, tokens: list[int]) -> tuple[list[bytes], int]:
    """Keys of the blocks that hold the longest known prefix of `tokens`, and its length: a reader's walk."""
    node, keys, at = ROOT, [], 0
    while True:
        best, common = None, 0
        for child in store.children(node):
            same = 0
            while same < min(len(child.tokens), len(tokens) - at) and child.tokens[same] == tokens[at + same]:
                same += 1
            if same > common:
                best, common = child, same
        if best is None:
            return keys, at
        keys, at = [*keys, best.key], at + common
        if common < len(best.tokens):
            return keys, at
        node = best.key


@contextmanager
def opened(folder: Path, budget: int | None = 10**9) -> Iterator[BlockStore]:
    store = BlockStore(folder, budget=budget)
    try:
        assert store.flush(30)
        yield store
    finally:
        store.close()


def files(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*/*.kv")}


def file_of(folder: Path, key: bytes) -> Path:
    return folder / key.hex()[:2] / f"{key.hex()}.kv"
