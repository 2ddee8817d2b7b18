"""StopStrings against the plain definition: at every character, look at every stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.engine.stopping import StopStrings

texts = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=6)


def before_the_first_stop(text: str, strings: Sequence[str]) -> tuple[str, str | None]:
    """The text, and what ended it."""
    for end in range(1, len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            found = max(ending, key=len)
            return text[: end - len(found)], found
    return text, None


def longest_beginning(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of `text` begin a stop string."""
    return max((n for string in strings for n in range(len(string)) if text.endswith(string[:n])), default=0)


@given(texts, stops, st.data())
def test_any_split_gives_the_text_before_the_first_stop(text: str, strings: list[str], draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    stopper = StopStrings(strings)
    answer, stopped = "", False
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, stopped = stopper.push(text[start:stop])
        answer += piece
        if stopped:
            break
        # Nothing that begins a stop string is out, and everything else is.
        seen = text[:stop]
        assert len(answer) == len(seen) - longest_beginning(seen, strings)
    assert (answer + stopper.flush(), stopper.found) == before_the_first_stop(text, strings)
    assert stopped == (stopper.found is not None)


@pytest.mark.parametrize(
    ("pieces", "strings", "expected"),
    [
        (["Hel", "lo\n", "\nUser", ": x"], ["\n\nUser:"], "Hello"),
        (["a", "b", "c"], ["abd"], "abc"),
        (["xabcab", "d"], ["abcabx", "abd"], "xabc"),
        (["abcd"], ["cd", "bcd"], "a"),
        (["abcdef"], ["abcdef", "cd"], "ab"),
        (["none"], [], "none"),
        (["STOP now"], ["STOP"], ""),
        (["日", "本", "語"], ["本語"], "日"),
    ],
)
def test_cases(pieces: list[str], strings: list[str], expected: str) -> None:
    stopper = StopStrings(strings)
    answer = ""
    for piece in pieces:
        text, stopped = stopper.push(piece)
        answer += text
        if stopped:
            break
    assert answer + stopper.flush() == expected


def test_a_released_beginning_arrives_with_what_released_it() -> None:
    stopper = StopStrings(["</answer>"])
    assert stopper.push("x </ans") == ("x ", False)
    assert stopper.push("!") == ("</ans!", False)
    assert stopper.push("<") == ("", False)
    assert stopper.flush() == "<"
    assert stopper.flush() == ""


def test_the_work_grows_with_the_text_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = StopStrings._step

    def counted(self: StopStrings, node: int, char: str) -> int:
        nonlocal steps
        steps += 1
        return step(self, node, char)

    stopper = StopStrings(["a" * 50 + "b", *(f"stop {n}" for n in range(200))])
    monkeypatch.setattr(StopStrings, "_step", counted)
    for _ in range(2000):
        stopper.push("a")
    assert steps == 2000


@given(st.lists(st.tuples(texts, st.booleans()), max_size=8), stops)
def test_text_that_is_not_shown_is_matched_all_the_same(pieces: list[tuple[str, bool]], strings: list[str]) -> None:
    stopper = StopStrings(strings)
    answer, stopped = "", False
    for piece, shown in pieces:
        text, stopped = stopper.push(piece, shown=shown)
        answer += text
        if stopped:
            break
    answer += stopper.flush()
    marks = [shown for piece, shown in pieces for _ in piece]
    before, found = before_the_first_stop("".join(piece for piece, _ in pieces), strings)
    assert answer == "".join(c for c, shown in zip(before, marks, strict=False) if shown)
    assert (stopper.found, stopped) == (found, found is not None)
