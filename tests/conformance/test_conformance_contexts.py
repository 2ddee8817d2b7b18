"""What is kept of prompts is of use in contexts of other sizes, and never in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from backend_cases import Case, prompt

import edgellm


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
