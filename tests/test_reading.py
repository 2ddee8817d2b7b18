"""The grammars of answers, for every dialect, with parameters that refer to types of their own."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any

import pytest

from edgellm.constrain import library
from edgellm.constrain.kinds import parameter_schema
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.dialects import BY_NAME
from edgellm.prompts.functions import tools_of
from edgellm.prompts.literal import Braced
from edgellm.reading import AnswerReading, Marks, must_call


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


@dataclass
class Place:
    city: str
    near: list[int]


def weather(place: Place, unit: Unit, others: list[Place], days: int = 1) -> str:
    """The weather in a place."""
    return ""


ARGUMENTS = {
    "place": {"city": "Oslo", "near": [1, 2]},
    "unit": "C",
    "others": [{"city": "Rome", "near": []}],
    "days": 2,
}
FORM = library.from_regex("[0-9]+")


def accepted(grammar: str, text: str) -> bool:
    llguidance = pytest.importorskip("llguidance")
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def written(dialect: Dialect, arguments: dict[str, Any]) -> str:
    """A call as its grammar has it: of the dialects that have texts without quotation marks, values that hold others
    are JSON."""
    quote = dialect.syntax.quote if isinstance(dialect.syntax, Braced) else ""
    if not quote:
        return dialect.write([("weather", arguments)])
    said = (f"{k}:{quote + v + quote if isinstance(v, str) else json.dumps(v)}" for k, v in arguments.items())
    return f"{dialect.mark}call:weather{{{','.join(said)}}}{dialect.tail}"


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_call_with_types_of_its_own_can_be_enforced(name: str) -> None:
    dialect = BY_NAME[name]
    schemas = {tool.name: tool.parameters for tool in tools_of([weather], parameter_schema)}
    assert set(schemas["weather"]["$defs"]) == {"Place"}
    call, wrong = (written(dialect, {**ARGUMENTS, "place": {"city": "Oslo", "near": near}}) for near in ([1, 2], ["x"]))
    reader = AnswerReading("", dialect, None, Marks(), schemas).reader()
    reader.feed(call)
    reader.finish()
    assert [each.arguments for each in reader.calls] == [ARGUMENTS]
    must = library.joined(AnswerReading("", dialect, None, Marks(), schemas, ("weather",)).grammar(False), "")
    assert accepted(must, call)
    assert not accepted(must, wrong)
    assert not accepted(must, "12")
    free = AnswerReading("", dialect, None, Marks(), schemas)
    assert free.grammar(False) == ""
    either = library.joined(free.grammar(True), FORM)
    assert accepted(either, call)
    assert accepted(either, "12")
    assert not accepted(either, wrong)


def test_two_types_with_one_name_are_refused() -> None:
    def other() -> type:
        @dataclass
        class Place:
            x: int

        return Place

    def between(one: Any, two: Any) -> None: ...

    between.__annotations__ = {"one": Place, "two": other()}
    with pytest.raises(InvalidParameter, match="two types with the name Place"):
        tools_of([between], parameter_schema)
    between.__annotations__ = {"one": complex, "two": int}
    with pytest.raises(Unsupported, match=r"tools\[0\]: between: one"):
        tools_of([between], parameter_schema)


def test_a_choice_is_one_of_those() -> None:
    assert must_call("auto", []) == ()
    assert must_call("required", ["a", "b"]) == ("a", "b")
    assert must_call("b", ["a", "b"]) == ("b",)
    with pytest.raises(InvalidParameter, match="a, b"):
        must_call("c", ["a", "b"])
