"""What goes on has the tokens that the whole text has, by llama.cpp and by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_vocabularies import KINDS, ONNX, tokenizer_json, vocabulary

from edgellm.backends.base import Tokenizer
from edgellm.engine.quotes import QUOTE
from edgellm.engine.seam import alone, continued, spelled
from edgellm.tokenizers.text import open_tokenizer

PIECES = [
    *(
        "hello",
        "hell",
        "he",
        "lo",
        " world",
        " w",
        "world",
        " the",
        "\n",
        "\n\n",
        " ",
        "  ",
        "1",
        "234",
        ".",
        "é",
        "🙂",
    ),
    *("USER:", "ASSISTANT:", "x", "-", "日本"),
]
CONTROLS = ["<s>", "</s>"]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    with vocabulary(request.param, tmp_path_factory.mktemp("vocabulary")) as opened:
        yield opened


def ends(tokenizer: Tokenizer, tokens: list[int], text: str) -> dict[int, int]:
    """Where the tokens of a text without control tokens end in its bytes, and how many they are then. A space that the
    text does not have may stand in front."""
    extra = len(spelled(tokenizer, tokens)) - len(text.encode())
    at, found = -extra, {0: 0}
    for count, token in enumerate(tokens, 1):
        at += len(tokenizer.piece(token, special=True))
        found[max(at, 0)] = count
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=texts, after=texts)
def test_it_is_the_tokens_of_the_whole_text_from_the_seam_on(
    tokenizer: Tokenizer, before: list[str], after: list[str]
) -> None:
    text, at = "".join(before + after), len("".join(before))
    whole = tokenizer.encode(text, special=True)
    found = continued(tokenizer, text, at)
    places = ends(tokenizer, whole, text)
    seam = len(text[:at].encode())
    assert spelled(tokenizer, found) == text[at:].encode()
    if seam in places:
        assert found == whole[places[seam] :]
    else:  # the token over the seam is cut, and those after the character it ends in are the whole text's
        data = text.encode()
        behind = min(end for end in places if end > seam and (end == len(data) or data[end] & 0xC0 != 0x80))
        rest = whole[places[behind] :]
        assert found[len(found) - len(rest) :] == rest
        assert spelled(tokenizer, found[: len(found) - len(rest)]) == data[seam:behind]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=texts, control=st.sampled_from(CONTROLS), after=st.lists(st.sampled_from(PIECES + CONTROLS), max_size=8))
def test_behind_a_control_token_it_is_the_whole_texts(
    tokenizer: Tokenizer, before: list[str], control: str, after: list[str]
) -> None:
    text = "".join([*before, control, *after])
    at = len("".join(before))
    head, whole = (tokenizer.encode(part, special=True) for part in (text[:at], text))
    assert head + continued(tokenizer, text, at) == whole
    assert continued(tokenizer, text, 0) == whole
    assert continued(tokenizer, text, len(text)) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=texts)
def test_what_stands_alone_has_no_space_in_front(tokenizer: Tokenizer, words: list[str]) -> None:
    assert spelled(tokenizer, alone(tokenizer, "".join(words))) == "".join(words).encode()


def test_a_tokenizer_that_does_not_give_its_text_back(tmp_path: Path) -> None:
    """Lower case, and blanks that a token takes away: what goes on still has tokens, and none of them twice."""
    source = tokenizer_json({**ONNX["metaspace-first"], "normalizer": {"type": "Lowercase"}})
    source["added_tokens"][2]["lstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(source), encoding="utf-8")
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json", {})
    for before, rest, words in (("HEL", "LO World", b"lo world"), ("hello ", "</s>x", b"</s> x"), ("A", "B", b"b")):
        found = spelled(tokenizer, continued(tokenizer, before + rest, len(before)))
        assert found.replace(b" ", b"") == words.replace(b" ", b"")
    text = f"HELLO <{QUOTE}/s>x</s>"
    assert continued(tokenizer, text, 3).count(2) == continued(tokenizer, text, text.index("x")).count(2) == 1
