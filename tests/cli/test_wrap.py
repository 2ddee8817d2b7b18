from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from edgellm.cli.wrap import WordWrap


def wrapped(text: str, width: int, pieces: int = 1) -> str:
    wrap = WordWrap(lambda: width)
    shown = [wrap.push(text[at : at + pieces]) for at in range(0, len(text), pieces)]
    return "".join([*shown, wrap.flush()])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two three", "one two\nthree"),
        ("one two  three\n\nfour", "one two\nthree\n\nfour"),
        ("exactly 10 and more", "exactly 10\nand more"),
        ("averyveryverylongword x", "averyveryverylongword\nx"),
        ("a averyveryverylongword", "a\naveryveryverylongword"),
        ("```\none two three four\n```\none two three", "```\none two three four\n```\none two\nthree"),
        ("汉字汉字汉字汉字", "汉字汉字汉\n字汉字"),
        ("  indented words here", "  indented\nwords here"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_lines_break_between_words(text: str, shown: str, pieces: int) -> None:
    assert wrapped(text, 10, pieces) == shown


@given(st.text("ab 汉é\n", max_size=80), st.integers(2, 20), st.integers(1, 9))
def test_nothing_is_lost_and_no_line_is_too_long(text: str, width: int, pieces: int) -> None:
    shown = wrapped(text, width, pieces)
    assert "".join(shown.split()) == "".join(text.split())
    assert shown == wrapped(text, width)  # however it arrives
    for line in shown.split("\n"):
        one_word = len(line.split()) <= 1  # it may be wider than the screen, or have blanks around it
        assert cell_len(line.rstrip()) <= width or one_word


def test_a_window_that_is_resized() -> None:
    width = 20
    wrap = WordWrap(lambda: width)
    first = wrap.push("some words that ")
    width = 8
    assert first + wrap.push("are shown ") + wrap.flush() == "some words that\nare\nshown "
