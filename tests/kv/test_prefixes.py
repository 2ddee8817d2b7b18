"""The prefix cache over the echo backend: longest match, shared blocks, eviction, private conversations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.backends.base import Sequence, Step
from edgellm.backends.echo import EchoBackend
from edgellm.engine.engine import Engine
from edgellm.engine.reuse import BEYOND
from edgellm.events import CacheReport
from edgellm.kv.blocks import root_key
from edgellm.kv.memory import OVERHEAD, MemoryTier
from edgellm.kv.prefixes import NOTHING, PUBLIC, PrefixCache, common_prefix
from edgellm.kv.store import BlockStore
from edgellm.params import GenerateParams

ROOT = root_key("model")


@pytest.fixture
def backend() -> Iterator[EchoBackend]:
    made = EchoBackend(n_ctx=4096)
    yield made
    made.close()


def cache(budget: int = 1 << 30, store: BlockStore | None = None) -> PrefixCache:
    return PrefixCache(ROOT, MemoryTier(budget), store, label="echo")


def fed(backend: EchoBackend, tokens: list[int]) -> Sequence:
    sequence = backend.new_sequence()
    for at in range(0, len(tokens), 512):
        backend.forward([Step(sequence, tokens[at : at + 512], "none")])
    return sequence


def logits(backend: EchoBackend, sequence: Sequence, tokens: list[int]) -> NDArray[np.float32]:
    rows = backend.forward([Step(sequence, tokens, "last")])[0]
    assert rows is not None
    return rows[0].copy()


def park(known: PrefixCache, backend: EchoBackend, tokens: list[int], *, owner: bytes = PUBLIC) -> None:
    sequence = fed(backend, tokens)
    known.park(tokens, sequence, "words", owner=owner)
    sequence.close()


def text(seed: int, n: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, n)]


def test_what_was_parked_comes_back_with_the_same_logits(backend: EchoBackend) -> None:
    known, tokens = cache(), text(0, 700)
    park(known, backend, tokens)
    for length in (1, 100, 256, 257, 512, 699, 700):
        match = known.match([*tokens[:length], 999 % 256, 1, 2])
        assert match.length >= length
        sequence = backend.new_sequence()
        loaded = known.load(match, length, sequence)
        assert (sequence.length, loaded, known.beyond_memory(match)) == (length, True, [])
        fresh = fed(backend, tokens[:length])
        assert np.array_equal(logits(backend, sequence, [7, 8]), logits(backend, fresh, [7, 8]))
        sequence.close()
        fresh.close()


def test_a_block_of_a_larger_context_is_no_difference(tmp_path: Path) -> None:
    prompt = text(3, 100)

    def ask(n_ctx: int, prompt: list[int]) -> CacheReport:
        store = BlockStore(tmp_path / "store")
        known = PrefixCache(ROOT, MemoryTier(1 << 20), store, label="echo", room=n_ctx)
        engine = Engine(EchoBackend(n_ctx=n_ctx), known)
        try:
            return engine.submit(prompt, GenerateParams(max_tokens=1)).result().cache
        finally:
            engine.close()

    ask(512, [*prompt, *text(4, 100)])  # one block of 200 tokens
    small = ask(128, prompt)
    assert (small.computed, small.broke_at, small.expected, small.reason) == (len(prompt), None, "", BEYOND)
    assert ask(128, [*prompt, 7]).from_disk >= 64  # the shorter block that came of it
    assert ask(512, [*prompt, 9]).from_disk >= 64
    assert "differs at token 0" in ask(128, [1 + prompt[0] % 200, *prompt]).reason


@settings(max_examples=60)
@given(st.data())
def test_the_match_is_the_longest_there_is(data: st.DataObject) -> None:
    """Conversations over two letters, so that they share beginnings of every length."""
    backend, known = EchoBackend(n_ctx=4096), cache()
    parked: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        base = data.draw(st.sampled_from([[], *parked]))
        cut = data.draw(st.integers(0, len(base)))
        tokens = base[:cut] + data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=600))
        park(known, backend, tokens)
        parked.append(tokens)
    base = data.draw(st.sampled_from(parked))
    prompt = base[: data.draw(st.integers(0, len(base)))] + data.draw(st.lists(st.integers(0, 1), max_size=20))
    match = known.match(prompt)
    assert match.length == max(common_prefix(prompt, tokens) for tokens in parked)
    sequence = backend.new_sequence()
    known.load(match, match.length, sequence)
    assert sequence.length == match.length
    fresh = fed(backend, prompt[: match.length])
    assert np.array_equal(logits(backend, sequence, [5]), logits(backend, fresh, [5]))
    backend.close()


def test_conversations_that_share_a_beginning_share_its_bytes(backend: EchoBackend) -> None:
    known, system = cache(), text(1, 1000)
    for i in range(64):
        park(known, backend, system + text(100 + i, 50))
    per_token = 12  # bytes of a cell of the echo backend
    unique = (1000 + 64 * 50) * per_token
    assert known.memory.nbytes <= 1.1 * unique


def test_a_growing_conversation_stores_each_token_once(backend: EchoBackend) -> None:
    known, tokens = cache(), text(2, 2000)
    for stop in range(100, 2001, 100):
        park(known, backend, tokens[:stop])
    assert known.memory.nbytes <= 1.1 * 2000 * 12
    assert known.match(tokens).length == 2000


def test_eviction_takes_old_leaves_before_shared_prefixes(
    backend: EchoBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.kv.memory.OVERHEAD", 0)
    known, system = cache(budget=12 * 1500), text(3, 800)
    tails = [text(200 + i, 200) for i in range(6)]
    for tail in tails:
        park(known, backend, system + tail)
        assert known.memory.nbytes <= 12 * 1500
    assert known.match(system + tails[-1]).length == 1000
    # The first conversation's own tokens lie in the block that all others continue from inside; the second's went.
    assert known.match(system + tails[0]).length == 1000
    assert known.match(system + tails[1]).length in range(800, 804)
    tiny = cache(budget=10)
    park(tiny, backend, system)
    assert tiny.memory.nbytes == 0


def test_private_conversations_are_found_by_private_ones_only(backend: EchoBackend, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "kv")
    known, tokens = cache(store=store), text(4, 300)
    park(known, backend, tokens, owner=b"one")
    assert known.match(tokens).length == 0
    assert known.match(tokens, owner=b"one").length == 300
    assert known.match(tokens, owner=b"another") == NOTHING
    held = known.memory.nbytes
    park(known, backend, tokens, owner=b"another")
    known.forget(b"one")
    assert (known.match(tokens, owner=b"one"), known.memory.nbytes) == (NOTHING, held)
    assert known.match(tokens, owner=b"another").length == 300
    assert store.flush(10)
    assert store.stats().blocks == 0
    known.close()


def test_next_known_is_what_followed(backend: EchoBackend) -> None:
    known, tokens = cache(), text(5, 600)
    park(known, backend, tokens)
    assert known.match([*tokens[:300], 999]).next_known[:5] == tokens[300:305]
    assert known.match([999]).next_known[:5] == tokens[:5]
    assert known.match([*tokens, 1, 2, 3]).next_known == []
    assert known.match(tokens[:512]).next_known == []
    assert known.match([*tokens[:256], 999]).next_known[:5] == tokens[256:261]


def test_state_survives_on_disk_and_damage_is_computed_again(backend: EchoBackend, tmp_path: Path) -> None:
    tokens = text(6, 700)
    first = cache(store=BlockStore(tmp_path / "kv"))
    park(first, backend, tokens)
    first.close()

    second = cache(store=BlockStore(tmp_path / "kv"))
    match = second.match(tokens)
    assert match.length == 700
    sequence = backend.new_sequence()
    assert second.beyond_memory(match) == [(0, 256), (256, 512), (512, 700)]
    assert second.load(match, 600, sequence)
    assert sequence.length == 600
    fresh = fed(backend, tokens[:600])
    assert np.array_equal(logits(backend, sequence, [1]), logits(backend, fresh, [1]))
    again = backend.new_sequence()
    assert second.beyond_memory(match) == []
    assert second.load(second.match(tokens), 600, again)
    second.close()

    files = sorted((tmp_path / "kv").rglob("*.kv"), key=lambda path: path.stat().st_size)
    spoilt = bytearray(files[-1].read_bytes())
    spoilt[-1] ^= 1
    files[-1].write_bytes(spoilt)
    third = cache(store=BlockStore(tmp_path / "kv"))
    half = backend.new_sequence()
    assert not third.load(third.match(tokens), 600, half)
    assert half.length in (0, 256)
    fresh = fed(backend, tokens[: half.length] or tokens[:1])
    if half.length:
        assert np.array_equal(logits(backend, half, [1]), logits(backend, fresh, [1]))
    third.close()


def test_small_blocks_are_charged_for_their_overhead(backend: EchoBackend) -> None:
    known = cache(budget=100 * OVERHEAD)
    for i in range(200):
        park(known, backend, text(1000 + i, 3))
    assert 90 < len(known.memory._held) < 100
    assert known.match(text(1199, 3)).length == 3
    assert known.match(text(1000, 3)).length < 3
