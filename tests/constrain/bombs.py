"""Forms of answers that were written to cost too much: schemas, expressions and grammars, each as options of an answer.

Each is refused by a typed error, ended by one, or kept like any other: never silently free text, never seconds.
"""

from __future__ import annotations

import random
import resource
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.constrain.constraint import Constraints
from edgellm.errors import ConstraintFailed, InvalidParameter, Unsupported
from edgellm.params import GenerateParams

Form = dict[str, Any]


def _object(names: int, **more: Any) -> Form:
    return {"type": "object", "properties": {f"property{at}": {"type": "string"} for at in range(names)}, **more}


def _nested(depth: int, kind: str) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema} if kind == "array" else {"properties": {"a": schema}}
    return schema


def _tree(depth: int) -> Form:
    """Definitions of which each refers to the next one four times: 4 ** depth places, written out."""
    defs: Form = {
        f"d{at}": {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/d{at + 1}"} for name in "abcd"},
            "required": list("abcd"),
            "additionalProperties": False,
        }
        for at in range(depth)
    }
    defs[f"d{depth}"] = {"type": "integer"}
    return {"$ref": "#/$defs/d0", "$defs": defs}


def _mutual(count: int, properties: int = 0) -> Form:
    """Every definition refers to every other one, in each of its properties."""
    names = [f"d{at}" for at in range(count)]
    ways = [{"$ref": f"#/$defs/{name}"} for name in names]
    each = {"type": "object", "properties": {name: {"anyOf": ways} for name in names[: properties or count]}}
    return {"$ref": "#/$defs/d0", "$defs": dict.fromkeys(names, each)}


def _products(keyword: str, groups: int, ways: int) -> Form:
    """Alternatives that multiply: ways ** groups."""
    return {
        "allOf": [
            {keyword: [{"properties": {f"p{group}": {"minimum": way, "type": "integer"}}} for way in range(ways)]}
            for group in range(groups)
        ]
    }


def _overlapping(branches: int) -> Form:
    return {
        "oneOf": [
            {"type": "object", "properties": {f"p{at}": {"type": "string"}, f"q{at}": {"type": "integer"}}}
            for at in range(branches)
        ]
    }


def _kinds(branches: int) -> Form:
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": f"kind{at}"}, "name": {"type": "string"}, "n": {"type": "integer"}},
                "required": ["kind"],
            }
            for at in range(branches)
        ]
    }


def _text(**keywords: Any) -> Form:
    return {"schema": {"type": "string", **keywords}}


def _rules(count: int, body: Callable[[int], str]) -> str:
    return "\n".join([f"r{at}: {body(at)}" for at in range(count)])


def _chain(count: int) -> str:
    """Rules of which each is the next one twice: 2 ** count letters."""
    return "start: r0\n" + _rules(count, lambda at: f"r{at + 1} r{at + 1}") + f'\nr{count}: "a"\n'


def _chained(count: int) -> Form:
    """Definitions of which each refers to the next one, twice."""
    defs = {
        f"d{at}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/d{at + 1}"} for name in "ab"}}
        for at in range(count)
    }
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{count}": {"type": "null"}}}


WORDS = [f"word{at}" for at in range(5_000)]
_LETTERS = string.ascii_lowercase

# By name: the options, made when they are asked for.
BOMBS: dict[str, Callable[[], Form]] = {
    # schemas
    "enum of 20,000": lambda: {"schema": {"enum": [f"value {at}" for at in range(20_000)]}},
    "enum of 2,000 long values": lambda: {"schema": {"enum": [f"{at} {'x' * 2_000}" for at in range(2_000)]}},
    "ten enums of 1,900": lambda: {
        "schema": {
            "properties": {f"p{one}": {"enum": [f"{one} value {at}" for at in range(1_900)]} for one in range(10)}
        }
    },
    "3,000 properties that may be absent": lambda: {"schema": _object(3_000)},
    "1,000 properties that are required": lambda: {
        "schema": _object(1_000, required=[f"property{at}" for at in range(1_000)])
    },
    "50 objects of 190 optional properties": lambda: {
        "schema": {"properties": {f"p{at}": _object(190, additionalProperties=False) for at in range(50)}}
    },
    "arrays in 2,000 arrays": lambda: {"schema": _nested(2_000, "array")},
    "objects in 60 objects": lambda: {"schema": _nested(60, "object")},
    "definitions that double 12 times": lambda: {"schema": _tree(12)},
    "40 definitions of one another": lambda: {"schema": _mutual(40)},
    "anyOf multiplied by allOf": lambda: {"schema": _products("anyOf", 12, 8)},
    "oneOf multiplied by allOf": lambda: {"schema": _products("oneOf", 6, 6)},
    "oneOf of 100 that overlap": lambda: {"schema": _overlapping(100)},
    "oneOf of 100 that are told apart": lambda: {"schema": _kinds(100)},
    "a tower of nots": lambda: {
        "schema": {
            "not": {"anyOf": [{"not": {"allOf": [{"not": {"const": at}}, {"type": "integer"}]}} for at in range(99)]}
        }
    },
    "45 patternProperties": lambda: {
        "schema": {"patternProperties": {f"^{one}[a-z]*{one}$": {"type": "integer"} for one in WORDS[:45]}}
    },
    "patternProperties of wide patterns": lambda: {
        "schema": {"patternProperties": {f"([{one}-z]{{1,9}} ?){{1,60}}{one}": {"minimum": 1} for one in _LETTERS[:20]}}
    },
    "lists of a million": lambda: {"schema": {"type": "array", "minItems": 1_000_000, "maxItems": 2_000_000}},
    "lists of lists of 1,000": lambda: {
        "schema": {
            "type": "array",
            "minItems": 999,
            "items": {"type": "array", "minItems": 999, "items": {"enum": [1, 2]}},
        }
    },
    "a text of a million": lambda: _text(maxLength=1_000_000_000),
    "a text of 99,999 and no less": lambda: _text(minLength=99_999, maxLength=99_999),
    "multipleOf of many digits": lambda: {"schema": {"type": "integer", "multipleOf": 982_451_653}},
    "multiples of 4,999 and their like": lambda: {
        "schema": {"allOf": [{"type": "integer", "multipleOf": step} for step in (4_999, 4_993, 4_987, 4_973)]}
    },
    "a pattern of 100,000 characters": lambda: _text(pattern="(ab|cd)" * 15_000),
    "a pattern of bounds in bounds": lambda: _text(pattern="^(([a-z]{1,30} ){1,30}[0-9]{1,30},){1,30}$"),
    "a pattern that looks back far": lambda: _text(pattern="(a|b)*a(a|b){25}(c|d)*c(c|d){25}$"),
    "a pattern of 900 optional letters": lambda: _text(pattern=f"^{'[a-z]?' * 300}$"),
    "a pattern of wide classes": lambda: _text(pattern=r"^([^\u0000-\u0fff]{1,30}[\w\s]*[^a-z\d]){1,30}$"),
    "three patterns at once": lambda: {
        "schema": {
            "allOf": [
                {"type": "string", "pattern": pattern}
                for pattern in ("(a|b)*a(a|b){9}", "(a|b)*b(a|b){11}c", "(b|c)*b(a|c){13}")
            ]
        }
    },
    "values that a pattern tries 2 ** 40 ways": lambda: {
        "schema": {"enum": [f"{'a' * 40}{at}" for at in range(99)], "pattern": "^(a|a)*(a|aa)+(b|c)*$"}
    },
    "names that a pattern tries 2 ** 40 ways": lambda: {
        "schema": {"properties": {"a" * 40: {}}, "patternProperties": {"^(a|a)*(a|aa)*b$": {"type": "null"}}}
    },
    "1,000 patternProperties": lambda: {
        "schema": {"patternProperties": {f"^{one}[a-z]*$": {"type": "integer"} for one in WORDS[:1_000]}}
    },
    "a chain of 3,000 definitions": lambda: {"schema": _chained(3_000)},
    "200 definitions of one another": lambda: {"schema": _mutual(200, 3)},
    # expressions
    "bounds in bounds": lambda: {"regex": "([a-z]{1,50} ?){1,200}"},
    "bounds in bounds in bounds": lambda: {"regex": "(([a-z]{1,100}){1,100}){1,100}"},
    "ten thousand c behind (a|b|ab)*": lambda: {"regex": "(a|b|ab)*c{1,10000}"},
    "a million of a letter": lambda: {"regex": "x{1,1000000}"},
    "5,000 words": lambda: {"regex": "|".join(WORDS)},
    "50,000 words": lambda: {"regex": "|".join(f"word{at}" for at in range(50_000))},
    "5,000 words again and again": lambda: {"regex": f"(({'|'.join(WORDS)}) ){{1,100}}"},
    "a letter long ago": lambda: {"regex": "[ab]*a[ab]{300}c"},
    "a letter long ago, again": lambda: {"regex": "([ab]*a[ab]{60}c){50}"},
    "classes of Unicode": lambda: {"regex": r"(\p{L}{1,50}\p{N}?[^\p{Lu}\p{Greek}]{1,50}\W){1,50}"},
    "a class of 10,000 characters": lambda: {
        "regex": f"[{''.join(chr(code) for code in range(0x4E00, 0x8000, 2))}]{{1,400}}"
    },
    "stars of stars": lambda: {"regex": "((((a*)*b*)*c*)*d*)*e"},
    "5,000 groups in groups": lambda: {"regex": "(" * 5_000 + "a" + ")" * 5_000},
    # choices
    "50,000 choices": lambda: {"choices": [f"choice {at}" for at in range(50_000)]},
    "choices of a megabyte": lambda: {"choices": ["a" * 1_000_000, "b" * 1_000_000]},
    # grammars
    "ambiguous": lambda: {"grammar": 'start: s\ns: s s | s s s | "a"?\n'},
    "left-recursive": lambda: {"grammar": 'start: e\ne: e "+" e | e "*" e | e e | "(" e ")" | /[a-z]+/\n'},
    "cyclic": lambda: {"grammar": "start: a\na: b | c\nb: a | c\nc: a | b\n"},
    "cyclic and empty": lambda: {"grammar": 'start: a*\na: b*\nb: a* "x"? a*\n'},
    "two to the 60th letters": lambda: {"grammar": _chain(60)},
    "64 KiB of rules": lambda: {
        "grammar": "start: "
        + " | ".join(f"r{at}" for at in range(2_500))
        + "\n"
        + _rules(2_500, lambda at: f'"{at}" r{(at * 7) % 2_500}?')
    },
    "rules that count": lambda: {"grammar": 'start: (a{1,1000} b{1,1000}){1,1000}\na: "a"\nb: "b"?\n'},
    "terminals of one another": lambda: {
        "grammar": "start: T0\n"
        + "\n".join(f"T{at}: T{at + 1} T{at + 1} | T{at + 1}" for at in range(40))
        + "\nT40: /[a-z]/\n"
    },
    "100 terminals that overlap": lambda: {
        "grammar": "start: ("
        + " | ".join(f"T{at}" for at in range(100))
        + ")*\n"
        + "".join(f"T{at}: /[a-z]*{at}[a-z]{{{at + 1}}}/\n" for at in range(100))
    },
    "a chain of 4,000 rules": lambda: {
        "grammar": "start: r0\n" + _rules(4_000, lambda at: f"r{at + 1}") + '\nr4000: "a"\n'
    },
    "a chain of brackets": lambda: {
        "grammar": "start: r0\n" + _rules(700, lambda at: f'"a" ("b" ("c" ("d" (r{at + 1})?)?)?)?') + '\nr700: "a"\n'
    },
    "a chain of 1,700 terminals": lambda: {
        "grammar": "start: T0\n"
        + "\n".join(f"T{at}: T{at + 1} | /[a-z]/+ T{at + 1}" for at in range(1_700))
        + '\nT1700: "x"\n'
    },
    "60 KiB of optional letters": lambda: {"grammar": "start: " + " ".join(['"a"?'] * 12_000) + "\n"},
    "3,900 optional letters": lambda: {"grammar": "start: " + " ".join(['"a"?'] * 3_900) + "\n"},
    "GBNF of 15 KiB": lambda: {"grammar": "root ::= " + '"a" ' * 3_900 + "\n"},
    "GBNF that recurs on its left": lambda: {"grammar": 'root ::= root root | root "a" | "b"?\n'},
    "GBNF of bounds in bounds": lambda: {"grammar": 'root ::= (([a-z]{1,99} ){1,99} "."){1,99}\n'},
    "GBNF of 64 KiB": lambda: {
        "grammar": "root ::= r0\n"
        + "\n".join(f"r{at} ::= r{at + 1} | [a-z]+ r{at + 1}" for at in range(1_700))
        + '\nr1700 ::= "x"\n'
    },
    "GBNF in 3,000 parentheses": lambda: {"grammar": "root ::= " + "(" * 3_000 + '"a"' + ")" * 3_000 + "\n"},
}


@dataclass
class Cost:
    """What became of a bomb, and what it took. Seconds of wall clock; megabytes that the process grew by."""

    outcome: str = "goes on"
    tokens: int = 0
    first: float = 0.0  # until it was refused, or its first mask was there
    longest: float = 0.0  # from one token to the next
    masks: float = 0.0
    megabytes: float = 0.0


def explode(constraints: Constraints, stops: frozenset[int], make: Callable[[], Form], tokens: int) -> Cost:
    """A random answer of at most so many tokens through the masks of a form. Raises what is no refusal."""
    chance, cost, form = random.Random(0), Cost(), make()
    before, at = peak(), time.perf_counter()
    try:
        constraint = constraints.of(GenerateParams(**form), [])
        assert constraint is not None
        cost.first = time.perf_counter() - at
        while cost.outcome == "goes on" and cost.tokens < tokens:
            at = time.perf_counter()
            mask = constraint.mask()
            spent = time.perf_counter() - at
            token = int(chance.choice(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))))
            if token in stops:
                cost.outcome = "complete"
                break
            at = time.perf_counter()
            constraint.accept(token)
            forced = () if constraint.done else constraint.forced()
            for each in forced:
                constraint.accept(each)
            spent += time.perf_counter() - at
            cost.longest, cost.masks = max(cost.longest, spent), cost.masks + spent
            cost.tokens += 1 + len(forced)
            cost.outcome = "complete" if constraint.done else cost.outcome
    except (InvalidParameter, Unsupported, ConstraintFailed) as error:
        spent = time.perf_counter() - at
        if cost.first:
            cost.longest, cost.masks = max(cost.longest, spent), cost.masks + spent
        else:
            cost.first = spent
        cost.outcome = f"{type(error).__name__}: {error}"
    cost.megabytes = peak() - before
    return cost


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
