"""What is asked of an answer, as a grammar in llguidance's form."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from edgellm.constrain import library
from edgellm.constrain.lark import checked
from edgellm.constrain.values import plain
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.params import FORMS, GenerateParams

LONGEST = 1 << 16  # characters of an expression or a grammar
LONGEST_GBNF = 1 << 14  # of one that is translated first, in Python
MOST_CHOICES = 1 << 18  # characters of all of them: 20,000 of 13 take 0.1 s


def asked(params: GenerateParams) -> tuple[str, Any] | None:
    """The option that gives the answer a form, and its value. Raises InvalidParameter for two of them."""
    given = [(name, value) for name in FORMS if (value := getattr(params, name)) is not None]
    if len(given) > 1:
        raise InvalidParameter(f"{given[0][0]} and {given[1][0]} are both given; an answer has one form")
    return given[0] if given else None


def grammar(name: str, value: Any) -> str:
    """The grammar. Raises InvalidParameter, Unsupported."""
    if name == "schema":
        from edgellm.constrain.parsed import schema_of  # costs what only schemas should pay
        from edgellm.constrain.schema import OPTIONS as WRITTEN
        from edgellm.constrain.schema import prepare

        return library.from_schema(prepare(schema_of(value)), WRITTEN)
    gbnf = name == "grammar" and "::=" in value
    length = sum(map(len, value)) if name == "choices" else len(value)
    most = MOST_CHOICES if name == "choices" else LONGEST_GBNF if gbnf else LONGEST
    if length > most:
        raise InvalidParameter(f"{name}: {length:,} characters; {most:,} is the most")
    if name == "choices":  # as one terminal, that is a tree of letters; as many, they are tried one by one
        return library.from_lark(f"start: CHOICE\nCHOICE: {' | '.join(map(library.quoted, value))}\n")
    if name == "regex":
        return library.from_regex(value)
    return library.from_lark(checked(_from_gbnf(value) if gbnf else value))


def enforced(schema: Any) -> dict[str, Any]:
    """A JSON Schema as it stands in a grammar of more than itself: not to be changed. Raises InvalidParameter,
    Unsupported."""
    return _enforced(json.dumps(plain(schema)))


@lru_cache(maxsize=256)  # those of tools come again with every answer
def _enforced(schema: str) -> dict[str, Any]:
    from edgellm.constrain.schema import OPTIONS as WRITTEN  # as above
    from edgellm.constrain.schema import prepare

    return {**prepare(json.loads(schema)), "x-guidance": WRITTEN}


def _from_gbnf(text: str) -> str:
    library.library()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        made: str = gbnf_to_lark(text)
    except Exception as error:  # its own error, or any that its parser trips over
        why = f"grammar: llama.cpp's form (GBNF), which cannot be read here: {error}; write it in Lark's"
        raise Unsupported(why) from error
    return made.removeprefix("%llguidance {}")
