from __future__ import annotations

import mmap

import pytest

from edgellm import pages


@pytest.mark.parametrize("nbytes", [0, 1, 5000, pages.LARGE - 1, pages.LARGE, 3 * pages.LARGE + 17])
def test_zeros_are_writable_bytes(nbytes: int) -> None:
    memory = pages.zeros(nbytes)
    assert len(memory) == memory.nbytes == nbytes
    assert not any(memory[:: max(1, nbytes // 100)])
    if nbytes:
        memory[-1] = 7
        assert memory[-1] == 7
    assert isinstance(memory.obj, mmap.mmap) == (nbytes >= pages.LARGE and hasattr(mmap, "MADV_HUGEPAGE"))


def test_more_than_there_can_be_is_an_error() -> None:
    with pytest.raises((MemoryError, OverflowError)):
        pages.zeros(1 << 62)
