"""Patterns in the common form: what they match to Python, and to llguidance, and which are refused."""

from __future__ import annotations

import json
import re

import pytest
from masks import accepts, matcher

from edgellm.constrain.overlap import overlap
from edgellm.constrain.regex import Irregular, translate
from edgellm.constrain.words import all_but

WORDS = (
    "",
    "a",
    "b",
    "ab",
    "ba",
    "xab",
    "c",
    "bcc",
    "12-x_",
    "é",
    "-",
    "aa",
    "😀",
    "\n",
    "a\n",
    "\u2028",
    "\u00a0",
    "&",
    "\t",
    "]",
)
# pattern: which of the words hold a match, by ECMA-262
PATTERNS = {
    "^a|b$": ("a", "b", "ab", "xab", "aa", "a\n"),
    "^$": ("",),
    "a": ("a", "ab", "ba", "xab", "aa", "a\n"),
    "^(a|b)c*$": ("a", "b", "bcc"),
    "(^a$|^b)": ("a", "b", "ba", "bcc"),
    r"^\d{2}-\w+$": ("12-x_",),
    "^[a-b&&[^b]$": ("a", "b", "&"),
    r"^[&\]\-]$": ("-", "&", "]"),
    "^.$": ("a", "b", "c", "é", "-", "😀", "\u00a0", "&", "\t", "]"),
    r"^\s$": ("\n", "\u2028", "\u00a0", "\t"),
    r"^\W$": ("é", "-", "😀", "\n", "\u2028", "\u00a0", "&", "\t", "]"),
    "a{2}": ("aa",),
    "x*?ab": ("ab", "xab"),
    r"^\u{1F600}$": ("😀",),
    r"^\uD83D\uDE00$": ("😀",),
    "^[^]$": ("a", "b", "c", "é", "-", "😀", "\n", "\u2028", "\u00a0", "&", "\t", "]"),
    "(?<name>a)b": ("ab", "xab"),
    "^$|^a$": ("", "a"),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_alike_everywhere(pattern: str) -> None:
    common = translate(pattern)
    start = matcher({"type": "string", "pattern": f"^(?:{common})$"})
    for word in WORDS:
        right = word in PATTERNS[pattern]
        assert bool(re.fullmatch(common, word)) == right, word
        assert accepts(start, json.dumps(word, ensure_ascii=False)) == right, word


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", ")", "[a", "a**", "*", "+a", "a{2,1}", "{", "}", "]", "\\", "(?=a)", "(?<!a)b", r"\1", r"\bx", r"\p{L}"),
        *(
            r"\q",
            "a^b",
            "(?i)a",
            "[b-a]",
            r"[\d-z]",
            r"\u12",
            r"\xg1",
            r"\u{110000}",
            "^*",
            "a{9999999}",
            "(a{99}){99}",
        ),
    ],
)
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(Irregular):
        translate(pattern)


def test_control_characters_are_never_asked_for() -> None:
    assert not re.fullmatch(translate("^[^a]$"), "\x01")
    assert not re.fullmatch(translate(r"^\x01$"), "\x01")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("^a", "^b", False),
        ("a", "b", True),
        ("^[a-z]+$", "^[A-Z]+$", False),
        ("^a{3}$", "^a{2,4}$", True),
        ("^(ab)*$", "^(ba)+$", False),
        ("^(a|b)*c$", "^[ab]{3}c?$", True),
        ("^.{2}$", "^.{3}$", False),
    ],
)
def test_overlap_of_patterns(one: str, other: str, both: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is both


def test_all_but_a_few_words() -> None:
    pattern = all_but(["a", "ab", "", "b😀"])
    words = ["", "a", "b", "ab", "abc", "aa", "b😀", "b😀😀", "b\n", "é"]
    assert [word for word in words if re.fullmatch(pattern, word)] == ["b", "abc", "aa", "b😀😀", "b\n", "é"]
