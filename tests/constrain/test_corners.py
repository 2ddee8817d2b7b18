"""Forms beside what else an answer may have: log-probabilities, ends, bytes as tokens, drafts, parking, stopping."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from constrain.formed import FORMS
from tiny_models import tiny

import edgellm
from edgellm.backends.base import Rows, Step
from edgellm.backends.echo import EOS, IM_END, EchoBackend
from edgellm.constrain import constraint
from edgellm.engine.cancel import CancelToken
from edgellm.engine.rowcost import RowCost
from edgellm.errors import Busy, ConstraintFailed
from edgellm.model import Model
from edgellm.params import GenerateParams

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def model() -> Iterator[Model]:
    with Model(EchoBackend(script="I would rather say this.")) as opened:
        yield opened


@pytest.mark.parametrize("form", [form for form, _ in FORMS.values()], ids=list(FORMS))
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_change_no_answer(model: Model, form: dict[str, Any], temperature: float) -> None:
    options: dict[str, Any] = {"temperature": temperature, "seed": 2, "max_tokens": 200, **form}
    plain = model.generate("Who?", **options)
    done = model.generate("Who?", logprobs=2, **options)
    assert (done.text, done.tokens, done.parsed) == (plain.text, plain.tokens, plain.parsed)
    assert done.logprobs is not None
    assert [each.token for each in done.logprobs] == done.tokens
    assert all(len(each.top) == 2 and each.logprob <= each.top[0][2] <= 0 for each in done.logprobs)


def test_logprobs_of_a_stream_come_with_their_tokens(model: Model) -> None:
    for chunk in model.stream("Who?", schema=SCHEMA, logprobs=0, seed=1):
        assert [each.token for each in chunk.logprobs or ()] == chunk.tokens


def test_every_token_that_ends_answers_may_end_one(model: Model) -> None:
    made = model._engine._constraints.of(GenerateParams(regex="ab*"), model.encode("x"))
    assert made is not None

    def may_come() -> set[int]:
        return set(np.flatnonzero(np.unpackbits(made.mask().view(np.uint8), bitorder="little")).tolist())

    assert may_come() == {ord("a")}
    made.accept(ord("a"))
    assert may_come() == {ord("b"), EOS, IM_END}
    for end in (EOS, IM_END):
        done = model.generate("x", regex="ab*", logit_bias={end: 50.0, ord("b"): -50.0})
        assert (done.text, done.finish_reason, done.parsed) == ("a", "stop", "a")


@pytest.mark.parametrize(
    ("form", "whole"),
    [
        ({"choices": ("naïve\nΩ 🙂", "one\n\ttwo", "東京")}, "naïve\nΩ 🙂|one\n\ttwo|東京"),
        ({"regex": "[\\n🙂é]{3}x"}, "[\n🙂é]{3}x"),
        ({"grammar": 'start: "Ω" X\nX: /[a-cé-ë]{2}/\n'}, "Ω[a-cé-ë]{2}"),
    ],
)
@pytest.mark.parametrize("kind", ["gemma3", "llama"])
def test_texts_that_are_spelt_in_bytes(tmp_path: Path, kind: str, form: dict[str, Any], whole: str) -> None:
    """Of the Gemmas' vocabulary each byte is a token of its own (<0x0A>)."""
    path = tiny(kind).write(tmp_path / "tiny.gguf")
    with edgellm.load(path, ctx=128) as opened:
        if not opened.info.stop_ids:
            pytest.skip("no token of this model ends answers")
        said = set()
        for seed in range(6):
            done = opened.generate("Hello", temperature=1.5, top_k=0, seed=seed, **form)
            assert done.finish_reason == "stop"
            assert re.fullmatch(whole, done.text)
            said.add(done.text)
        assert len(said) > 1


def test_drafts_come_true_within_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowCost, "seconds", lambda self, rows: 1.0 + 1e-6 * rows)  # every draft pays
    with Model(EchoBackend(n_ctx=2048)) as echo:
        said = "to be or not to be, " * 3
        done = echo.chat().send(said, regex="[a-z, ]*", temperature=0, speculate=True)
        assert (done.text, done.parsed) == (said, said)
        assert done.timings.accepted > 30


class Crowded(EchoBackend):
    """Has no room for some passes of several, so that requests are parked and taken up again."""

    passes = 0

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        self.passes += 1
        if len(steps) > 1 and self.passes % 7 == 0:
            raise Busy("the KV cache is full")
        return super().forward(steps)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_that_were_parked_are_the_same(model: Model, temperature: float) -> None:
    def answers(opened: Model) -> list[Any]:
        def ask(at: int) -> tuple[str, Any]:
            form, _ = list(FORMS.values())[at % len(FORMS)]
            done = opened.generate(f"Who {at}?", temperature=temperature, seed=at, max_tokens=250, **form)
            return done.text, done.parsed

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, range(16)))

    with Model(Crowded(script="I would rather say this.")) as crowded:
        assert answers(crowded) == answers(model)


def test_eight_forms_at_once_are_all_kept(model: Model) -> None:
    def ask(name: str) -> bool:
        form, has_form = FORMS[name]
        done = model.generate("Who?", temperature=1.5, seed=len(name), **form)
        return done.finish_reason == "stop" and done.parsed is not None and has_form(done.text)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, FORMS))


@pytest.mark.parametrize("form", [{"schema": SCHEMA}, {"regex": "[a-z]{400}"}, {"grammar": "start: /[ab]{400}/"}])
def test_an_answer_that_was_stopped_is_no_value(form: dict[str, Any]) -> None:
    with Model(EchoBackend(delay=0.01)) as opened:
        cancel = CancelToken()
        stream = opened.stream("Who?", cancel=cancel, speculate=False, **form)
        next(iter(stream))
        cancel.cancel()
        last = list(stream)[-1].completion
        assert last is not None
        assert (last.finish_reason, last.parsed) == ("cancelled", None)
        done = opened.generate("Who?", timeout=0.05, **form)
        assert (done.finish_reason, done.parsed) == ("timeout", None)
        assert opened.generate("Who?", choices=["yes"]).parsed == "yes"


def test_what_fails_brings_what_was_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "FREE", -1.0)  # so that each mask counts as a second and more
    monkeypatch.setattr(constraint, "MOST", 20.5)
    said = []
    with pytest.raises(ConstraintFailed, match="takes too long") as failed:
        said.extend(chunk.text for chunk in model.stream("?", regex="[a-zé]{50}"))
    assert failed.value.text
    assert failed.value.text.startswith("".join(said))


def test_an_answer_that_is_refused_afterwards_is_there(model: Model) -> None:
    """No grammar counts keys that the schema does not name."""
    twice = '{"a": 1, "a": 2}'
    grammar = {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2, "maxProperties": 2}
    made = model._engine._constraints.of(GenerateParams(schema=grammar), model.encode("x"))
    assert made is not None
    with pytest.raises(ConstraintFailed, match="twice") as failed:
        made.parsed(twice)
    assert failed.value.text == twice
    assert made.parsed('{"a": 1, "b": 2}') == json.loads('{"a": 1, "b": 2}')
