"""Answers with a form mean the same on every engine, on models of random weights that would say anything."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from backend_cases import prompt

from edgellm.errors import ConstraintFailed, Unsupported
from edgellm.model import Model

ONLY = "distinct"
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["word", "n"],
    "additionalProperties": False,
}
CODE = r"[A-Z]{2}-[0-9]{3}"
GRAMMAR = 'start: (X ", "){1,3} "end"\nX: /[a-c]{1,2}/\n'
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"regex": CODE}, CODE),
    ({"choices": ["yes", "no", "it depends"]}, "yes|no|it depends"),
    ({"grammar": GRAMMAR}, "([a-c]{1,2}, ){1,3}end"),
]


@pytest.fixture(autouse=True)
def ends(model: Model) -> None:
    """A model without a token that ends answers says that it can have no form."""
    if model.info.stop_ids:
        return
    with pytest.raises(Unsupported, match="no token that ends an answer"):
        model.generate(prompt(9), regex="a")
    pytest.skip("no token of this model ends answers")


@pytest.mark.parametrize(("form", "whole"), FORMS)
def test_an_answer_is_of_its_form(model: Model, form: dict[str, Any], whole: str) -> None:
    for seed in range(4):
        done = model.generate(prompt(9), temperature=1.5, seed=seed, **form)
        assert done.finish_reason == "stop"
        assert re.fullmatch(whole, done.text)
        assert done.parsed == done.text


def test_an_answer_is_valid_json(model: Model) -> None:
    for seed in range(4):
        done = model.generate(prompt(9), schema=SCHEMA, temperature=1.5, seed=seed)
        assert done.finish_reason == "stop"
        assert done.parsed == json.loads(done.text)
        assert list(done.parsed) == ["word", "n"]
        assert len(done.parsed["word"]) <= 6
        assert 0 <= done.parsed["n"] <= 99


def test_the_likeliest_answer_is_the_same_again(model: Model) -> None:
    first = model.generate(prompt(9), schema=SCHEMA, temperature=0)
    assert model.generate(prompt(9), schema=SCHEMA, temperature=0).text == first.text


def test_answers_together_keep_their_forms(model: Model) -> None:
    def ask(seed: int) -> bool:
        form, whole = FORMS[seed % len(FORMS)]
        try:
            done = model.generate(prompt(9 + seed), temperature=1.5, seed=seed, **form)
        except ConstraintFailed:
            return False
        return re.fullmatch(whole, done.text) is not None

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(12)))
