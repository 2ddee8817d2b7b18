"""Chained keys: equal exactly as far as the tokens are."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import InvalidParameter
from edgellm.kv.blocks import BLOCK_TOKENS, Block, block_key, chain, root_key

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=40)
ROOT = root_key("test")


@given(tokens=TOKENS, size=st.integers(1, 9))
def test_a_chain_cuts_the_tokens_and_links_the_keys(tokens: list[int], size: int) -> None:
    blocks = chain(ROOT, tokens, size)
    assert [t for block in blocks for t in block.tokens.tolist()] == tokens
    assert [len(block.tokens) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert all(1 <= len(block.tokens) <= size for block in blocks)
    parent, at = ROOT, 0
    for block in blocks:
        assert (block.parent, block.start) == (parent, at)
        assert block.stop == at + len(block.tokens)
        parent, at = block.key, block.stop


@given(a=TOKENS, b=TOKENS, size=st.integers(1, 9))
def test_keys_are_equal_exactly_as_far_as_tokens_are(a: list[int], b: list[int], size: int) -> None:
    for x, y in zip(chain(ROOT, a, size), chain(ROOT, b, size), strict=False):
        assert (x.key == y.key) == (a[: x.stop] == b[: y.stop])
        assert (x == y) == (x.key == y.key)


def test_a_key_is_the_digest_that_the_documentation_names() -> None:
    expected = hashlib.blake2b(ROOT + struct.pack("<I3i", 0, 1, 2, 70_000), digest_size=32).digest()
    assert chain(ROOT, [1, 2, 70_000])[0].key == expected
    assert block_key(ROOT, 0, np.array([1, 2, 70_000], ">i4").astype(np.int32)) == expected


def test_a_list_and_an_array_have_the_same_chain() -> None:
    tokens = list(range(3 * BLOCK_TOKENS + 5))
    assert chain(ROOT, tokens) == chain(ROOT, np.array(tokens, np.int32))
    assert [len(block.tokens) for block in chain(ROOT, tokens)] == [256, 256, 256, 5]


def test_a_block_is_as_hashable_as_its_key() -> None:
    [block] = chain(ROOT, [1, 2])
    assert {block, Block(block.key, ROOT, 0, np.array([1, 2], np.int32))} == {block}


@given(
    a=st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=4), st.integers()), max_size=4),
    b=st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=4), st.integers()), max_size=4),
)
def test_a_root_is_as_unique_as_its_parts(a: list[bytes | str | int], b: list[bytes | str | int]) -> None:
    def typed(parts: list[bytes | str | int]) -> list[tuple[type, bytes | str | int]]:
        return [(type(part), part) for part in parts]

    assert (root_key(*a) == root_key(*b)) == (typed(a) == typed(b))


def test_a_root_must_be_a_key() -> None:
    with pytest.raises(InvalidParameter, match="root_key"):
        chain(b"short", [1])


def test_parts_do_not_run_into_each_other() -> None:
    assert len({root_key("ab", "c"), root_key("a", "bc"), root_key("abc"), root_key(b"abc"), root_key("abc", "")}) == 5
    assert root_key(1) != root_key("1")
