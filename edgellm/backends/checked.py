"""CheckedBackend, CheckedSequence: what every engine checks of a call is checked here, once; an engine does the rest.

A block of saved state begins alike everywhere; what follows belongs to the engine:

    magic (4 bytes) | start | stop (positions, uint32) | state
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any, ClassVar, Generic, TypeVar

from edgellm.backends.base import (
    Backend,
    Buffer,
    ModelInfo,
    Row,
    Rows,
    SamplingPlan,
    SavedFile,
    Sequence,
    Step,
    Tokenizer,
)
from edgellm.backends.pool import H, Pool
from edgellm.backends.shared_tokenizer import SharedTokenizer
from edgellm.errors import BackendFailed, Closed, ContextOverflow, InvalidParameter, NotEnoughMemory, Unsupported

HEADER = struct.Struct("<4sII")

P = TypeVar("P", bound=Pool[Any])
S = TypeVar("S", bound="CheckedSequence[Any]")


class CheckedSequence(Sequence, Generic[P]):
    """See `edgellm.backends.base.Sequence`. Made by a backend; its state lies in the pool."""

    __slots__ = ("length",)  # in place of the protocol's property

    magic: ClassVar[bytes]
    length: int

    def __init__(self, pool: P, expected: int = 0) -> None:
        self._pool = pool
        self._closed = False
        self.adapter = ""
        self.id = -1
        self.length = 0
        pool.lease(self, expected)

    def truncate(self, length: int) -> bool:
        self.check_range(0, length)
        if length < self.length:
            if not self._truncate(length):
                return False
            self.length = length
        return True

    def fork(self: S, length: int | None = None) -> S:
        length = self.length if length is None else length
        self.check_range(0, length)
        twin = type(self)(self._pool)
        twin.adapter = self.adapter
        try:
            if length:
                self._copy_to(twin, length)
        except BaseException:
            twin.close()
            raise
        twin.length = length
        return twin

    def save(self, start: int, stop: int) -> Buffer:
        self.check_range(start, stop)
        if start == stop:
            raise BackendFailed(f"cannot save no tokens (at position {start})")
        return self._save(start, stop, HEADER.pack(self.magic, start, stop))

    def load(self, blocks: Many[Buffer | SavedFile]) -> None:
        self.check_open()
        here = self.length
        stops: list[int] = []
        for block in blocks:
            head = block.head if isinstance(block, SavedFile) else block
            if len(head) < HEADER.size:
                raise BackendFailed(f"a saved block of {len(head)} bytes is too short to be one")
            magic, start, stop = HEADER.unpack_from(head)
            if magic != self.magic:
                raise BackendFailed("a saved block is damaged, or of another engine")
            if start != here or stop <= start:
                raise BackendFailed(f"a saved block for positions {start} to {stop} does not continue {here} tokens")
            self._pool.check_room(stop)
            stops.append(stop)
            here = stop
        in_memory = [block for block in blocks if not isinstance(block, SavedFile)]
        if len(in_memory) == len(blocks):
            self._load(in_memory, stops)
        else:
            self._load_files(blocks, stops)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pool.release(self)
            self.length = 0

    def check_open(self) -> None:
        """Raises Closed."""
        if self._closed:
            raise Closed("this sequence was closed")

    def check_range(self, start: int, stop: int) -> None:
        """Raises Closed, and BackendFailed for positions that it does not hold."""
        self.check_open()
        if not 0 <= start <= stop <= self.length:
            raise BackendFailed(f"positions {start} to {stop} are not in a sequence of {self.length} tokens")

    # What an engine does. `_load` and `_load_files` alone change the length

    @abstractmethod
    def _truncate(self, length: int) -> bool: ...

    @abstractmethod
    def _copy_to(self: S, twin: S, length: int) -> None: ...

    @abstractmethod
    def _save(self, start: int, stop: int, head: bytes) -> Buffer:
        """A block: its header, and the state behind it."""

    @abstractmethod
    def _load(self, blocks: list[Buffer], stops: list[int]) -> None:
        """Append blocks whose headers are right and which end at `stops`: all of them, or none and an error."""

    def _load_files(self, blocks: Many[Buffer | SavedFile], stops: list[int]) -> None:
        """The same where some of them are in files."""
        raise BackendFailed("this engine reads no files of saved state")


class CheckedBackend(Backend, Generic[H]):
    """See `edgellm.backends.base.Backend`."""

    pool: Pool[H]

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, pool: Pool[H]) -> None:
        limits = pool.limits
        self.info = info
        self.tokenizer = SharedTokenizer(tokenizer)
        self.pool = pool
        self.n_ctx, self.max_sequences = limits.n_ctx, limits.max_sequences
        self.micro_batch, self.max_rows = limits.micro_batch, limits.max_rows
        self.adapters: Mapping[str, str] = {}
        self._closed = False

    def new_sequence(self, expected: int = 0) -> H:
        self.check_open()
        if not self.info.can_generate:
            raise Unsupported(
                f"{self.info.name} ({self.info.architecture}) is an encoder: it continues no text and predicts none; "
                + ("model.rerank compares texts" if self.info.can_rerank else "model.embed gives its vectors")
            )
        return self._new_sequence(min(expected, self.n_ctx))

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        self.check_open()
        sequences = self._check_pass(steps)
        try:
            return self._forward(sequences, steps)
        except MemoryError as error:
            raise NotEnoughMemory(
                f"{self.info.name}: the memory is not enough for a pass; close other programs, or ask for a smaller ctx"
            ) from error

    def takes(self, plan: SamplingPlan) -> bool:
        return False

    def choose(self, steps: list[Step], plans: list[SamplingPlan]) -> list[int]:
        raise Unsupported(f"{self.name} takes no plan of sampling: ask for rows")

    def embed(self, batches: list[list[int]]) -> Rows:
        self.check_open()
        if not self.info.can_embed:
            raise Unsupported(
                f"{self.info.path} gives no embeddings: it does not say how to pool a vector from its tokens (in GGUF "
                "pooling_type); load an embedding model"
            )
        for tokens in batches:
            if not tokens:
                raise InvalidParameter("a text of no tokens has no vector; leave it out")
            self._check_whole(tokens)
        return self._embed(batches)

    def rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        self.check_open()
        if not self.info.can_rerank:
            raise Unsupported(f"{self.info.path} ranks no texts: it has no classifier of one label; load a reranker")
        for tokens, first in zip(batches, firsts, strict=True):
            if not 0 < first <= len(tokens):
                raise InvalidParameter(f"a pair of {len(tokens)} tokens has no first text of {first}")
            self._check_whole(tokens)
        return self._rank(batches, firsts)

    def _check_whole(self, tokens: list[int]) -> None:
        """A text fits whole, and its tokens are in the vocabulary."""
        if len(tokens) > self.n_ctx:
            message = f"a text has {len(tokens)} tokens and {self.info.name} takes at most {self.n_ctx}; split it"
            raise ContextOverflow(message, needed=len(tokens), n_ctx=self.n_ctx)
        self._check_tokens(tokens)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for sequence in list(self.pool.open.values()):
                sequence.close()
            self._free()
            self.tokenizer.close(self._free_model)

    def check_open(self) -> None:
        """Raises Closed."""
        if self._closed:
            raise Closed("this model was closed")

    def _check_pass(self, steps: list[Step]) -> list[H]:
        """The sequences of the steps, which are all valid: a pass that is refused changes nothing."""
        sequences: dict[int, H] = {}
        count = rows = 0
        for step in steps:
            sequence, size = step.sequence, len(step.tokens)
            held = self.pool.open.get(getattr(sequence, "id", -1))
            if held is None or held is not sequence or held.id in sequences:
                if not isinstance(sequence, CheckedSequence):
                    raise BackendFailed("a pass holds a sequence of another backend")
                sequence.check_open()
                raise BackendFailed("a pass holds a sequence of another model, or one sequence twice")
            if not size:
                raise BackendFailed("a pass holds no tokens for one of its sequences")
            self._check_tokens(step.tokens)
            self.pool.check_room(held.length + size)
            sequences[held.id] = held
            if sequence.adapter and sequence.adapter not in self.adapters:
                raise BackendFailed(
                    f"a pass holds a sequence with the adapter {sequence.adapter!r}, which is not loaded"
                )
            count += size
            rows += size if step.logits == "all" else step.logits == "last"
        if not 1 <= count <= self.micro_batch:
            raise BackendFailed(f"a pass holds 1 to {self.micro_batch} tokens, not {count}")
        if rows > self.max_rows:
            raise BackendFailed(f"a pass gives at most {self.max_rows} rows of logits, not {rows}")
        return list(sequences.values())

    def _check_tokens(self, tokens: list[int]) -> None:
        n_vocab = self.info.n_vocab
        if min(tokens) < 0 or max(tokens) >= n_vocab:
            bad = next(token for token in tokens if not 0 <= token < n_vocab)
            raise InvalidParameter(f"token {bad} is outside the vocabulary of {n_vocab}")

    # What an engine does

    @abstractmethod
    def interrupt(self) -> None: ...

    @abstractmethod
    def _new_sequence(self, expected: int) -> H: ...

    @abstractmethod
    def _forward(self, sequences: list[H], steps: list[Step]) -> list[Rows | None]:
        """See `forward`: the sequences are those of the steps. Their lengths change when all is computed."""

    @abstractmethod
    def _embed(self, batches: list[list[int]]) -> Rows: ...

    def _rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        raise AssertionError("`info` says that it ranks nothing")

    def _free(self) -> None:
        """Free what computes. Called once."""

    def _free_model(self) -> None:
        """Free what the tokenizer needs, too. Called once, maybe from another thread (see `SharedTokenizer.close`)."""
