"""What is kept of prompts is of use in contexts of other sizes, and never in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backend_cases import Case, feed, fresh, prompt

import edgellm
from edgellm import budget
from edgellm.backends.base import Step
from edgellm.errors import Busy


def test_what_a_larger_context_kept_does_not_stop_a_smaller_one(
    case: Case, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not case.generates:
        return
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    tokens = prompt(200)
    with edgellm.load(path, replace(case.params, ctx=320)) as model:
        model.generate(tokens, max_tokens=1, temperature=0)
    with edgellm.load(path, replace(case.params, ctx=128)) as model:
        done = model.generate(tokens[:100], max_tokens=1, temperature=0)
        fresh = model.generate(tokens[:100], max_tokens=1, temperature=0, cache=False)
        assert done.tokens == fresh.tokens
        again = model.generate(tokens[:100], max_tokens=1, temperature=0)
        assert again.usage.cached_tokens >= 80 or not model.info.can_truncate


def test_as_many_sequences_are_open_as_were_asked_for(case: Case, path: Path) -> None:
    if not case.generates:
        return
    backend = case.open(path, max_sequences=20)
    starts = [prompt(9, seed=i) for i in range(20)]
    expected = [fresh(backend, [*start, 7]) for start in starts[:3]]
    sequences = [backend.new_sequence() for _ in starts]
    with pytest.raises(Busy, match="20 sequences"):
        backend.new_sequence()
    for sequence, start in zip(sequences, starts, strict=True):
        feed(backend, sequence, start)
    rows = backend.forward([Step(sequence, [7], "last") for sequence in sequences])
    for row, wanted in zip(rows, expected, strict=False):
        assert row is not None
        np.testing.assert_allclose(row[0], wanted, rtol=0, atol=max(case.tolerance, 1e-6))
    backend.close()


def test_sequences_follow_from_the_memory_for_their_state() -> None:
    assert [budget.sequences(cells, whole=False) for cells in (320, 8192, 1 << 20)] == [8, 16, 64]
    assert budget.sequences(1 << 20, whole=True) == 8
