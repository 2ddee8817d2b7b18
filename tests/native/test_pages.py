"""KvPages and KvTable against a model of them in Python: what is shared, what is written, what is left."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
import zlib
from contextlib import ExitStack

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from edgellm import _native

PAGE = 32  # tokens
LAYERS, HEADS, SIZE = 2, 3, 16
BYTES = {"int16": 2, "int8": 1, "f32": 4}
TYPES = sorted(BYTES)
Tokens = NDArray[np.uint8]  # (tokens, LAYERS * HEADS, bytes of a token in a head), as parts of pages are saved


def pages(kv_type: str = "int16", most: int = 1000) -> _native.KvPages:
    return _native.KvPages(LAYERS, HEADS, SIZE, kv_type, most)


def random_tokens(kv_type: str, count: int, seed: int) -> Tokens:
    """Tokens whose numbers are finite."""
    random = np.random.default_rng(seed)
    shape = (count, LAYERS * HEADS, 2 * SIZE)
    if kv_type == "f32":
        return random.standard_normal(shape, np.float32).view(np.uint8)
    codes, scales = random.integers(-127, 128, shape, np.dtype(kv_type)), random.random((*shape[:2], 2), np.float32)
    return np.concatenate([codes.view(np.uint8), scales.view(np.uint8)], axis=2)


def as_page(kv_type: str, tokens: Tokens) -> bytes:
    """A whole page: keys (size / 2, 32, 2), values (16, size, 2), scales, for each layer and head."""
    n = SIZE * BYTES[kv_type]
    keys, values, scales = np.split(np.moveaxis(tokens, 0, 1), [n, 2 * n], axis=2)  # (layers * heads, 32, bytes)
    keys = keys.reshape(-1, PAGE, SIZE // 2, 2 * BYTES[kv_type]).transpose(0, 2, 1, 3)
    values = values.reshape(-1, PAGE // 2, 2, SIZE, BYTES[kv_type]).transpose(0, 1, 3, 2, 4)
    scales = scales.reshape(LAYERS * HEADS, PAGE, scales.shape[2] // 4, 4).transpose(0, 2, 1, 3)
    return np.concatenate([part.reshape(LAYERS * HEADS, -1) for part in (keys, values, scales)], axis=1).tobytes()


def saved(kv_type: str, tokens: Tokens, start: int) -> bytes:
    """Tokens of the positions from `start` on, as a table saves them."""
    out, at = [], 0
    while at < len(tokens):
        whole = (start + at) % PAGE == 0 and len(tokens) - at >= PAGE
        count = PAGE if whole else 1
        part = tokens[at : at + count]
        out.append(as_page(kv_type, part) if whole else part.tobytes())
        at += count
    return b"".join(out)


def descriptor_of(state: bytes, opened: ExitStack) -> int:
    """Of a file that holds a byte and then the state, at the state."""
    file = opened.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
    file.write(b"x" + state)
    file.seek(1)
    return file.fileno()


class Model:
    """What a table should hold. pages: identities of pages, by which those that are shared are counted."""

    def __init__(self, table: _native.KvTable, tokens: Tokens, pages: list[object]) -> None:
        self.table, self.tokens, self.pages = table, tokens, pages


class Tables(RuleBasedStateMachine):
    """Random calls on tables that share pages, of which there are few."""

    @initialize(kv_type=st.sampled_from(TYPES))
    def open(self, kv_type: str) -> None:
        self.kv_type, self.pool = kv_type, pages(kv_type, 24)
        self.models: list[Model] = []
        self.begin()

    @rule()
    @precondition(lambda self: len(self.models) < 5)
    def begin(self) -> None:
        self.models.append(Model(_native.KvTable(self.pool), random_tokens(self.kv_type, 0, 0), []))

    @rule(which=st.integers(0, 99), length=st.integers(0, 400))
    def reserve(self, which: int, length: int) -> None:
        model = self.models[which % len(self.models)]
        if (after := self.reserved(model, length)) is None:
            with pytest.raises(_native.KvFull, match="24 pages"):
                model.table.reserve(length)
        else:
            model.table.reserve(length)
            model.pages = after

    @rule(
        which=st.integers(0, 99),
        counts=st.lists(st.integers(0, 100), max_size=4),
        seed=st.integers(0, 2**32),
        in_file=st.integers(0, 15),
        damaged=st.booleans(),
    )
    def load(self, which: int, counts: list[int], seed: int, in_file: int, damaged: bool) -> None:
        model = self.models[which % len(self.models)]
        tokens = random_tokens(self.kv_type, sum(counts), seed)
        with ExitStack() as opened:
            blocks: list[bytes | _native.StateInFile] = []
            stops, at, crc = [], 0, 0
            for i, count in enumerate(counts):
                state = saved(self.kv_type, tokens[at : at + count], len(model.tokens) + at)
                at += count
                stops.append(len(model.tokens) + at)
                if in_file >> i & 1:
                    crc = zlib.crc32(state, 7) ^ damaged
                    blocks.append((descriptor_of(state, opened), len(state), 7, crc))
                else:
                    blocks.append(state)
            after = self.reserved(model, len(model.tokens) + at)
            if after is None:
                with pytest.raises(_native.KvFull):
                    model.table.load(blocks, stops, 2)
            elif crc and damaged:
                with pytest.raises(ValueError, match="checksum"):
                    model.table.load(blocks, stops, 2)
                model.pages = after[: -(-len(model.tokens) // PAGE)]
            else:
                model.table.load(blocks, stops, 2)
                model.tokens, model.pages = np.concatenate([model.tokens, tokens]), after

    @rule(which=st.integers(0, 99), part=st.floats(0, 1))
    def truncate(self, which: int, part: float) -> None:
        model = self.models[which % len(self.models)]
        length = int(len(model.tokens) * part)
        model.table.truncate(length)
        model.tokens, model.pages = model.tokens[:length], model.pages[: -(-length // PAGE)]

    @rule(which=st.integers(0, 99), part=st.floats(0, 1))
    @precondition(lambda self: len(self.models) < 5)
    def fork(self, which: int, part: float) -> None:
        model = self.models[which % len(self.models)]
        length = int(len(model.tokens) * part)
        twin = model.table.fork(length)
        self.models.append(Model(twin, model.tokens[:length], model.pages[: -(-length // PAGE)]))

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: len(self.models) > 1)
    def close(self, which: int) -> None:
        self.models.pop(which % len(self.models)).table.close()

    @rule(which=st.integers(0, 99), cuts=st.lists(st.floats(0, 1), max_size=4))
    def save(self, which: int, cuts: list[float]) -> None:
        model = self.models[which % len(self.models)]
        edges = [0, *sorted(int(len(model.tokens) * cut) for cut in cuts), len(model.tokens)]
        for start, stop in itertools.pairwise(edges):
            expected = saved(self.kv_type, model.tokens[start:stop], start)
            assert model.table.save(start, stop, b"head") == b"head" + expected

    @invariant()
    def all_is_as_expected(self) -> None:
        assert self.pool.used == len({id(page) for model in self.models for page in model.pages})
        for model in self.models:
            assert model.table.length == len(model.tokens)
            assert model.table.save(0, model.table.length) == saved(self.kv_type, model.tokens, 0)

    def reserved(self, model: Model, length: int) -> list[object] | None:
        """Its pages after `reserve`, None when there are not enough."""
        if length <= (here := len(model.tokens)):
            return model.pages
        others = {id(page) for each in self.models if each is not model for page in each.pages}
        after = list(model.pages)
        for at in range(here // PAGE, -(-length // PAGE)):
            after[at : at + 1] = [after[at] if at < len(after) and id(after[at]) not in others else object()]
        # A page that is left to others stays used; while it is copied both are.
        new = len({id(page) for page in after} - {id(page) for page in model.pages})
        return after if self.pool.used + new <= self.pool.most else None

    def teardown(self) -> None:
        for model in self.models:
            model.table.close()
        assert self.pool.used == 0


Tables.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTables = Tables.TestCase


@pytest.mark.parametrize("kv_type", TYPES)
def test_the_size_of_a_page(kv_type: str) -> None:
    scales = 0 if kv_type == "f32" else 8
    assert pages(kv_type).page_bytes == PAGE * LAYERS * HEADS * (2 * SIZE * BYTES[kv_type] + scales)


@pytest.mark.parametrize(
    ("layers", "heads", "size", "kv_type"),
    [(0, 1, 16, "int16"), (1, 0, 16, "int16"), (1, 1, 0, "int16"), (1, 1, 24, "int16"), (1, 1, 272, "int16"),
     (1, 1, 16, "f16"), (2**40, 1, 16, "int16"), (1, 2**40, 16, "int16")],
)  # fmt: skip
def test_shapes_that_cannot_be(layers: int, heads: int, size: int, kv_type: str) -> None:
    with pytest.raises(ValueError, match=r"layers|head|f32"):
        _native.KvPages(layers, heads, size, kv_type, 8)


def test_forks_share_their_pages() -> None:
    pool = pages()
    table = _native.KvTable(pool)
    tokens = random_tokens("int16", 2000, 1)
    table.load([saved("int16", tokens, 0)], [2000])
    assert pool.used == 63
    forks = [table.fork(2000) for _ in range(64)]
    assert pool.used == 63
    for i, fork in enumerate(forks):
        fork.load([saved("int16", random_tokens("int16", 20, i), 2000)], [2020])  # the last page and one more
    assert pool.used == 63 + 64 * 2
    assert all(fork.save(0, 2000) == table.save(0, 2000) for fork in forks)
    del forks, fork
    gc.collect()
    assert pool.used == 63


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 3e38])
def test_what_attention_cannot_bear_is_not_loaded(kv_type: str, fill: float) -> None:
    pool = pages(kv_type)
    table = _native.KvTable(pool)
    state = np.full(40 * pool.page_bytes // PAGE // 4, fill, np.float32).tobytes()
    table.load([state], [40])
    kept, state = table.save(0, 40), bytearray(state)
    if kv_type == "f32":
        assert kept == (state if fill == 3e38 else bytes(len(state)))
        return
    codes = 2 * SIZE * BYTES[kv_type]
    page = np.frombuffer(kept[: pool.page_bytes], np.uint8).reshape(LAYERS * HEADS, -1)
    part = np.frombuffer(kept[pool.page_bytes :], np.uint8).reshape(8 * LAYERS * HEADS, -1)
    assert page[:, : PAGE * codes].tobytes() + part[:, :codes].tobytes() == state[: 40 * LAYERS * HEADS * codes]
    assert not page[:, PAGE * codes :].any()
    assert not part[:, codes:].any()


def test_saved_state_of_another_size_or_place() -> None:
    pool = pages()
    table = _native.KvTable(pool)
    token = pool.page_bytes // PAGE
    for size in (0, token - 1, token + 1):
        with pytest.raises(ValueError, match=f"{token} bytes, not {size}"):
            table.load([bytes(size)], [1])
    with pytest.raises(ValueError, match="every block"):
        table.load([bytes(token)], [1, 2])
    for stops in ([1, 0], [1, 2**63], [2**63, 2**64 - 1]):
        with pytest.raises(ValueError, match=r"positions|tokens"):
            table.load([bytes(token)] * 2, stops)
    table.load([memoryview(bytes(3 + token))[3:]], [1])
    for start, stop in ((0, 2), (1, 0), (2, 2)):
        with pytest.raises(ValueError, match="positions"):
            table.save(start, stop)
    with pytest.raises(ValueError, match="longer"):
        table.truncate(2)
    with pytest.raises(ValueError, match="longer"):
        table.fork(2)
    assert table.length == pool.used == 1


def test_state_in_files_that_are_not_whole() -> None:
    pool = pages()
    table = _native.KvTable(pool)
    table.load([saved("int16", random_tokens("int16", 40, 1), 0)], [40])
    before, more = table.save(0, 40), saved("int16", random_tokens("int16", 300, 2), 40)
    with ExitStack() as opened:
        sink = opened.enter_context(open(os.devnull, "wb")).fileno()
        nan = np.full(len(more) // 4, np.nan, np.float32).tobytes()
        for file, error, words in (
            ((descriptor_of(more[:-1], opened), len(more), 0, zlib.crc32(more)), ValueError, "truncated"),
            ((descriptor_of(nan, opened), len(more), 0, zlib.crc32(more)), ValueError, "checksum"),
            ((descriptor_of(more, opened), len(more) - 1, 0, zlib.crc32(more)), ValueError, "bytes, not"),
            ((sink, len(more), 0, zlib.crc32(more)), OSError, "saved state"),  # which cannot be read
        ):
            with pytest.raises(error, match=words):
                table.load([file], [340], 2)
            assert (table.length, pool.used, table.save(0, 40)) == (40, 2, before)


def test_more_pages_than_there_are() -> None:
    pool = pages(most=3)
    table = _native.KvTable(pool)
    table.reserve(96)
    for length in (97, 10**9, 2**64 - 1):
        with pytest.raises(_native.KvFull, match="3 of 3 pages"):
            table.reserve(length)
    with pytest.raises(_native.KvFull):
        _native.KvTable(pool).reserve(1)
    table.truncate(0)
    assert pool.used == 0


def test_pages_without_a_bound() -> None:
    pool = pages(most=2**64 - 1)
    table = _native.KvTable(pool)
    table.reserve(33)
    assert pool.used == 2


def test_memory_is_given_back() -> None:
    pool = _native.KvPages(16, 8, 64, "int16", 1000)
    tables = [_native.KvTable(pool) for _ in range(10)]
    for table in tables:
        table.reserve(40 * PAGE)
    assert pool.nbytes >= 400 * pool.page_bytes
    for table in tables:
        table.close()
    assert 0 < pool.nbytes <= 64 << 20


def test_a_table_that_was_closed() -> None:
    table = _native.KvTable(pages())
    table.load([bytes(pages().page_bytes)], [32])
    table.close()
    table.close()
    assert table.length == 0
    for call in (lambda: table.reserve(1), lambda: table.truncate(0), lambda: table.fork(0), lambda: table.save(0, 0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()
