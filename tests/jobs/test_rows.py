"""edgellm.batch: the rows of a program."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny

import edgellm
from edgellm import GenerateParams, Model
from edgellm.errors import InvalidParameter, ModelNotFound
from edgellm.jobs import rows as module


def test_results_are_in_the_order_of_the_rows(echo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 16)
    prompts = [f"{at * 7 % 100} apples" for at in range(100)]
    found = list(edgellm.batch(prompts, echo, temperature=0))
    assert [each["text"] for each in found] == prompts
    assert [each["line"] for each in found] == list(range(1, 101))
    loose = list(edgellm.batch(prompts, echo, temperature=0, ordered=False))
    assert sorted(each["line"] for each in loose) == list(range(1, 101))
    assert all(each["text"] == prompts[each["line"] - 1] for each in loose)


def test_rows_may_be_of_every_kind(echo: Model) -> None:
    asked = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "temperature": 0}}
    rows: list[Any] = ["a", {"prompt": "b", "id": 1}, asked, {"promt": "d"}]
    plain, other, request, wrong = edgellm.batch(iter(rows), echo, GenerateParams(temperature=0), system="s")
    assert (plain["text"], other["text"], other["id"]) == ("a", "b", 1)
    assert request["response"]["body"]["choices"][0]["text"] == "x"
    assert wrong["error"]["code"] == "missing_required_parameter"


def test_rows_are_taken_a_portion_at_a_time(echo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 10)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"row {taken}"

    found = edgellm.batch(endless(), echo, temperature=0)
    assert [next(found)["text"] for _ in range(50)] == [f"row {at}" for at in range(1, 51)]
    assert taken <= 50 + 10 + 2 * echo.max_sequences + 10
    found.close()


def test_a_path_is_opened_for_as_long(tmp_path: Path) -> None:
    path = tiny().write(tmp_path / "tiny.gguf")
    found = list(edgellm.batch(["hello", "world"], str(path), temperature=0, max_tokens=3, raw=True))
    assert [each["usage"]["completion_tokens"] for each in found] == [3, 3]
    with pytest.raises(ModelNotFound):
        next(edgellm.batch(["hello"], tmp_path / "nothing.gguf"))


def test_it_runs_beside_an_event_loop(echo: Model) -> None:
    async def inside() -> list[dict[str, Any]]:
        return list(edgellm.batch(["a", "b"], echo, temperature=0))

    assert [each["text"] for each in asyncio.run(inside())] == ["a", "b"]


def test_an_error_of_the_rows_is_the_callers(echo: Model) -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(edgellm.batch(failing(), echo))


@pytest.mark.parametrize("rows", ["text", b"x", {"prompt": "x"}, 7, None])
def test_rows_that_are_none_are_refused(echo: Model, rows: Any) -> None:
    with pytest.raises(InvalidParameter, match="rows="):
        edgellm.batch(rows, echo)


def test_other_arguments_are_checked_at_once(echo: Model) -> None:
    wrong: list[dict[str, Any]] = [
        {"temperature": -1},
        {"ordered": 1},
        {"raw": None},
        {"system": 3},
        {"thinking": "yes"},
        {"no_such": 1},
        {"params": {}},
    ]
    for each in wrong:
        with pytest.raises(InvalidParameter):
            edgellm.batch(["a"], echo, **each)
    with pytest.raises(InvalidParameter, match="model="):
        edgellm.batch(["a"], 7)  # type: ignore[arg-type]
    for row in (7, object(), {"prompt": object()}, {"prompt": float("nan")} | {1: {2}}):
        with pytest.raises(InvalidParameter, match=r"rows\[0\]"):
            list(edgellm.batch([row], echo))  # type: ignore[list-item]
