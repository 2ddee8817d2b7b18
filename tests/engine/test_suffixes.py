"""Where the end of a text occurred before: against a search that looks everywhere."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.engine.suffixes import LONGEST, SIZES, SMALLEST, Suffixes, hashes

texts = st.lists(st.integers(0, 3), max_size=120)


def appended(tokens: list[int], limit: int = 1 << 16) -> Suffixes:
    made = Suffixes(limit)
    for end in range(1, len(tokens) + 1):
        recent = tokens[max(0, end - LONGEST) : end]
        made.append(recent[-1], hashes(recent))
    return made


def occurrences(text: list[int], recent: list[int]) -> dict[int, int]:
    """By where what follows begins: how many tokens before that are the end of `recent`."""
    found = {}
    for at in range(1, len(text) + 1):
        size = 0
        while size < min(at, len(recent), LONGEST) and text[at - 1 - size] == recent[-1 - size]:
            size += 1
        found[at] = size
    return found


@given(texts, texts)
def test_the_newest_of_the_longest_is_found(text: list[int], recent: list[int]) -> None:
    made = Suffixes(1 << 16)
    made.extend(text)
    recent = recent[-LONGEST:]
    at, size = made.find(recent, hashes(recent))
    lengths = occurrences(text, recent)
    most = max(lengths.values(), default=0)
    if most < SIZES[0]:
        assert (at, size) == (0, 0)
        return
    assert lengths[at] == size
    piece = max(each for each in SIZES if each <= most)
    assert at == max(place for place, length in lengths.items() if length >= piece)


@given(texts, st.integers(1, 40))
def test_tokens_together_are_tokens_one_by_one(text: list[int], part: int) -> None:
    together = Suffixes(1 << 16)
    for start in range(0, len(text), part):
        together.extend(text[start : start + part])
    one = appended(text)
    assert one.tokens(0, len(text) + 9) == together.tokens(0, len(text) + 9) == text
    for end in range(len(text) + 1):
        recent = text[max(0, end - LONGEST) : end]
        assert one.find(recent, hashes(recent)) == together.find(recent, hashes(recent))


@pytest.mark.parametrize("together", [True, False])
def test_of_too_long_a_text_the_newest_half_is_there(together: bool) -> None:
    rng = random.Random(1)
    text = [rng.randrange(50_000) for _ in range(5 * SMALLEST)]
    limit = 2 * SMALLEST
    if together:
        made = Suffixes(limit)
        for start in range(0, len(text), 300):
            made.extend(text[start : start + 300])
    else:
        made = appended(text, limit)
    assert made.epoch > 1
    assert limit // 2 <= made.length <= limit
    assert made.tokens(0, made.length) == text[-made.length :]
    recent = text[-40:-8]
    at, size = made.find(recent, hashes(recent))
    assert (made.tokens(at, at + 8), size) == (text[-8:], LONGEST)
    old = text[:32]
    assert made.find(old, hashes(old)) == (0, 0)


def test_more_than_it_holds_leaves_the_end() -> None:
    made = Suffixes(SMALLEST)
    made.extend(list(range(10 * SMALLEST)))
    assert made.tokens(0, made.length) == list(range(10 * SMALLEST - SMALLEST // 2, 10 * SMALLEST))
    assert made.find([1, 2], hashes([1, 2])) == (0, 0)
