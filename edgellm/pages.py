"""Memory for large blocks of state.

A page of 4 KiB costs the system a fault when it is first touched, which takes longer than filling it: for the hundred
megabytes of a long prompt's state it is most of the time that a restart takes. Linux has pages of 2 MiB for those who
ask (https://docs.kernel.org/admin-guide/mm/transhuge.html).
"""

from __future__ import annotations

import contextlib
import mmap

LARGE = 4 << 20  # bytes; below, whole large pages are a waste


def zeros(nbytes: int) -> memoryview:
    """Writable bytes, all 0, that the system gives when they are touched. MemoryError, OverflowError."""
    if nbytes < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(nbytes))
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
