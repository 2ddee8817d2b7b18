"""Drafts on every backend: the answer is one that its rows give, what is kept is the state of the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend_cases import Case, feed, prompt

from edgellm.backends.base import Backend
from edgellm.engine.rowcost import RowCost
from edgellm.errors import Unsupported
from edgellm.model import Model

ONLY = "generates"
PROMPT = prompt(21) * 3
ANSWER = 60
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": ANSWER, "ignore_eos": True}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cost nothing: every draft pays."""
    monkeypatch.setattr(RowCost, "seconds", lambda self, rows: 1.0 + 1e-6 * rows)


def can(model: Model) -> bool:
    return model.info.can_truncate and model._engine.backend.pass_shape.all_rows


def test_every_token_is_the_likeliest(free: None, case: Case, model: Model, opened: Backend) -> None:
    if not can(model):
        with pytest.raises(Unsupported, match="speculate"):
            model.generate(PROMPT, speculate=True, **GREEDY)
        assert model.generate(PROMPT, **GREEDY).timings.drafted == 0
        return
    done = model.generate(PROMPT, speculate=True, logprobs=0, **GREEDY)
    assert done.timings.drafted > 0
    assert (done.usage.completion_tokens, len(done.tokens), done.finish_reason) == (ANSWER, ANSWER, "length")
    sequence = opened.new_sequence()
    row = feed(opened, sequence, PROMPT)
    for token in done.tokens:
        assert row[token] >= row.max() - 2 * case.tolerance
        row = feed(opened, sequence, [token])
    sequence.close()


def test_a_seed_gives_it_again_where_rows_are_exact(free: None, model: Model) -> None:
    shape = model._engine.backend.pass_shape
    if not can(model):
        pytest.skip("refused: see above")
    options: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": ANSWER, "ignore_eos": True}
    plain = model.generate(PROMPT, speculate=False, cache=False, **options)
    drafted = model.generate(PROMPT, speculate=True, cache=False, **options)
    assert len(drafted.tokens) == ANSWER
    if shape.exact or model.backend == "echo":
        assert drafted.tokens == plain.tokens


def test_what_is_kept_is_the_state_of_the_answer(free: None, case: Case, model: Model, opened: Backend) -> None:
    if not can(model):
        pytest.skip("refused: see above")
    done = model.generate(PROMPT, speculate=True, **GREEDY)
    assert done.timings.drafted > 0
    text = [*PROMPT, *done.tokens, *prompt(12, seed=5)]
    sequence = opened.new_sequence()
    feed(opened, sequence, PROMPT)
    for token in done.tokens[:-1]:
        feed(opened, sequence, [token])
    row = feed(opened, sequence, text[sequence.length :]).astype(np.float64)
    sequence.close()
    expected = row - np.log(np.exp(row).sum())
    for parked in (False, True):
        model._engine.call(lambda _: None, needs_room=parked)
        again = model.generate(text, temperature=0, max_tokens=1, logprobs=5, ignore_eos=True)
        assert again.usage.cached_tokens >= len(PROMPT) + ANSWER - 8
        assert again.logprobs is not None
        for token, _, logprob in again.logprobs[0].top:
            assert logprob == pytest.approx(expected[token], abs=2 * case.tolerance + 1e-6)
