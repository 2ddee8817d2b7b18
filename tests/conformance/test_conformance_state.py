"""What a sequence holds: shortened, forked, saved and restored, it goes on with the logits of a fresh one, bit for bit.

The passes keep the shape that the engine's scheduler promises, and only one sequence holds tokens where bits are
compared: beside another one its state may lie elsewhere, and sums round in another order.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from backend_cases import CTX, Case, feed, fresh, prompt

from edgellm.backends.base import Backend
from edgellm.backends.echo import EchoBackend
from edgellm.errors import BackendFailed, ContextOverflow, Unsupported

TOKENS = prompt(300)
OTHERS = prompt(40, seed=1)
ONLY = "generates"


@pytest.mark.parametrize("cut", [0, 8, 52, 124, 200, 280])
def test_a_shortened_sequence_goes_on_like_a_fresh_one(opened: Backend, cut: int) -> None:
    shorter = fresh(opened, TOKENS[: cut + 20])
    longer = fresh(opened, [*TOKENS[:cut], *OTHERS[:32]])
    sequence = opened.new_sequence()
    feed(opened, sequence, [*TOKENS[:cut], *OTHERS[:20]])
    if opened.info.can_truncate:
        assert sequence.truncate(cut)
        assert sequence.length == cut
        assert np.array_equal(feed(opened, sequence, TOKENS[cut : cut + 20]), shorter)
    else:
        assert not sequence.truncate(cut + 1)
        assert sequence.length == cut + 20
        assert np.array_equal(feed(opened, sequence, OTHERS[20:32]), longer)
    assert sequence.truncate(sequence.length)
    sequence.close()


def test_shortened_again_and_again(opened: Backend) -> None:
    if not opened.info.can_truncate:
        pytest.skip("it cannot be shortened")
    chance = np.random.default_rng(2)
    turns: list[tuple[int, list[int]]] = []  # where to cut, and what it holds afterwards
    held: list[int] = []
    for turn in range(20):
        cut = int(chance.integers(0, min(len(held), CTX - 60) + 1)) // 4 * 4
        held = held[:cut] + prompt(int(chance.integers(8, 60)), seed=turn)
        turns.append((cut, held))
    expected = [fresh(opened, held) for _, held in turns]
    sequence = opened.new_sequence()
    for (cut, held), row in zip(turns, expected, strict=True):
        assert sequence.truncate(cut)
        assert np.array_equal(feed(opened, sequence, held[cut:]), row)
    sequence.close()


def test_a_fork_and_its_origin_go_their_own_ways(case: Case, opened: Backend) -> None:
    if not opened.info.can_fork:
        with pytest.raises(Unsupported):
            opened.new_sequence().fork()
        return
    expected, in_part = fresh(opened, TOKENS[:260]), fresh(opened, [*TOKENS[:100], *OTHERS])
    sequence = opened.new_sequence()
    feed(opened, sequence, TOKENS[:240])
    whole = sequence.fork()
    assert (whole.length, sequence.length) == (240, 240)
    if opened.info.can_truncate:
        part = sequence.fork(100)
        assert part.length == 100
        np.testing.assert_allclose(feed(opened, part, OTHERS), in_part, rtol=0, atol=case.tolerance)
        part.close()
    else:
        with pytest.raises(Unsupported):
            sequence.fork(100)
    feed(opened, sequence, OTHERS)
    sequence.close()
    assert np.array_equal(feed(opened, whole, TOKENS[240:260]), expected)
    whole.close()


@pytest.mark.parametrize("bounds", [(0, 280), (0, 40, 256, 280), (0, 1, 2, 77, 280)])
def test_saved_state_is_loaded_by_another_process(
    case: Case, path: Path, opened: Backend, bounds: tuple[int, ...]
) -> None:
    original = opened.new_sequence()
    feed(opened, original, TOKENS[:280])
    if not opened.info.can_truncate and len(bounds) > 2:
        with pytest.raises(Unsupported):
            original.save(bounds[1], bounds[2])
        original.close()
        return
    blocks = [original.save(start, stop) for start, stop in pairwise(bounds)]
    assert original.length == 280
    expected = feed(opened, original, TOKENS[280:])
    original.close()
    other = case.open(path)
    assert (other.state_key, other.info.fingerprint) == (opened.state_key, opened.info.fingerprint)
    for parts in ([blocks], [[block] for block in blocks]):
        sequence = other.new_sequence()
        for part in parts:
            sequence.load(part)
        assert sequence.length == 280
        assert np.array_equal(feed(other, sequence, TOKENS[280:]), expected)
        sequence.close()
    other.close()


def test_any_range_can_be_appended_where_it_was(opened: Backend) -> None:
    if not opened.info.can_truncate:
        pytest.skip("it is saved as a whole")
    chance = np.random.default_rng(3)
    original = opened.new_sequence()
    feed(opened, original, TOKENS)
    for start, stop in ((5, 5), (-1, 3), (0, 301), (9, 4)):
        with pytest.raises(BackendFailed):
            original.save(start, stop)
    starts = [int(start) for start in chance.integers(8, 200, 8)]
    stops = [int(chance.integers(start + 4, 288)) // 4 * 4 for start in starts]
    blocks = [original.save(start, stop) for start, stop in zip(starts, stops, strict=True)]
    original.close()
    early = fresh(opened, [*TOKENS[:100], *OTHERS])
    for start, stop, block in zip(starts, stops, blocks, strict=True):
        expected = fresh(opened, TOKENS[: stop + 12])
        sequence = opened.new_sequence()
        feed(opened, sequence, TOKENS[:start])
        sequence.load([block])
        assert sequence.length == stop
        assert np.array_equal(feed(opened, sequence, TOKENS[stop : stop + 12]), expected)
        if stop > 100:
            assert sequence.truncate(100)
            assert np.array_equal(feed(opened, sequence, OTHERS), early)
        sequence.close()


def test_a_block_out_of_order_is_refused_and_changes_nothing(opened: Backend) -> None:
    expected = fresh(opened, TOKENS[:140])
    sequence = opened.new_sequence()
    feed(opened, sequence, TOKENS[:120])
    good = bytes(sequence.save(0, 120))
    empty = opened.new_sequence()
    foreign = EchoBackend(n_vocab=300).new_sequence()
    for token in TOKENS:
        foreign.append(token)
    bad = [[b""], [good[:3]], [good[:10]], [good[:-7]], [good + b"x"], [b"?" + good[1:]], [good[: len(good) // 2]]]
    bad += [[good, good], [bytes(len(good))]]
    if opened.name != "echo":
        bad.append([foreign.save(0, 120)])
    if opened.info.can_truncate:
        first, second, third = (sequence.save(at, at + 40) for at in (0, 40, 80))
        bad += [[second], [first, third], [first, first], [first, second[:-1]], [third, second, first]]
    for blocks in bad:
        with pytest.raises(BackendFailed):
            empty.load(blocks)
        assert empty.length == 0
        with pytest.raises(BackendFailed):
            sequence.load(blocks)
        assert sequence.length == 120
    assert np.array_equal(feed(opened, sequence, TOKENS[120:140]), expected)
    sequence.close()
    empty.load([good])
    assert np.array_equal(feed(opened, empty, TOKENS[120:140]), expected)
    empty.close()


def test_more_state_than_the_context_holds_is_refused(case: Case, path: Path, opened: Backend) -> None:
    larger = case.open(path, ctx=CTX + 64)
    sequence = larger.new_sequence()
    feed(larger, sequence, prompt(CTX + 8))
    blocks = [sequence.save(0, CTX + 8)]
    if larger.info.can_truncate:
        blocks = [sequence.save(0, 300), sequence.save(300, CTX + 8)]
    larger.close()
    target = opened.new_sequence()
    with pytest.raises(ContextOverflow) as error:
        target.load(blocks)
    assert (error.value.needed, error.value.n_ctx) == (CTX + 8, CTX)
    assert target.length == 0
    target.close()
