"""What probably follows a text: where it is taken from, how it moves on, and what is learned of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.engine.guess import AT_FIRST, LONG, RESUMED, Acceptance, Guess
from edgellm.engine.suffixes import LONGEST, SEPARATOR, Suffixes


def guess(history: str, earlier: Suffixes | None = None) -> Guess:
    return Guess([*history.encode()], earlier, Acceptance())


def test_the_longest_match_wins_and_the_newest_of_equal_ones() -> None:
    assert bytes(guess("xab1yab2zab").draft(3)[0]) == b"2za"
    assert bytes(guess("longer ab1 ab2 longer ab").draft(4)[0]) == b"1 ab"
    assert guess("nothing").length == 0
    assert guess("x").length == 0


def test_what_repeats_is_drafted_again_and_again() -> None:
    assert bytes(guess("abcabc").draft(10)[0]) == b"abcabcabca"
    assert bytes(guess("aaa").draft(4)[0]) == b"aaaa"


def test_a_copy_goes_on_behind_another_token() -> None:
    made = guess("0123456789abcdef 0123456789")
    made.follow([*b"0123456789abcdef 0123456789#"])
    assert (made.length, bytes(made.draft(3)[0])) == (RESUMED, b"bcd")
    made.follow([*b"0123456789abcdef 0123456789#b"])
    assert (made.length, bytes(made.draft(3)[0])) == (LONG, b"cde")
    made.follow([*b"0123456789abcdef 0123456789#b?"])
    assert made.length == RESUMED
    made.follow([*b"0123456789abcdef 0123456789#b?!"])
    assert made.length == 0


def test_earlier_texts_end_where_they_end() -> None:
    earlier = Suffixes(1 << 16)
    earlier.extend([*b"one two three", SEPARATOR, *b"two four"])
    assert bytes(guess("one tw", earlier).draft(20)[0]) == b"o three"
    assert bytes(guess("xtwo", earlier).draft(20)[0]) == b" four"
    assert bytes(guess(" two f", earlier).draft(20)[0]) == b"our"
    assert guess(" four", earlier).length == 0
    assert bytes(guess("two three one tw", earlier).draft(20)[0]) == b"o three"


@given(st.text("ab", min_size=2, max_size=150), st.text("ab", max_size=80))
def test_a_guess_that_follows_is_one_made_anew(history: str, before: str) -> None:
    """But for older matches, which it stays with while they hold: what it guesses has occurred, or behind a token that
    was another."""
    text = [*history.encode()]
    earlier = Suffixes(1 << 16)
    earlier.extend([*before.encode()])
    made, broken = Guess(text[:1], earlier, Acceptance()), False
    for end in range(1, len(text) + 1):
        made.follow(text[:end])
        new = Guess(text[:end], earlier, Acceptance())
        assert (made.length > 0) >= (new.length > 0)
        broken = made.length >= RESUMED or (broken and made.length >= LONG)
        if made.length and not broken:
            assert made.length >= min(new.length, 2)
            draft = bytes(made.draft(1)[0])
            seen = bytes(text[max(0, end - made.length) : end]) + draft
            assert seen in bytes(text) + draft or seen in before.encode()


def test_acceptance_learns_by_length() -> None:
    usual = Acceptance()
    first = usual.chance(2)
    assert first < usual.chance(4) < usual.chance(LONGEST) < 1
    one = Acceptance(usual)
    for _ in range(60):
        one.note(2, True)
        one.note(9, False)
    assert one.chance(3) > 0.9
    assert one.chance(8) < 0.1
    assert one.chance(1) == one.chance(RESUMED) - AT_FIRST[RESUMED.bit_length()] + AT_FIRST[1] == AT_FIRST[1]
    assert AT_FIRST[3] < one.chance(4) < one.chance(3)  # unknown here: as usual, and as the shorter ones
    assert usual.chance(2) > first
    assert Acceptance(usual).chance(2) == pytest.approx(usual.chance(2))
