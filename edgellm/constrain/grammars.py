"""What is asked of an answer, as a grammar in llguidance's form."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from edgellm.constrain import library
from edgellm.constrain.parsed import schema_of
from edgellm.constrain.schema import OPTIONS as WRITTEN
from edgellm.constrain.schema import prepare
from edgellm.constrain.values import plain
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.params import GenerateParams

OPTIONS = ("schema", "regex", "grammar", "choices")
LONGEST = 1 << 16  # characters of an expression or a grammar


def asked(params: GenerateParams) -> tuple[str, Any] | None:
    """The option that gives the answer a form, and its value. Raises InvalidParameter for two of them."""
    given = [(name, value) for name in OPTIONS if (value := getattr(params, name)) not in (None, ())]
    if len(given) > 1:
        raise InvalidParameter(f"{given[0][0]} and {given[1][0]} are both given; an answer has one form")
    return given[0] if given else None


def grammar(name: str, value: Any) -> str:
    """The grammar. Raises InvalidParameter, Unsupported."""
    if name == "schema":
        return library.from_schema(prepare(schema_of(value)), WRITTEN)
    if name == "choices":
        return library.from_lark("start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in value))
    if len(value) > LONGEST:
        raise InvalidParameter(f"{name}: {len(value)} characters; {LONGEST} is the most")
    if name == "regex":
        return library.from_regex(value)
    return library.from_lark(value if "::=" not in value else _from_gbnf(value))


def enforced(schema: Any) -> dict[str, Any]:
    """A JSON Schema as it stands in a grammar of more than itself: not to be changed. Raises InvalidParameter,
    Unsupported."""
    return _enforced(json.dumps(plain(schema)))


@lru_cache(maxsize=256)  # those of tools come again with every answer
def _enforced(schema: str) -> dict[str, Any]:
    return {**prepare(json.loads(schema)), "x-guidance": WRITTEN}


def _from_gbnf(text: str) -> str:
    library.library()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        made: str = gbnf_to_lark(text)
    except Exception as error:  # its own error, or any that its parser trips over
        why = f"grammar: llama.cpp's form (GBNF), which cannot be read here: {error}; write it in Lark's"
        raise Unsupported(why) from error
    return made
