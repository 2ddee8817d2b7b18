"""EchoBackend: a deterministic fake model, for tests of edgellm and of programs built on it.

It keeps every rule of the `Backend` protocol and breaks what relies on more: rows are overwritten by the next pass, and
the logits depend on every cell of the sequence, so a cache that is reused wrongly shows in them.

    tokens   0-255 bytes   256 <|bos|>   257 <|eos|>   258 <|im_start|>   259 <|im_end|>   260 <|reply|>   261… unused
    cell     (token, hash); hash = mix(total of all hashes before it, position, token)
    score    of a text beside a query: which share of the query's pairs of neighbouring tokens it has
    logits   noise in [-1, 1) seeded by the total of all hashes, plus 12 for the token that the reply has next

The reply. In a ChatML prompt it is the content of the last message, then <|im_end|>. Any other prompt is answered by
<|reply|> (a control token, no text), the prompt without control tokens, and <|eos|>. `script` replaces the text.
A generation that ignores the end gets the reply again and again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import pairwise
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from edgellm import budget
from edgellm.backends.base import INSIDE, Buffer, ModelInfo, PassShape, Row, Rows, SamplingPlan, Step, Tokenizer
from edgellm.backends.checked import HEADER, CheckedBackend, CheckedSequence
from edgellm.backends.pool import Limits, Pool
from edgellm.errors import BackendFailed, Interrupted, InvalidParameter
from edgellm.params import DEFAULT_CTX, LoadParams
from edgellm.tokenizers.begin import begun

BOS, EOS, IM_START, IM_END, REPLY = range(256, 261)
CONTROLS = {"<|bos|>": BOS, "<|eos|>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END, "<|reply|>": REPLY}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
N_CTX_TRAIN, N_EMBD = 32768, 32
BOOST = 12.0  # what the next token of the reply has over the noise

_CELL = np.dtype([("token", "<u4"), ("hash", "<u8")])
_BITS = (1 << 64) - 1
_CONTROL_PATTERN = re.compile("(" + "|".join(map(re.escape, CONTROLS)) + ")")
_ASSISTANT = list(b"assistant\n")


class EchoTokenizer(Tokenizer):
    """One token per byte, and control tokens."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._names = {token: name.encode() for name, token in CONTROLS.items()}
        self.begin, self.end = (BOS,), ()

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        tokens: list[int] = []
        try:
            for part in _CONTROL_PATTERN.split(text) if special else [text]:
                control = CONTROLS.get(part) if special else None
                tokens += part.encode() if control is None else [control]
        except UnicodeEncodeError as error:
            raise InvalidParameter(f"the text is not valid Unicode: {error}") from error
        return begun(tokens, self.begin if bos else (), lambda token: self.piece(token, special=True))

    def piece(self, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        if not 0 <= token < self._n_vocab:
            raise InvalidParameter(f"token {token} is outside the vocabulary of {self._n_vocab}")
        if token < 256:
            return bytes([token])
        return self._names.get(token, b"<|unused%d|>" % token) if special else b""

    def joined(self, first: list[int], second: list[int]) -> tuple[list[int], int]:
        return [BOS, *first, EOS, *second, EOS], len(first) + 2

    def marks(self, template: str) -> set[str]:
        return set(CONTROLS)


class EchoSequence(CheckedSequence[Pool["EchoSequence"]]):
    """The cells of one sequence. `totals[i]` is the sum of the hashes before position i, modulo 2**64."""

    magic = b"ECH1"

    def __init__(self, pool: Pool[EchoSequence], expected: int = 0) -> None:
        super().__init__(pool, expected)
        self.tokens: list[int] = []
        self.hashes: list[int] = []
        self.totals: list[int] = [0]

    def append(self, token: int, hash: int | None = None) -> None:
        """Compute the next cell, or take its hash from a saved block."""
        if hash is None:
            hash = _mix(_mix(self.totals[-1] + self.length) + token)
        self.tokens.append(token)
        self.hashes.append(hash)
        self.totals.append((self.totals[-1] + hash) & _BITS)
        self.length += 1

    def _truncate(self, length: int) -> bool:
        del self.tokens[length:], self.hashes[length:], self.totals[length + 1 :]
        return True

    def _copy_to(self, twin: EchoSequence, length: int) -> None:
        twin.tokens, twin.hashes = self.tokens[:length], self.hashes[:length]
        twin.totals = self.totals[: length + 1]

    def _save(self, start: int, stop: int, head: bytes) -> Buffer:
        cells = np.empty(stop - start, _CELL)
        cells["token"], cells["hash"] = self.tokens[start:stop], self.hashes[start:stop]
        return head + cells.tobytes()

    def _load(self, blocks: list[Buffer], stops: list[int]) -> None:
        cells: list[tuple[int, int]] = []
        for block, stop in zip(blocks, stops, strict=True):
            count = stop - self.length - len(cells)
            if len(block) != HEADER.size + count * _CELL.itemsize:
                raise BackendFailed(f"a saved block of {len(block)} bytes is damaged, or not of an echo model")
            cells += np.frombuffer(block, _CELL, count, HEADER.size).tolist()
        for token, hash in cells:
            self.append(token, hash)


class EchoBackend(CheckedBackend[EchoSequence]):
    """See `edgellm.backends.base.Backend`.

    delay: seconds that every pass takes, in which `interrupt` wakes it. n_vocab: at least 261. script: the text of
    every reply; None echoes. A pass of more than `micro_batch` tokens is refused; one that is interrupted computes
    nothing.
    """

    name = "echo"
    threads = 1
    state_key = "echo"
    pass_shape = PassShape(align=4, shortest=8, rows_independent=False)  # more than it needs: what llama.cpp asks for

    def __init__(
        self,
        path: str = "echo",
        *,
        n_ctx: int = DEFAULT_CTX,
        micro_batch: int = 512,
        max_sequences: int = 8,
        n_vocab: int = 512,
        delay: float = 0.0,
        script: str | None = None,
    ) -> None:
        if n_vocab <= REPLY:
            raise InvalidParameter(f"n_vocab={n_vocab}: must be at least {REPLY + 1}, for the bytes and control tokens")
        info = ModelInfo(
            path=path,
            format="echo",
            architecture="echo",
            name="echo",
            n_vocab=n_vocab,
            n_ctx_train=N_CTX_TRAIN,
            n_embd=N_EMBD,
            n_layer=1,
            n_head=1,
            n_ff=N_EMBD,
            n_params=0,
            file_bytes=0,
            bits_per_weight=0.0,
            quantization="none",
            tensor_types={},
            kv_bytes_per_token=_CELL.itemsize,
            fingerprint=f"echo-{n_vocab}",
            stop_ids=frozenset({EOS, IM_END}),
            bos_id=BOS,
            eos_id=EOS,
            chat_template=CHATML,
            can_embed=True,
            can_rerank=True,
        )
        pool: Pool[EchoSequence] = Pool("echo", Limits(n_ctx, max_sequences, micro_batch, micro_batch))
        super().__init__(info, EchoTokenizer(n_vocab), pool)
        self._delay = delay
        self._script = None if script is None else list(script.encode())
        self._stop: SimpleQueue[None] = SimpleQueue()  # put by signal handlers, too
        self._rows: Rows = np.full((self.max_rows, n_vocab), np.nan, np.float32)

    def takes(self, plan: SamplingPlan) -> bool:
        return {name for name, _ in plan.filters} <= {"top_k", "top_p", "min_p"}

    def choose(self, steps: list[Step], plans: list[SamplingPlan]) -> list[int]:
        rows = self.forward([Step(step.sequence, step.tokens, "last") for step in steps])
        return [_chosen(row[0], plan) for row, plan in zip(rows, plans, strict=True) if row is not None]

    def interrupt(self) -> None:
        self._stop.put(None)

    def _new_sequence(self, expected: int) -> EchoSequence:
        return EchoSequence(self.pool, expected)

    def _forward(self, sequences: list[EchoSequence], steps: list[Step]) -> list[Rows | None]:
        with suppress(Empty):
            self._stop.get(timeout=self._delay)
            while not self._stop.empty():
                self._stop.get()
            raise Interrupted("the pass was interrupted")
        self._rows.fill(np.nan)  # whoever kept rows of an earlier pass finds nothing in them
        results: list[Rows | None] = []
        used = 0
        for step, sequence in zip(steps, sequences, strict=True):
            first = used
            for index, token in enumerate(step.tokens):
                sequence.append(token)
                if step.logits == "all" or (step.logits == "last" and index == len(step.tokens) - 1):
                    self._rows[used] = _noise(sequence.totals[-1], self.info.n_vocab)
                    self._rows[used, _next_token(sequence.tokens, self._script)] += BOOST
                    used += 1
            rows = self._rows[first:used]
            rows.flags.writeable = False
            results.append(rows if used > first else None)
        return results

    def _embed(self, batches: list[list[int]]) -> Rows:
        vectors = np.empty((len(batches), N_EMBD), np.float32)
        for vector, tokens in zip(vectors, batches, strict=True):
            sequence = EchoSequence(Pool("echo", self.pool.limits))
            for token in tokens:
                sequence.append(token)
            noise = _noise(sequence.totals[-1], N_EMBD)
            vector[:] = noise / np.linalg.norm(noise)
        return vectors

    def _rank(self, batches: list[list[int]], firsts: list[int]) -> Row:
        parts = [
            (_neighbours(each[1 : at - 1]), _neighbours(each[at:-1])) for each, at in zip(batches, firsts, strict=True)
        ]
        return np.array([len(asked & said) / max(1, len(asked)) for asked, said in parts], np.float32)


def _neighbours(tokens: list[int]) -> set[tuple[int, int]]:
    return set(pairwise(tokens))


def _chosen(row: NDArray[np.float32], plan: SamplingPlan) -> int:
    """The token of a plan, by sorting everything: see `Backend.choose`."""
    logits = row.astype(np.float64)
    for shift in plan.shifts:
        old = logits[shift.ids]
        new = np.where(old > 0, old / shift.repeat, old * shift.repeat) - shift.amounts
        logits[shift.ids] = np.minimum(new, np.finfo(np.float32).max).astype(np.float32)
    if plan.mask is not None:
        allowed = np.unpackbits(plan.mask.astype("<u4").view(np.uint8), count=logits.size, bitorder="little")
        logits[allowed == 0] = -np.inf
    order = np.lexsort((np.arange(logits.size), -logits))
    order = order[logits[order] > -np.inf]
    if not order.size:
        return -1
    if plan.temperature == 0:
        return int(order[0])
    for name, value in plan.filters:
        weights = np.exp(logits[order] - logits[order[0]])
        if name == "top_k":
            order = order[: int(value)]
        elif name == "top_p":
            order = order[: int(np.searchsorted(np.cumsum(weights), value * weights.sum())) + 1]
        else:
            order = order[weights >= value]
    reached = np.cumsum(np.exp((logits[order] - logits[order[0]]) / plan.temperature))
    return int(order[np.searchsorted(reached, plan.point * reached[-1], side="right")])


def open_echo(path: str, params: LoadParams) -> EchoBackend:
    """The echo model as `backend="echo"` opens it. No file is read: `path` only appears in `info`."""
    n_ctx, sequences = params.ctx or DEFAULT_CTX, params.max_sequences or budget.SEQUENCES[0]
    return EchoBackend(path, n_ctx=n_ctx, micro_batch=params.micro_batch, max_sequences=sequences)


def _next_token(tokens: list[int], script: list[int] | None) -> int:
    """The token that the reply has next, after all of `tokens`."""
    mark = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i] in (REPLY, IM_START)), None)
    if mark is None:
        return REPLY
    if tokens[mark] == REPLY:
        prompt, begin, end = tokens[:mark], mark + 1, EOS
    elif tokens[mark + 1 : mark + 1 + len(_ASSISTANT)] == _ASSISTANT:
        prompt, begin, end = _last_message(tokens[:mark]), mark + 1 + len(_ASSISTANT), IM_END
    else:
        return REPLY
    text = [token for token in prompt if token < 256] if script is None else script
    reply = [*text, end]
    return reply[(len(tokens) - begin) % len(reply)]


def _last_message(tokens: list[int]) -> list[int]:
    """The content of the last ChatML message: what follows its first line, up to its end."""
    start = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i] == IM_START), -1)
    message = tokens[start + 1 :]
    if IM_END in message:
        message = message[: message.index(IM_END)]
    return message[message.index(10) + 1 :] if 10 in message else message


def _mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, 2014): 64 bits to 64 bits, each depending on all."""
    value = (value + 0x9E3779B97F4A7C15) & _BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _BITS
    return value ^ (value >> 31)


def _noise(seed: int, size: int) -> NDArray[np.float64]:
    """Numbers in [-1, 1) that depend on every bit of `seed`: SplitMix64 started there."""
    values = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(_mix(seed))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    noise: NDArray[np.float64] = (values >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return noise
