"""Answers of a real model, as random as one would ask for, have their forms."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from constrain.formed import FORMS

import edgellm
from edgellm.model import Model


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with edgellm.load(smollm2, ctx=2048, cache=edgellm.CacheParams(disk=0)) as opened:
        yield opened


def test_answers_of_all_forms_at_once_have_them(model: Model) -> None:
    """Eight streams, two answers of each form."""

    def ask(seed: int) -> bool:
        form, has_form = FORMS[list(FORMS)[seed % len(FORMS)]]
        done = model.generate("Somebody said:", temperature=1.5, seed=seed, max_tokens=150, **form)
        if done.finish_reason == "length":
            assert done.parsed is None
            return False
        assert has_form(done.text), done.text
        return True

    with ThreadPoolExecutor(8) as pool:
        whole = list(pool.map(ask, range(2 * len(FORMS))))
    assert sum(whole) >= len(whole) - 1  # one may have been cut
