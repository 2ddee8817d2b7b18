"""Records: what fills the gaps of a form that comes again, where it is looked for, and what a guess makes of it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.engine import guess as guessing
from edgellm.engine.guess import Acceptance, Guess
from edgellm.engine.records import Content, Records
from edgellm.engine.suffixes import Suffixes, hashes

PEOPLE = ("Anna", 31, "Oslo"), ("Luis", 45, "Lima"), ("Mei", 28, "Kobe"), ("Tom", 52, "Leeds"), ("Sara", 37, "Turku")
LINES = "People:\n" + "".join(f"{name}, who is {age} years old, lives in {town}.\n" for name, age, town in PEOPLE)


def written(person: tuple[str, int, str]) -> str:
    return json.dumps(dict(zip(("name", "age", "town"), person, strict=True))) + "\n"


def tokens_of(text: str) -> list[str]:
    """Words, digits, and whatever else there is."""
    return re.findall(r"[A-Za-z]+|.|\n", text)


def ids(text: str, known: dict[str, int]) -> list[int]:
    return [known.setdefault(token, len(known)) for token in tokens_of(text)]


class Text:
    """A text of words, to look into."""

    def __init__(self, text: str) -> None:
        self.known: dict[str, int] = {}
        self.tokens = Suffixes(1 << 16)
        self.tokens.extend(ids(text, self.known))
        self.words = tokens_of(text)

    def at(self, word: str, nth: int = 0) -> int:
        return [at for at, each in enumerate(self.words) if each == word][nth]

    def shown(self, content: Content | None) -> tuple[str, str, str] | None:
        """The first token of what is found, that which ends it, and that where the record goes on."""
        names = {number: token for token, number in self.known.items()}
        return content and (self.words[content.at], names[content.stop], self.words[content.back])


def drafted(prompt: str, answer: str, count: int) -> str:
    """Behind an answer that came token by token."""
    known: dict[str, int] = {}
    text, begun = ids(prompt + answer, known), max(1, len(tokens_of(prompt)))
    made = Guess(text[:begun], None, Acceptance())
    for end in range(begun + 1, len(text) + 1):
        made.follow(text[:end])
    names = {number: token for token, number in known.items()}
    return "".join(names[token] for token in made.draft(count)[0])


def test_content_comes_from_the_next_place_that_is_alike() -> None:
    text = Text(LINES + written(PEOPLE[0]))
    records, gap = Records(text.tokens), text.at("3", -1)
    assert text.shown(records.content(gap, 0)) == ("4", " ", ",")
    assert text.shown(records.content(gap, text.at("Tom"))) == ("5", " ", ",")
    assert text.shown(records.content(gap, 0, text.known["2"])) == ("2", " ", ",")
    assert records.content(gap, 0, text.known["{"]) is None
    assert text.shown(records.content(text.at("Anna", -1), text.at("Lima") + 1)) == ("Mei", ",", '"')


def test_content_that_is_new_has_no_place() -> None:
    text = Text("one two, three: new, two:")
    for gap in (0, text.at("new"), len(text.words) - 1, len(text.words)):
        assert Records(text.tokens).content(gap, 0) is None


def test_fields_may_stand_in_another_order_than_in_the_source() -> None:
    text = Text("a=red;b=7|a=blue;b=9|a=green;b=3|(7:red)(9:")
    records = Records(text.tokens)
    records.add(text.at("7", 1), text.at("7"))
    red = text.at("red", 1)
    assert text.shown(records.content(red, text.at("9") + 1)) == ("blue", ";", ")")
    assert text.shown(records.content(red, text.at("3") + 1)) == ("green", ";", ")")


def test_a_record_is_drafted_with_its_content() -> None:
    prompt = LINES + "\n" + written(PEOPLE[0])
    answer = written(PEOPLE[1]) + written(PEOPLE[2]) + '{"name'
    assert (answer + drafted(prompt, answer, 27)).endswith(written(PEOPLE[3]))


def test_content_that_nobody_knows_is_followed_by_the_form() -> None:
    form = '{"id": "%s", "state": "open"}\n'
    answer = "".join(form % each for each in ("kq", "vz", "wp", "xj"))
    assert drafted("", answer + '{"id": "gm', 6) == '", "state"'


def test_what_comes_as_before_is_no_gap() -> None:
    """Whole periods are drafted, though one was another."""
    period = "the river is cut off for weeks, and the ferry waits. "
    answer = period + period.replace("weeks", "years") + period * 3
    assert drafted("", answer, 31) == "".join(tokens_of(period * 2)[:31])


def test_a_text_that_loses_its_older_half_forgets_its_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "OWN", 1024)
    text = [*(LINES + "".join(map(written, PEOPLE * 12))).encode()]
    made = Guess(text[:200], None, Acceptance())
    for end in range(201, len(text) + 1):
        made.follow(text[:end])
        made.draft(31)
    assert made._own.epoch > 1
    assert made.length > 0


@given(st.text("abc,", min_size=2, max_size=120), st.data())
def test_content_occurred_before_and_is_never_out_of_range(text: str, data: st.DataObject) -> None:
    made = Suffixes(1 << 10)
    for end in range(1, len(text) + 1):
        made.append(ord(text[end - 1]), hashes([*text[:end].encode()]))
    records = Records(made)
    for gap in data.draw(st.lists(st.integers(0, len(text) + 1), max_size=5)):
        records.add(gap)
        told, first = data.draw(st.integers(0, len(text))), data.draw(st.none() | st.sampled_from([*b"abc,"]))
        found = records.content(gap, told, first)
        if found is not None:
            assert 2 <= found.at < len(text)
            assert gap < found.back < len(text)
            assert first is None or text[found.at] == chr(first)
            records.add(gap, found.at)
