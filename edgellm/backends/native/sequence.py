"""NativeSequence: a table of pages of the KV cache; NativePool: the pages that the sequences of a model share.

A page is there once, however many sequences hold it: a fork copies nothing, and later the one page it goes on in. A
block of state holds, behind its header, what `KvTable.save` writes.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import ClassVar

from edgellm import _native
from edgellm.backends.base import Buffer, SavedFile
from edgellm.backends.checked import HEADER, CheckedSequence
from edgellm.backends.native.loading import PAGE_TOKENS, Plan, new_pages
from edgellm.backends.pool import Limits, Pool, round_up
from edgellm.errors import BackendFailed, Busy


class NativePool(Pool["NativeSequence"]):
    """See above."""

    def __init__(self, plan: Plan, limits: Limits) -> None:
        super().__init__(plan.info.name, limits)
        most = round_up(plan.max_cells, PAGE_TOKENS) // PAGE_TOKENS + limits.max_sequences  # each ends within a page
        self.pages = new_pages(plan.hyper, plan.kv_type, most)
        self.threads = plan.threads

    def full(self) -> Busy:
        """The error for pages that are used up."""
        return Busy(f"the KV cache of {self.name} is full ({self.pages.most} pages of {PAGE_TOKENS} tokens)")


class NativeSequence(CheckedSequence[NativePool]):
    """See `edgellm.backends.base.Sequence`."""

    magic = b"NES1"
    reads_files: ClassVar[bool] = True

    def __init__(self, pool: NativePool, expected: int = 0) -> None:
        self.table = _native.KvTable(pool.pages)
        super().__init__(pool, expected)

    def close(self) -> None:
        super().close()
        self.table.close()

    def _truncate(self, length: int) -> bool:
        self.table.truncate(length)
        return True

    def _copy_to(self, twin: NativeSequence, length: int) -> None:
        twin.table = self.table.fork(length)

    def _save(self, start: int, stop: int, head: bytes) -> Buffer:
        return memoryview(self.table.save(start, stop, head))

    def _load(self, blocks: list[Buffer], stops: list[int]) -> None:
        self._load_files(blocks, stops)

    def _load_files(self, blocks: Many[Buffer | SavedFile], stops: list[int]) -> None:
        try:
            self.table.load([_state(block) for block in blocks], stops, self._pool.threads)
        except _native.KvFull as error:
            raise self._pool.full() from error
        except (ValueError, OSError) as error:
            raise BackendFailed(f"a saved block is damaged, or of another model: {error}") from error
        self.length = self.table.length


def _state(block: Buffer | SavedFile) -> memoryview | _native.StateInFile:
    """What is behind the header of a block."""
    if not isinstance(block, SavedFile):
        return memoryview(block)[HEADER.size :]
    if len(block.head) != HEADER.size:
        raise ValueError(f"a header of {len(block.head)} bytes")
    return block.descriptor, block.nbytes - HEADER.size, _native.crc32(block.head), block.crc
