"""The protocols between the engine and whatever computes: Backend, Sequence, Tokenizer.

    Backend ── forward(steps) ──▶ logits rows
       │ new_sequence()
       ▼
    Sequence   the KV state of one token sequence: truncate, fork, save, load

A backend is owned by one thread (the engine's); only `interrupt()` may be called from another. `tokenizer` and `info`
are read-only and safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # (rows, n_vocab) float32
Row = NDArray[np.float32]  # (n,) float32
Buffer = bytes | memoryview  # whose len() is its bytes


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of an opened artifact.

    n_params counts weights; file_bytes and bits_per_weight are measured on the file. tensor_types maps a storage type
    to its bytes in the file; quantization is the one that most bytes of the layers have. kv_bytes_per_token is for the
    KV type in use, summed over layers (full-size windows). fingerprint identifies the weights and their metadata.
    stop_ids end an answer. license and base_models (what it was made from) are as the file states them. engine is the
    name of the backend that runs it here, and engine_reason says why that one.
    """

    path: str
    format: str
    architecture: str
    name: str
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: int
    n_ff: int
    n_params: int
    file_bytes: int
    bits_per_weight: float
    quantization: str
    tensor_types: Mapping[str, int]
    kv_bytes_per_token: int
    fingerprint: str
    stop_ids: frozenset[int] = frozenset()
    bos_id: int | None = None
    eos_id: int | None = None
    chat_template: str | None = None
    license: str | None = None
    base_models: tuple[str, ...] = ()
    can_truncate: bool = True
    can_fork: bool = True
    can_embed: bool = False
    can_rerank: bool = False
    can_generate: bool = True
    engine: str = ""
    engine_reason: str = ""


INSIDE = -1  # in place of the token before another one: any that a text goes on behind


class Tokenizer(Protocol):
    """Text to token ids and back. Safe from any thread; hashable, and open to weak references.

    begin, end: the tokens that the model asks for around a text. A prompt has those of the beginning alone: it goes on.
    That of a backend is a `SharedTokenizer`.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids of `text`. special: parse control tokens written in it. bos: put `begin` in front, unless the text
        begins so already, be it behind white space."""
        ...

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        """The bytes a token stands for; control tokens are empty unless `special`.

        before: the token in front of it, None: none. Where a text begins there, as behind nothing or behind a control
        token, the space that `encode` puts in front of a text is left out.
        """
        ...

    def joined(self, first: list[int], second: list[int]) -> tuple[list[int], int]:
        """The tokens of two texts as one, with what the model asks for around and between them, and how many of these
        are of the first kind: those behind are of the second (token types 0 and 1). Raises Unsupported where nothing
        tells the two apart."""
        ...

    def marks(self, template: str) -> set[str]:
        """The texts that `encode` takes for one token wherever they stand in a text with `special`: those of all
        control tokens; and of tokens that are text and are taken so all the same, those that stand in `template`, which
        gives them a meaning."""
        ...


def text_of(tokenizer: Tokenizer, tokens: Iterable[int], *, special: bool = False, before: int | None = None) -> str:
    """The text of tokens that follow the token `before`. Invalid UTF-8 becomes U+FFFD."""
    pieces = []
    for token in tokens:
        pieces.append(tokenizer.piece(token, special=special, before=before))
        before = token
    return b"".join(pieces).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A saved block in an open file. head: its first bytes, of which there are enough to tell what it is.

    descriptor: of the file, at the position behind `head`; nbytes, crc: of the block, its length and CRC-32.
    """

    head: bytes
    descriptor: int
    nbytes: int
    crc: int


class Sequence(Protocol):
    """The KV state of ONE token sequence; everything stateful lives here.

    reads_files: `load` takes saved files, too, and verifies them as it reads: what is wrong with one is BackendFailed.

    adapter: the name of the one that it is computed with; "" none. It is set before the first token.
    """

    reads_files: ClassVar[bool] = False
    adapter: str

    @property
    def length(self) -> int:
        """Tokens it holds."""
        ...

    def truncate(self, length: int) -> bool:
        """Keep the first `length` tokens. False: this architecture cannot; the caller feeds it again."""
        ...

    def fork(self, length: int | None = None) -> Sequence:
        """A second sequence with the same first `length` tokens; shares memory where the engine can."""
        ...

    def save(self, start: int, stop: int) -> Buffer:
        """The state of positions [start, stop) as bytes that `load` takes back exactly."""
        ...

    def load(self, blocks: Many[Buffer | SavedFile]) -> None:
        """Append saved blocks, in order, to the end of this sequence. All of them, or none and an error."""
        ...

    def close(self) -> None:
        """Free its cells. Closing twice is harmless."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One sequence's share of a pass: tokens appended at `sequence.length`, and whose logits are wanted."""

    sequence: Sequence
    tokens: list[int]
    logits: Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class PassShape:
    """How passes are formed, so that a token has the same logits whatever else is computed, and nothing is held up.

    align, shortest: a pass over a prompt starts at a multiple of `align` tokens, and has `shortest` or more unless the
    whole prompt is shorter. rows_independent: what is computed for a prompt does not depend on others beside it, and
    several may share a pass. mixes_prefill_and_decode: prompts and answers may share one, at no loss to either.
    limit: sequences that decode at once; None: all that are open. takes_turns: each row looks at the cells of all
    sequences, so that together they can be slower than in turns, and state can be saved at any time; how many should
    decode at once is then learned. all_rows: a pass can give the logits of all its tokens. one_adapter: the sequences
    of a pass have the same one.
    """

    align: int = 1
    shortest: int = 1
    rows_independent: bool = True
    mixes_prefill_and_decode: bool = False
    limit: int | None = None
    takes_turns: bool = False
    all_rows: bool = True
    one_adapter: bool = False

    @property
    def exact(self) -> bool:
        """Whether a row has the same bits in every pass: alone, behind others of its sequence, beside another one's."""
        return self.align == self.shortest == 1 and self.rows_independent

    def prefill_size(self, pending: int, most: int) -> int:
        """Tokens of the next pass over a prompt of which `pending` are to be fed, `most` at once: what it leaves is no
        shorter than `shortest`."""
        if pending <= most:
            return pending
        return most if pending - most >= self.shortest else most - self.shortest

    def reusable(self, matched: int, prompt: int) -> int:
        """How many of `matched` known tokens of a `prompt` (both in tokens) to keep: the last one is fed again."""
        return max(0, min(matched, prompt - self.shortest)) // self.align * self.align


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """Lowers the logits of distinct `ids` (n,): first those above 0 are divided by `repeat`, and others multiplied by
    it, then `amounts` (n,) float64 are subtracted; inf forbids. The result is rounded to float32, the largest one at
    most."""

    ids: NDArray[np.int64]
    amounts: NDArray[np.float64]
    repeat: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SamplingPlan:
    """How one token is chosen from a row of logits, in plain numbers, for backends that choose themselves. The numbers
    are used in the order of the fields; what they mean is done by `edgellm.engine.sampling.choose`.

    mask (n_vocab / 32, rounded up): bit i % 32 of word i / 32, from the lowest on, allows token i; None allows all.
    temperature: 0 takes the likeliest token, the smallest id of equal ones, and nothing else counts. filters: the
    options that are on, in their order, with their values. point: in [0, 1), where in the distribution of what is left,
    by falling logit, then by id, the token is."""

    shifts: tuple[Shift, ...]
    mask: NDArray[np.uint32] | None
    temperature: float
    filters: tuple[tuple[str, float], ...] = ()
    point: float = 0.0


class Backend(Protocol):
    """An opened model that computes."""

    name: str
    info: ModelInfo
    tokenizer: Tokenizer  # closed with the backend
    n_ctx: int  # tokens one sequence may hold
    max_sequences: int  # sequences that may be open at once
    micro_batch: int  # largest number of tokens in one pass
    max_rows: int  # largest number of logits rows in one pass
    pass_shape: PassShape
    threads: int
    adapters: Mapping[str, str]  # that sequences may have, by name: what identifies their weights and strength
    state_key: str  # names all that shapes saved state beside the weights: engine, build, KV type, kernels

    def new_sequence(self, expected: int = 0) -> Sequence:
        """An empty sequence that is expected to hold so many tokens (a hint, to make room for them at once).

        Raises Busy when `max_sequences` are open.
        """
        ...

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        """One batched pass of at most `micro_batch` tokens; None where logits are "none".

        Rows are valid until the next forward, and read-only.

        Raises Interrupted (read every length again: what was computed whole stays), ContextOverflow, BackendFailed,
        Closed, Busy when the memory that all sequences share is full (nothing was computed; close or shorten one), and
        NotEnoughMemory when the system has none.
        """
        ...

    def takes(self, plan: SamplingPlan) -> bool:
        """Whether `choose` carries out such a plan; where not, rows are asked for and `engine.sampling` does."""
        ...

    def choose(self, steps: list[Step], plans: list[SamplingPlan]) -> list[int]:
        """A pass, and for each step the token that its plan, which is taken, makes of the row after the last of its
        tokens; -1 where none is possible. The rows stay where they are. Raises what `forward` raises."""
        ...

    def embed(self, batches: list[list[int]]) -> Rows:
        """Pooled embeddings of token lists: (n, n_embd) float32."""
        ...

    def rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        """Scores of pairs of texts, as `Tokenizer.joined` gives them: (n,) float32."""
        ...

    def interrupt(self) -> None:
        """From any thread: the pass in flight, or else the next one, raises Interrupted."""
        ...

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        ...
