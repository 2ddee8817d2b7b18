"""Forms that were written to cost too much: each is refused, ended by a typed error, or kept; none ends the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from constrain.bombs import BOMBS

resource = pytest.importorskip("resource")

PROGRAM = """
import json, resource, sys

resource.setrlimit(resource.RLIMIT_CPU, (240, 240))  # far more than all of them take
from constrain.bombs import BOMBS, explode
from edgellm.backends.echo import EchoBackend
from edgellm.constrain.constraint import Constraints

backend = EchoBackend(n_vocab=40_000)
constraints = Constraints(backend.info, backend.tokenizer)
for name, make in BOMBS.items():
    cost = explode(constraints, backend.info.stop_ids, make, 40)
    print(json.dumps([name, cost.outcome, cost.megabytes]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float]]:
    """Of each, one after another in a process of their own: what became of it, and by how many MB it grew."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600
    )
    rows: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, rows[-1:], done.stderr[-2000:])
    return {name: (outcome, megabytes) for name, outcome, megabytes in rows}


def test_there_are_more_than_thirty() -> None:
    assert len(BOMBS) > 30


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_ended_or_kept(name: str, outcomes: dict[str, tuple[str, float]]) -> None:
    outcome, megabytes = outcomes[name]
    assert megabytes < 200
    assert len(outcome) < 700  # no error quotes the bomb
    kind = outcome.partition(":")[0]
    assert kind in ("complete", "goes on", "InvalidParameter", "Unsupported", "ConstraintFailed")
    refused = REFUSED.get(name)
    assert refused is None or refused in outcome


# What must not be compiled at all, and by which words it is refused.
REFUSED = {
    "enum of 20,000": "Unsupported: schema: #",
    "3,000 properties that may be absent": "Unsupported: schema: #",
    "arrays in 2,000 arrays": "InvalidParameter",
    "a chain of 3,000 definitions": "Unsupported: schema: #",
    "1,000 patternProperties": "Unsupported: schema: #",
    "lists of a million": "Unsupported: schema: #",
    "a text of a million": "Unsupported: schema: #",
    "50,000 words": "InvalidParameter: regex: 488,889 characters",
    "50,000 choices": "InvalidParameter: choices: ",
    "a chain of 4,000 rules": "Unsupported: grammar: 4002 rules and brackets in one another",
    "60 KiB of optional letters": "Unsupported: grammar: ",
    "a chain of brackets": "rules and brackets in one another",
    "a chain of 1,700 terminals": "rules and brackets in one another",
    "GBNF of 64 KiB": "InvalidParameter: grammar: ",
    "GBNF in 3,000 parentheses": "grammar: ",
}
