"""Forms that end soon, and for each whether a text has it, by other means than those that gave it the form."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable
from typing import Any

from constrain.oracle import oracle
from constrain.schema_parts import closed, form, like, number, of, some, tagged, text, whole

PERSON = closed(
    name=text(1, 20),
    born=form("date"),
    languages=some(of("English", "French", "German"), 3),
    height=number(0.3, 2.6) | {"multipleOf": 0.01},
)
ORDER = closed(
    ["number", "items"],
    number=like("^[A-Z]{2}-[0-9]{4}$"),
    items=some(closed(what=text(1, 12), count=whole(1, 99)), 2, 1),
    paid={"anyOf": [form("date-time"), {"type": "null"}]},
)
ACTION = tagged(
    "tool",
    search=closed(query=text(1, 16), most=whole(1, 50)),
    mail=closed(to=form("email") | {"maxLength": 24}, urgent={"type": "boolean"}),
    stop=closed(),
)
YEAR = r"[A-Z][a-z]{1,12}, (19|20)[0-9]{2}\."
ADDRESS = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?::[1-9][0-9]{1,3})?"
SUM = """
start: "(" value OP value ")"
value: NUMBER | "(" NUMBER OP NUMBER ")"
OP: " + " | " - " | " * "
NUMBER: /[1-9][0-9]{0,3}/
"""
TABLE = r"""
root ::= "name,age\n" row row
row ::= name "," age "\n"
name ::= [A-Z] [a-z]{1,10}
age ::= [1-9] [0-9]?
"""
MOODS = ("positive", "negative", "neutral", "neither", "no answer")


def _valid(schema: Any) -> Callable[[str], bool]:
    errors = oracle(schema)
    return lambda text: not errors(json.loads(text))


def _is_sum(text: str) -> bool:
    """A product or a sum of two, each a number or one of two numbers, to Python's parser."""

    def depth(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return 0
        assert isinstance(node, ast.BinOp)
        assert isinstance(node.op, (ast.Add, ast.Sub, ast.Mult))
        return 1 + max(depth(node.left), depth(node.right))

    return text[0] == "(" and text[-1] == ")" and 1 <= depth(ast.parse(text, mode="eval").body) <= 2


def _is_table(text: str) -> bool:
    head, *rows = csv.reader(text.splitlines())
    return head == ["name", "age"] and len(rows) == 2 and all(n.isalpha() and 1 <= int(a) <= 99 for n, a in rows)


FORMS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "person": ({"schema": PERSON}, _valid(PERSON)),
    "order": ({"schema": ORDER}, _valid(ORDER)),
    "action": ({"schema": ACTION}, _valid(ACTION)),
    "year": ({"regex": YEAR}, lambda text: re.fullmatch(YEAR, text) is not None),
    "address": ({"regex": ADDRESS}, lambda text: re.fullmatch(ADDRESS, text) is not None),
    "sum": ({"grammar": SUM}, _is_sum),
    "table": ({"grammar": TABLE}, _is_table),
    "mood": ({"choices": MOODS}, lambda text: text in MOODS),
}
