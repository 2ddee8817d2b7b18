"""The checksum of stored blocks against zlib's."""

from __future__ import annotations

import zlib

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from edgellm import _native


@given(st.integers(0, 3000), st.integers(0, 15), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_it_is_the_one_of_zlib(count: int, skip: int, before: int, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(count + skip)[skip:]
    assert _native.crc32(data, before) == zlib.crc32(data, before)


def test_a_large_one() -> None:
    data = np.random.default_rng(1).bytes(5 << 20)
    assert _native.crc32(memoryview(data)) == _native.crc32(data[1000:], _native.crc32(data[:1000])) == zlib.crc32(data)
