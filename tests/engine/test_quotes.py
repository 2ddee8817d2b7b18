"""What looks like a control token and is none: where it is parted, and that no tokenizer reads it as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import bpe_vocabulary
from tiny_vocabularies import KINDS, vocabulary
from tokens_oracle import llama_tokenizer

from edgellm.backends.base import Tokenizer, text_of
from edgellm.engine.quotes import QUOTE, Quotes, unquoted
from edgellm.engine.seam import continued, encoded, spelled
from edgellm.formats.gguf_writer import write_gguf

marks = st.sets(st.text("<|>ab", min_size=1, max_size=5), max_size=5)
texts = st.text("<|>abc" + QUOTE, max_size=14)


def whole(quoted: str, marks: set[str]) -> list[str]:
    """The marks that a tokenizer could still read, which takes a part of one character for text."""
    return [mark for mark in marks for part in quoted.split(QUOTE) if len(part) > 1 and mark in part]


@given(marks, st.lists(texts, max_size=4))
@example({"<a>", "><b"}, ["<a><b"])
@example({"<|a|>"}, ["<|<|a|>a|>"])
@example({"<|a|>"}, ["<", "|a", "|>"])
@example({"a", "ab"}, ["cab"])
def test_no_mark_is_left_in_texts_nor_where_they_meet(marks: set[str], parts: list[str]) -> None:
    quotes = Quotes(marks)
    quoted = "".join(quotes.quoted(part) for part in parts)
    assert not whole(quoted, marks)
    assert unquoted(quoted) == unquoted("".join(parts))


@given(marks, texts)
def test_what_has_no_mark_stays_as_it_is(marks: set[str], text: str) -> None:
    open_ends = {mark[:end] for mark in marks for end in range(1, len(mark))}
    if not any(mark in text for mark in marks) and not any(text.endswith(end) for end in open_ends):
        assert Quotes(marks).quoted(text) is text


def test_a_long_text_is_looked_through_once() -> None:
    """Thousands of marks with one beginning, in a text that is full of it."""
    quotes = Quotes([f"<unused{n}>" for n in range(6000)])
    text = "<p>x < y</p> <unused> " * 40_000
    assert quotes.quoted(text) is text
    assert quotes.quoted("<unused5>" * 20_000).count(QUOTE) == 20_000


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    with vocabulary(request.param, tmp_path_factory.mktemp("vocabulary")) as opened:
        yield opened


def controls(tokenizer: Tokenizer, tokens: list[int]) -> Counter[int]:
    return Counter(token for token in tokens if not tokenizer.piece(token))


def fragments(marks: set[str]) -> list[str]:
    return sorted({mark[at:] for mark in marks for at in range(len(mark))} | {mark[:2] for mark in marks})


PLAIN = ["hello", " world", "\n", "  ", "é", "🙂", "x", "<", ">", "|"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_prompt_has_the_control_tokens_of_its_template(tokenizer: Tokenizer, data: st.DataObject) -> None:
    marks = tokenizer.marks("")
    assert all(len(tokenizer.encode(mark, special=True)) in (1, 2) for mark in marks)  # a space may stand in front
    pieces = st.lists(st.sampled_from([*sorted(marks), *fragments(marks), *PLAIN]), min_size=1, max_size=6)
    mark = st.sampled_from(sorted(marks - {"<unk>"}))
    content, start, end = "".join(data.draw(pieces)), data.draw(mark), data.draw(mark)
    before, after = f"{start}user\n", f"{end}\n{start}assistant\n"
    quoted = before + Quotes(marks).quoted(content) + after
    tokens = encoded(tokenizer, quoted)
    harmless = tokenizer.encode(f"{before}x{after}", special=True)
    assert controls(tokenizer, tokens) == controls(tokenizer, harmless)
    assert text_of(tokenizer, tokens, special=True) == before + content + after
    first, last = tokenizer.encode(start, special=True), tokenizer.encode(after, special=True)
    while tokenizer.piece(last[0]):  # the space in front of a text
        last.pop(0)
    assert (tokens[: len(first)], tokens[-len(last) :]) == (first, last)
    at = len(quoted) - len(after)
    assert encoded(tokenizer, quoted[:at]) + continued(tokenizer, quoted, at) == tokens
    assert continued(tokenizer, quoted, 0) == tokens
    inside = data.draw(st.integers(len(before), at))
    assert controls(tokenizer, continued(tokenizer, quoted, inside)) == controls(tokenizer, last)


def defined(folder: Path) -> Path:
    """A vocabulary with texts that a user defined, and a control token of one character."""
    metadata = bpe_vocabulary()
    added = {"<think>": 4, "\n\n": 4, "<table>": 4, "⁂": 3}
    metadata["tokenizer.ggml.tokens"] += list(added)
    types = [*metadata["tokenizer.ggml.token_type"], *added.values()]
    metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    write_gguf(folder / "m.gguf", {"general.architecture": "llama", **metadata}, [])
    return folder / "m.gguf"


def test_marks_of_the_template_are_parted_whatever_their_kind(tmp_path: Path) -> None:
    """A token that is text is read without `special`, too: what the template uses is a mark, and what it does not is
    text like any other."""
    with llama_tokenizer(defined(tmp_path)) as tokenizer:
        assert tokenizer.marks("") == {"<|end|>", "<|bos|>", "<|pad|>", "⁂"}
        marks = tokenizer.marks("{{ content }}<think>\n\n")
        assert marks == {"<|end|>", "<|bos|>", "<|pad|>", "⁂", "<think>"}
        text = "a<think>\n\n<table>⁂⁂ b⁂<think>"
        think, gap, table, mark = (
            tokenizer.encode(each, special=True)[0] for each in ("<think>", "\n\n", "<table>", "⁂")
        )
        assert {think, gap, table} <= set(tokenizer.encode(text))
        tokens = encoded(tokenizer, Quotes(marks).quoted(text))
        assert {gap, table} == {gap, table, think, mark} & set(tokens)
        assert spelled(tokenizer, tokens).decode() == text
