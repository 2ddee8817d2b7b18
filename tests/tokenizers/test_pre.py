"""Pre-tokenizers recognised from their structure."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.tokenizers.pre import ignores_merges, recognise, splits

ENDINGS = [
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
]
LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
START = r"[^\r\n\p{L}\p{N}]?"


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(use_regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def in_order(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize("endings", ENDINGS)
@pytest.mark.parametrize(
    ("digits", "ignore_merges", "name"),
    [(r"\p{N}{1,3}", True, "llama-bpe"), (r"\p{N}{1,3}", False, "dbrx"), (r"\p{N}", False, "qwen2")],
)
def test_every_spelling_of_the_endings(endings: str, digits: str, ignore_merges: bool, name: str) -> None:
    tree = in_order(split(endings + LETTERS + digits + TAIL), byte_level())
    assert recognise(tree, ignore_merges=ignore_merges) == name
    assert ignores_merges(name) is ignore_merges


def test_possessive_quantifiers_and_inverted_removal() -> None:
    regex = ENDINGS[2] + r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    assert recognise(in_order(split(regex, "Removed", True), byte_level()), ignore_merges=False) == "dbrx"


def test_line_ends_written_as_themselves() -> None:
    regex = (ENDINGS[0] + LETTERS + r"\p{N}{1}" + TAIL).replace(r"\r", "\r").replace(r"\n", "\n")
    assert recognise(in_order(split(regex), byte_level()), ignore_merges=False) == "qwen2"


def test_names_of_the_same_regexes_by_how_texts_are_joined() -> None:
    tree = in_order({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))
    assert recognise(tree, ignore_merges=False) == "smollm"
    assert recognise(tree, ignore_merges=False, clean_up_spaces=True) == "starcoder"
    assert splits("starcoder") == splits("smollm") == splits("refact") == splits("command-r")


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("gpt-2", byte_level(use_regex=True)),
        (
            "qwen35",
            in_order(
                split(
                    ENDINGS[0] + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
                    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                byte_level(),
            ),
        ),
        (
            "tekken",
            in_order(
                split(
                    rf"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*|"
                    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                byte_level(),
            ),
        ),
        (
            "gpt-4o",
            in_order(
                split(
                    rf"{START}{UPPER}*{LOWER}+{ENDINGS[0]}?|{START}{UPPER}+{LOWER}*{ENDINGS[0]}?|"
                    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                byte_level(),
            ),
        ),
        (
            "falcon",
            in_order(
                {"type": "Punctuation", "behavior": "Contiguous"},
                byte_level(use_regex=True),
                {"type": "Digits", "individual_digits": False},
                split("[0-9][0-9][0-9]"),
            ),
        ),
    ],
)
def test_models(name: str, tree: dict[str, Any]) -> None:
    assert recognise(tree, ignore_merges=name == "tekken") == name


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "falcon"])
def test_our_own_regexes_are_recognised(name: str) -> None:
    tree = in_order(*map(split, splits(name)), byte_level())
    assert recognise(tree, ignore_merges=ignores_merges(name)) == name


def test_unknown_ones_are_shown() -> None:
    with pytest.raises(Unsupported, match=r"\\d\+\|x; .*'s\|'t.*--pre NAME"):
        recognise(in_order(split(r"\d+|x"), byte_level(use_regex=True)), ignore_merges=False)
    with pytest.raises(Unsupported, match="no regex at all"):
        recognise(None, ignore_merges=False)
    with pytest.raises(Unsupported, match="MergedWithNext"):
        recognise(split(r"\d+", "MergedWithNext"), ignore_merges=False)
    with pytest.raises(Unsupported, match="'viking' cannot be written"):
        splits("viking")
    with pytest.raises(InvalidModelFile, match="without a type"):
        recognise({"pattern": {}}, ignore_merges=False)
