"""Results of calls: of functions, of coroutines, of what is wrong with either."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from edgellm.errors import InvalidParameter
from edgellm.events import ToolCall
from edgellm.prompts.functions import tools_of
from edgellm.toolbox import MOST, Toolbox


def add(a: int, b: int = 1) -> dict[str, int]:
    if a < 0:
        raise ValueError("too small")
    return {"sum": a + b}


def long() -> str:
    return "x" * (MOST + 1)


def where() -> str:
    return threading.current_thread().name


async def later(a: int) -> str:
    await asyncio.sleep(0)
    return f"é{a}"


def schema_of(hint: Any) -> Mapping[str, Any]:
    return {"type": "integer"}


TOOLS = tools_of([add, long, where], schema_of)


def _call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall("call00001", name, arguments)


def _said(box: Toolbox, call: ToolCall) -> str:
    message = box.run(call)
    assert (message["role"], message["tool_call_id"], message["name"]) == ("tool", call.id, call.name)
    assert asyncio.run(box.arun(call)) == message
    return str(message["content"])


def test_results_are_texts() -> None:
    box = Toolbox(TOOLS)
    assert json.loads(_said(box, _call("add", a=2))) == {"sum": 3}
    assert _said(box, _call("long")) == "x" * MOST + f"\n[cut: {MOST + 1} characters]"


def test_what_is_wrong_is_told_to_the_model() -> None:
    box = Toolbox(TOOLS)
    assert _said(box, _call("nothing")) == "error: there is no tool 'nothing'; there are: add, long, where"
    assert _said(box, _call("add", a=-1)) == "error: ValueError: too small"
    assert "missing a required argument: 'a'" in _said(box, _call("add"))
    assert "unexpected keyword argument 'c'" in _said(box, _call("add", a=1, c=2))


def test_a_call_is_approved_first() -> None:
    asked: list[ToolCall] = []

    def approve(call: ToolCall) -> bool | str:
        asked.append(call)
        return True if call.arguments.get("a") == 1 else "only 1"

    box = Toolbox(TOOLS, approve=approve)
    assert json.loads(_said(box, _call("add", a=1))) == {"sum": 2}
    assert _said(box, _call("add", a=2)) == "error: this call was not approved: only 1"
    assert [call.arguments["a"] for call in asked] == [1, 1, 2, 2]
    for no in (False, None, 1, ""):
        assert _said(Toolbox(TOOLS, approve=lambda _, no=no: no), _call("long")) == "error: this call was not approved"


def test_arguments_are_checked_and_made() -> None:
    def taken(tool: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(arguments.get("a"), int):
            raise ValueError(f"{tool.name}: a is no number")
        return {key: value * 10 for key, value in arguments.items()}

    box = Toolbox(TOOLS, taken=taken)
    assert json.loads(_said(box, _call("add", a=1))) == {"sum": 11}
    assert _said(box, _call("add", a="1")) == "error: the arguments of add are wrong: add: a is no number"


def test_coroutines_are_awaited_and_functions_run_beside() -> None:
    box = Toolbox(tools_of([later, where], schema_of))
    assert asyncio.run(box.arun(_call("later", a=1)))["content"] == "é1"
    assert asyncio.run(box.arun(_call("where")))["content"] != box.run(_call("where"))["content"]
    with pytest.raises(InvalidParameter, match="arun"):
        box.run(_call("later", a=1))

    async def approve(call: ToolCall) -> bool:
        return call.arguments["a"] > 1

    box = Toolbox(tools_of([later], schema_of), approve=approve)
    assert [asyncio.run(box.arun(_call("later", a=a)))["content"][:6] for a in (1, 2)] == ["error:", "é2"]


def test_whatever_a_tool_raises_is_told() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def first() -> int:
        return next(iter([]))

    def mute() -> None:
        raise Mute

    box = Toolbox(tools_of([first, mute], schema_of))
    assert _said(box, _call("first")) == "error: StopIteration: "
    assert _said(box, _call("mute")) == "error: Mute"


def test_what_hides_that_it_is_to_be_awaited_is_awaited() -> None:
    class Later:
        __name__ = "later"

        async def __call__(self, a: int) -> str:
            return await later(a)

    def hidden(a: int) -> Any:
        return later(a)

    box = Toolbox(tools_of([Later(), hidden], schema_of))
    for name in ("later", "hidden"):
        assert asyncio.run(box.arun(_call(name, a=1)))["content"] == "é1"
        with pytest.raises(InvalidParameter, match=f"{name} must be awaited"):
            box.run(_call(name, a=1))


def test_a_tool_without_a_function_cannot_be_run() -> None:
    with pytest.raises(InvalidParameter, match="no function"):
        Toolbox(tools_of([{"name": "f"}], schema_of))
