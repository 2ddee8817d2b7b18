"""Types of Python as schemas, and answers as instances of them."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import random
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import pydantic
import pytest
from masks import matcher, walk

from edgellm.constrain.parsed import instance, parse, schema_of, strict_json
from edgellm.constrain.schema import prepare
from edgellm.errors import GenerationError, InvalidParameter, Unsupported


class Color(enum.Enum):
    RED = "red"
    ONE = 1


class Key(TypedDict, total=False):
    a: int
    b: str | None


@dataclasses.dataclass
class Line:
    """A line of an invoice."""

    name: Annotated[str, "what was sold"]
    count: Annotated[int, {"minimum": 1}] = 1
    tags: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Note:
    text: str


@dataclasses.dataclass
class Invoice:
    lines: list[Line]
    when: datetime.date
    at: datetime.datetime
    color: Color
    kind: Literal["x", 2, None]
    either: Line | Note
    pair: tuple[int, float]
    more: tuple[int, ...]
    table: dict[str, Key]
    id: uuid.UUID
    child: Invoice | None = None


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=1, max_length=8)
    price: Decimal
    tags: set[str] = set()
    children: list[Item] = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    when: datetime.datetime


class Pets(pydantic.BaseModel):
    pets: list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]]


ANSWER: dict[str, Any] = {
    "lines": [{"name": "a", "tags": ["x", "x"]}],
    "when": "2024-02-29",
    "at": "2024-01-01T10:00:00.5Z",
    "color": 1,
    "kind": 2,
    "either": {"text": "t"},
    "pair": [1, 2],
    "more": [1, 2, 3],
    "table": {"k": {"a": 1}},
    "id": "12345678-1234-1234-1234-123456789abc",
}


def test_a_dataclass_is_made_of_its_answer() -> None:
    made = parse(Invoice, json.dumps(ANSWER))
    assert made == Invoice(
        lines=[Line("a", 1, {"x"})],
        when=datetime.date(2024, 2, 29),
        at=datetime.datetime(2024, 1, 1, 10, 0, 0, 500_000, datetime.timezone.utc),
        color=Color.ONE,
        kind=2,
        either=Note("t"),
        pair=(1, 2.0),
        more=(1, 2, 3),
        table={"k": {"a": 1}},
        id=uuid.UUID("12345678-1234-1234-1234-123456789abc"),
    )
    assert isinstance(made.pair[1], float)


def test_the_schema_of_a_dataclass() -> None:
    found = schema_of(Line)["$defs"]["Line"]
    assert found["required"] == ["name"]
    assert found["additionalProperties"] is False
    assert found["description"] == "A line of an invoice."
    assert found["properties"]["name"] == {"type": "string", "description": "what was sold"}
    assert found["properties"]["count"] == {"type": "integer", "minimum": 1, "default": 1}


def test_keys_of_a_typed_dict_may_be_absent() -> None:
    assert schema_of(Key)["$defs"]["Key"]["required"] == []
    assert parse(Key, '{"b": null}') == {"b": None}


def test_a_pydantic_model_is_made_of_its_answer() -> None:
    made = parse(Item, '{"name": "a", "price": 1.5, "children": [{"name": "b", "price": 2}]}')
    assert made == Item(name="a", price=Decimal("1.5"), children=[Item(name="b", price=Decimal(2))])


@pytest.mark.parametrize("kind", [Invoice, Line, Key, Item, Pets])
def test_walks_give_answers_that_become_instances(kind: Any) -> None:
    start, chance, made = matcher(prepare(schema_of(kind))), random.Random(3), 0
    for _ in range(12):
        text = walk(start, chance)
        if text is not None:
            parse(kind, text)
            made += 1
    assert made


@pytest.mark.parametrize(
    ("change", "message"),
    [({"color": 2}, "does not satisfy"), ({"kind": True}, "does not satisfy"), ({"more": "x"}, "does not satisfy")],
)
def test_an_answer_that_is_not_valid_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        parse(Invoice, json.dumps(ANSWER | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ("{", "no JSON"),
        ("NaN", "NaN"),
        ("1e999", "beyond"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_json_with_one_reading_alone(text: str, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        strict_json(text)
    with pytest.raises(GenerationError, match=message):
        parse({}, text)


def test_a_validator_of_the_user_may_refuse() -> None:
    with pytest.raises(GenerationError, match="Item refuses the answer"):
        parse(Item, '{"name": "", "price": 1}')


def test_types_without_a_form_are_named_by_path() -> None:
    @dataclasses.dataclass
    class Bad:
        inner: list[dict[str, bytes]]

    Bad.__annotations__["inner"] = list[dict[str, bytes]]
    with pytest.raises(Unsupported, match=r"Bad\.inner\[\]\{\}: the type bytes"):
        schema_of(Bad)


@pytest.mark.parametrize("kind", [3, int, None, "text", list[int]])
def test_what_is_no_type_of_objects_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidParameter, match="a pydantic model, a dataclass"):
        schema_of(kind)


def test_what_a_class_raises_as_it_is_made_refuses_the_answer() -> None:
    @dataclasses.dataclass
    class Moody:
        mood: str

        def __post_init__(self) -> None:
            raise RuntimeError(f"not {self.mood}")

    for made in (lambda: parse(Moody, '{"mood": "happy"}'), lambda: instance(Moody, {"mood": "happy"})):
        with pytest.raises(GenerationError, match="not happy"):
            made()
