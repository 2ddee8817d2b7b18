"""Functions and JSON objects as tools."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any

import pytest

from edgellm.errors import InvalidParameter
from edgellm.prompts.functions import Tool, documented, tool_of, tools_of


def schema_of(hint: Any) -> Mapping[str, Any]:
    names = {str: "string", int: "integer", float: "number", bool: "boolean", list[int]: "array"}
    if hint not in names:
        raise InvalidParameter(f"no schema for {hint}")
    return {"type": names[hint]}


def weather(city: str, days: int = 1, *, near: bool = False) -> str:
    """The weather in a city.

    As the office says.

    Args:
        city: Its name, which may
            go on.
        days (int, optional): How many: from today on.

    Returns:
        str: a text
    """
    return f"{city} {days} {near}"


def test_a_function_says_what_it_takes() -> None:
    tool = tool_of(weather, schema_of)
    assert (tool.name, tool.description) == ("weather", "The weather in a city.\n\nAs the office says.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, which may go on."},
            "days": {"type": "integer", "description": "How many: from today on.", "default": 1},
            "near": {"type": "boolean", "default": False},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    assert tool.function is weather
    assert tool.described()["function"]["name"] == "weather"


NUMPY = """It sums.

Parameters
----------
a, b : int
    Numbers.
c : str, optional
    A text
    of two lines.

Returns
-------
int
    The sum.
"""
SPHINX = """It sums.

:param a: Numbers.
:param int b: Numbers.
:param c: A text
    of two lines.
:type c: str
:returns: the sum
"""
EPYTEXT = "It sums.\n\n@param a: Numbers.\n@param b: Numbers.\n@param c: A text\n    of two lines.\n@return: the sum"
GOOGLE = "It sums.\n\nArgs:\n  a: Numbers.\n  b (int): Numbers.\n  c: A text\n    of two lines.\n\nRaises:\n  E: no"


@pytest.mark.parametrize("text", [NUMPY, SPHINX, EPYTEXT, GOOGLE], ids=["numpy", "sphinx", "epytext", "google"])
def test_docstrings_in_the_usual_styles(text: str) -> None:
    assert documented(text) == ("It sums.", {"a": "Numbers.", "b": "Numbers.", "c": "A text of two lines."})


def test_notes_partials_and_methods() -> None:
    def noted(city: Annotated[str, "Which one"], other=None) -> None: ...  # type: ignore[no-untyped-def]

    properties = tool_of(noted, schema_of).parameters["properties"]
    assert properties == {"city": {"type": "string", "description": "Which one"}, "other": {}}
    assert tool_of(functools.partial(weather, days=2), schema_of).parameters["properties"]["days"]["default"] == 2

    class Station:
        def read(self, at: int) -> int:
            """What is measured."""
            return at

    assert tool_of(Station().read, schema_of).parameters["required"] == ["at"]


def test_objects_in_both_forms() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    bare = {"name": "f", "description": "F.", "parameters": schema}
    for form in (bare, {"type": "function", "function": bare}, {"type": "function", **bare}):
        assert tool_of(form, schema_of) == Tool("f", "F.", schema)
    assert tool_of({"name": "f"}, schema_of).parameters == {"type": "object", "properties": {}}
    assert tool_of({"name": "f", "input_schema": schema}, schema_of).parameters == schema


def _positional(a: int, /) -> None: ...
def _many(*all: int) -> None: ...
def _unknown(a: bytes) -> None: ...
def _unresolved(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (5, "int"),
        ({"name": "no name"}, "no name"),
        ({"name": "f", "parameters": {"type": "string"}}, "object"),
        ({"name": "f", "parameters": {"properties": []}}, "properties"),
        ({"name": "f", "parameters": {"required": "a"}}, "required"),
        ({"name": "f", "description": 5}, "description"),
        ({"type": "custom", "name": "f", "function": {}}, "custom"),
        ({"function": 5}, "function"),
        (lambda a: a, "name"),
        (_positional, "by its name"),
        (_many, "by its name"),
        (_unknown, "_unknown: a: no schema"),
        (_unresolved, "Nowhere"),
    ],
)
def test_what_is_no_tool_is_refused(value: Any, why: str) -> None:
    with pytest.raises(InvalidParameter, match=why):
        tools_of([value], schema_of)


def test_lists_of_tools_are_checked() -> None:
    with pytest.raises(InvalidParameter, match="twice"):
        tools_of([weather, {"name": "weather"}], schema_of)
    with pytest.raises(InvalidParameter, match="list"):
        tools_of({"name": "weather"}, schema_of)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="128"):
        tools_of([{"name": f"f{at}"} for at in range(129)], schema_of)
