"""The draws of a generation against numpy's."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from edgellm.engine.draws import Draws


@given(st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 2**300)))
def test_they_are_those_of_numpy(seed: int) -> None:
    draws, generator = Draws(seed), np.random.Generator(np.random.PCG64(seed))
    assert [draws.uniform() for _ in range(50)] == generator.random(50).tolist()
