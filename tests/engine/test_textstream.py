"""TextStream against bytes.decode: whatever the pieces, the text is the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgellm.engine.textstream import TextStream

# Bytes that make UTF-8 interesting: leads, continuations at the edges of their ranges, invalid ones, ASCII.
tricky = st.sampled_from(list(b"A\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xe0\xe2\xed\xf0\xf4\xf5\xff"))
data = st.one_of(st.binary(max_size=24), st.lists(tricky, max_size=24).map(bytes), st.text(max_size=12).map(str.encode))


def can_become_a_character(pending: bytes) -> bool:
    for tail in range(1, 4):
        for rest in itertools.product((0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF), repeat=tail):
            try:
                if len((pending + bytes(rest)).decode("utf-8")) == 1:
                    return True
            except UnicodeDecodeError:
                continue
    return False


@given(data, st.data())
@example(b"\xed\xa0\x80", None)
@example("🙂 é".encode(), None)
def test_pieces_give_what_decode_gives(whole: bytes, draw: st.DataObject | None) -> None:
    if draw is None:
        cuts = list(range(1, len(whole)))
    else:
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    stream = TextStream()
    text = ""
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        text += stream.push(whole[start:stop])
    assert text + stream.flush() == whole.decode("utf-8", "replace")


@given(data)
def test_only_the_beginning_of_a_character_is_held_back(whole: bytes) -> None:
    stream = TextStream()
    text = ""
    for size in range(1, len(whole) + 1):
        text += stream.push(whole[size - 1 : size])
        seen = whole[:size]
        if text == seen.decode("utf-8", "replace"):
            continue
        held = next(n for n in (1, 2, 3) if text == seen[:-n].decode("utf-8", "replace"))
        assert can_become_a_character(seen[-held:])


@pytest.mark.parametrize(
    ("piece", "text"),
    [(b"\xff", "\ufffd"), (b"\xc3\x41", "\ufffdA"), (b"\xed\xa0", "\ufffd\ufffd"), (b"\xe2\x82", "")],
)
def test_what_is_invalid_is_replaced_at_once(piece: bytes, text: str) -> None:
    assert TextStream().push(piece) == text


def test_flush_empties_it() -> None:
    stream = TextStream()
    assert stream.push(b"a\xe2\x82") == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(b"\xac") == "\ufffd"
