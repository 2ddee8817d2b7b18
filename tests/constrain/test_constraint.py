"""Answers that have a form: on the fake engine, whose model would rather say something else."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_models import tiny

import edgellm
from edgellm.backends.base import INSIDE
from edgellm.backends.echo import BOS, EchoBackend, EchoTokenizer
from edgellm.cli.run import run
from edgellm.constrain import constraint, library
from edgellm.errors import ConstraintFailed, InvalidParameter, Unsupported
from edgellm.model import Model

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])"
SUM = 'start: NUMBER ("+" NUMBER)* "="\nNUMBER: /[0-9]{1,3}/\n'
GBNF = 'root ::= item ("," item)*\nitem ::= [a-c] | "(" root ")"\n'


class Counted(EchoBackend):
    """Counts passes."""

    passes = 0

    def _forward(self, *arguments: Any) -> Any:
        self.passes += 1
        return super()._forward(*arguments)


@pytest.fixture
def model() -> Iterator[Model]:
    with Model(Counted(script="I would rather say this.")) as opened:
        yield opened


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(
    ("form", "whole"),
    [
        ({"regex": DATE}, DATE),
        ({"choices": ("yes", "no", "no way", '1 "more"\n')}, 'yes|no|no way|1 "more"\n'),
        ({"grammar": SUM}, r"[0-9]{1,3}(\+[0-9]{1,3})*="),
        ({"grammar": GBNF}, r"[a-c(),]+"),
    ],
)
def test_every_answer_has_the_form(model: Model, form: dict[str, Any], whole: str, temperature: float) -> None:
    for seed in range(8):
        done = model.generate("What?", temperature=temperature, seed=seed, max_tokens=400, **form)
        if done.finish_reason == "stop":
            assert re.fullmatch(whole, done.text), done.text
            assert done.parsed == done.text
        else:
            assert (done.finish_reason, done.parsed) == ("length", None)


def test_a_schema_gives_what_it_describes(model: Model) -> None:
    for seed in range(8):
        done = model.generate("Who?", schema=SCHEMA, temperature=1.5, seed=seed)
        assert done.finish_reason == "stop"
        assert done.parsed == json.loads(done.text)
        assert set(done.parsed) == {"name", "age"}
        assert done.parsed["age"] >= 0
        assert "parsed" not in done.to_dict()


def test_an_answer_that_was_cut_is_no_value(model: Model) -> None:
    done = model.generate("Who?", schema=SCHEMA, max_tokens=15)
    assert (done.finish_reason, done.parsed, len(done.tokens)) == ("length", None, 15)


def test_what_must_follow_needs_no_pass(model: Model) -> None:
    backend = model._engine.backend
    assert isinstance(backend, Counted)
    done = model.generate("Who?", choices=["a long and only choice"])
    assert done.text == "a long and only choice"
    assert backend.passes <= 3


def test_an_answer_ends_where_nothing_can_follow(model: Model) -> None:
    done = model.generate("When?", regex=DATE)
    assert len(done.tokens) == len("2024-12")  # and no pass for an end


def test_every_reader_gets_the_value(model: Model) -> None:
    chunks = list(model.stream("Who?", schema=SCHEMA, seed=1))
    assert chunks[-1].completion is not None
    value = chunks[-1].completion.parsed
    assert value == json.loads("".join(chunk.text for chunk in chunks))

    async def both() -> list[Any]:
        whole = await model.agenerate("Who?", schema=SCHEMA, seed=1)
        last = [chunk async for chunk in model.astream("Who?", schema=SCHEMA, seed=1)][-1]
        assert last.completion is not None
        return [whole.parsed, last.completion.parsed]

    assert asyncio.run(both()) == [value, value]
    assert model.chat().send("Who?", schema=SCHEMA).parsed is not None


def test_answers_side_by_side_keep_their_own_forms(model: Model) -> None:
    def ask(seed: int) -> bool:
        if seed % 2:
            return re.fullmatch(DATE, model.generate("?", regex=DATE, seed=seed, temperature=1.5).text) is not None
        return set(model.generate("?", schema=SCHEMA, seed=seed, temperature=1.5).parsed) == {"name", "age"}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(24)))


def test_a_free_answer_is_what_it_was(model: Model) -> None:
    model.generate("?", regex=DATE)
    assert model.generate("?").text == "I would rather say this."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"choices": []}, "choices=.*at least 1"),
        ({"regex": "[a-z"}, r'^regex: invalid regex "\[a-z": unclosed character class$'),
        ({"grammar": "start: nothing"}, "grammar: .*nothing"),
        ({"grammar": "root ::= ("}, "grammar: .*GBNF"),
        ({"regex": "a", "choices": ["a"]}, "regex and choices"),
        ({"regex": "a+", "stop": "b"}, "stop: regex"),
        ({"choices": ["a"], "ignore_eos": True}, "ignore_eos: choices"),
        ({"choices": ["a long and only choice"], "max_tokens": 5}, "max_tokens=5: .*at least"),
        ({"regex": "x" * 70_000}, "regex: 70,000 characters"),
        ({"grammar": "start: a\na: b\nb: a\n"}, "grammar: "),
        ({"grammar": 'start: %json {"type": "string", "minLenght": 1}'}, "grammar: %json: .*schema="),
        ({"grammar": '%llguidance {"no_forcing": true}\nstart: "a"'}, "grammar: %llguidance"),
        ({"grammar": 'start: <[97]> "b"'}, "grammar: <.: a token by its number"),
        ({"regex": ""}, "regex=''"),
        ({"schema": "string"}, "schema='string'"),
        ({"choices": [""]}, "choices=''"),
    ],
)
def test_what_cannot_be_kept_is_refused(model: Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises((InvalidParameter, Unsupported), match=said):
        model.generate("?", **options)


@pytest.mark.parametrize(
    ("form", "least"),
    [
        ({"choices": ["yes", "no", "no way"]}, 2),
        ({"regex": "(ab|cde)f?"}, 2),
        ({"regex": "(abc)?"}, 1),
        ({"grammar": 'start: ("x" "y"*)~3 | "abcd"'}, 3),
        ({"schema": {"enum": ["red", 1234567, [True]]}}, 5),
        ({"schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                     "additionalProperties": False}}, 11),
    ],
)  # fmt: skip
def test_the_shortest_answer_is_known_of_few(model: Model, form: dict[str, Any], least: int) -> None:
    """Every byte is a token here."""
    for most in range(1, least):
        with pytest.raises(InvalidParameter, match=f"max_tokens={most}: "):
            model.generate("?", max_tokens=most, **form)
    for most in (least, least + 1):
        assert len(model.generate("?", max_tokens=most, **form).tokens) <= most


def test_the_shortest_answer_counts_the_longest_tokens(tmp_path: Path) -> None:
    with edgellm.load(tiny("llama").write(tmp_path / "tiny.gguf"), ctx=128) as opened:
        texts = ["the the the", "hello world", "hello hello"]
        shortest = min(len(opened.encode(text, bos=False)) for text in texts)  # which another spelling may undercut
        assert opened.generate("x", choices=texts, max_tokens=shortest)
        with pytest.raises(InvalidParameter, match="max_tokens=1: "):
            opened.generate("x", choices=texts, max_tokens=1)


def test_of_many_answers_the_shortest_is_not_sought(model: Model) -> None:
    started = time.thread_time()
    done = model.generate("?", schema={"type": "array", "items": {"type": "string"}, "minItems": 9}, max_tokens=15)
    assert (done.finish_reason, done.parsed) == ("length", None)
    assert time.thread_time() - started < 1


def test_what_looks_like_a_refused_form_within_a_text_is_none(model: Model) -> None:
    grammar = 'start: "%json <[1]> (((" X // %lark\n# <[2]>\nX: /[(]%lark<\\[/\n'
    assert model.generate("?", grammar=grammar).text == "%json <[1]> ((((%lark<["


def test_choices_that_begin_with_one_another(model: Model) -> None:
    choices = ["a", "ab", "abc", 'a"\\n/', "/a|b/", "é\n"]
    said = {model.generate("?", choices=choices, temperature=5.0, seed=seed, top_k=0).text for seed in range(40)}
    assert said <= set(choices)
    assert len(said) > 2


def test_an_expression_of_many_ways_ends_in_time(model: Model) -> None:
    schema = {"type": "string", "pattern": "^((a|a)*b|(a|a)*c)$", "minLength": 60, "maxLength": 80}
    done = model.generate("?", schema=schema, seed=2)
    assert set(done.parsed[:-1]) == {"a"}
    assert done.parsed[-1] in "bc"


def test_a_form_that_takes_too_much_ends_the_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(library.LIMITS, "max_lexer_states", 300)
    with pytest.raises(ConstraintFailed, match=r"^regex: .*too many states") as failed:
        model.generate("?", regex=r"([ab]*a[ab]{60}c){50}", temperature=2.0, seed=3)
    assert "<state>" not in str(failed.value)
    assert model.generate("?", regex=DATE).parsed  # and nobody else's


def test_a_form_whose_tokens_take_long_to_find_ends_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "FREE", -1.0)  # so that each counts as a second and more
    monkeypatch.setattr(constraint, "MOST", 20.5)
    with pytest.raises(ConstraintFailed, match="takes too long") as failed:
        model.generate("?", regex="[a-z]{50}")
    assert re.fullmatch("[a-z]{20}", failed.value.text)


def test_one_that_fails_takes_no_other_with_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "FREE", -1.0)
    monkeypatch.setattr(constraint, "MOST", 20.5)
    with ThreadPoolExecutor(2) as pool:
        free = pool.submit(model.generate, "?", ignore_eos=True, max_tokens=300, temperature=0)
        with pytest.raises(ConstraintFailed):
            model.generate("?", regex="[a-z]{50}")
        assert len(free.result().tokens) == 300


@pytest.mark.parametrize("short", [-1.0, 1e9])
def test_where_a_mask_is_found_changes_no_answer(model: Model, monkeypatch: pytest.MonkeyPatch, short: float) -> None:
    first = model.generate("Who?", schema=SCHEMA, seed=4, temperature=1.5).text
    monkeypatch.setattr(constraint, "SHORT", short)
    assert model.generate("Who?", schema=SCHEMA, seed=4, temperature=1.5).text == first
    threads = [thread.name for thread in threading.enumerate()]
    assert short > 0 or "edgellm-masks" in threads


def test_a_bias_that_forbids_all_that_may_come_is_named(model: Model) -> None:
    with pytest.raises(InvalidParameter, match="logit_bias forbids"):
        model.generate("?", regex="[xy]", logit_bias={ord("x"): -float("inf"), ord("y"): -float("inf")})


def test_without_the_library_it_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Unsupported, match=r"llguidance.*pip install"):
        model.generate("?", regex=DATE)


def test_a_first_token_that_loses_its_space_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a SentencePiece vocabulary puts in front of a text is none of it."""
    plain = EchoTokenizer.piece

    def spaced(self: Any, token: int, *, special: bool = False, before: int | None = INSIDE) -> bytes:
        lost = token == ord(" ") and before != INSIDE and (before is None or before > 255)
        return b"" if lost else plain(self, token, special=special, before=before)

    monkeypatch.setattr(EchoTokenizer, "piece", spaced)
    with Model(EchoBackend()) as opened:
        for seed in range(4):
            done = opened.generate([BOS], regex=" ?[ab]{2}", temperature=2.0, seed=seed)
            assert re.fullmatch("[ab]{2}", done.text)


def test_the_command_line_reads_files(tmp_path: Any) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "broken.json").write_text("{")
    words = ["--backend", "echo", "echo", "Who?"]
    done = CliRunner().invoke(run, [*words, "--json-schema", str(tmp_path / "schema.json")])
    assert set(json.loads(done.stdout)) == {"name", "age"}
    assert "cut" not in done.stderr
    cut = CliRunner().invoke(run, [*words, "--regex", "[a-z]{40}", "--max-tokens", "9"])
    assert "the answer was cut before it had its form; give it a larger max_tokens" in cut.stderr
    refused = CliRunner().invoke(run, [*words, "--json-schema", str(tmp_path / "broken.json")])
    assert refused.exit_code == 2
    assert "not JSON" in refused.stderr
    assert CliRunner().invoke(run, [*words, "--choices", "one", "--choices", "two"]).stdout.strip() in ("one", "two")
