"""Whatever the masks of a prepared schema let through is valid to an oracle that is not ours."""

from __future__ import annotations

import json
import os
import random
import re

import pytest
from constrain.oracle import oracle
from constrain.real_schemas import real_schemas
from constrain.schemas_written import refused
from masks import accepts, matcher, walk

from edgellm.constrain.parsed import strict_json
from edgellm.constrain.schema import prepare
from edgellm.errors import GenerationError, Unsupported

SCHEMAS = real_schemas()
REFUSED = refused()
WALKS = int(os.environ.get("EDGELLM_WALKS", "3"))  # of each schema


def test_there_are_three_hundred_and_few_are_refused() -> None:
    texts = {json.dumps(schema, sort_keys=True) for schema in SCHEMAS.values()}
    assert len(texts) == len(SCHEMAS) >= 300
    assert len(REFUSED) < 0.03 * len(SCHEMAS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_by_its_place(name: str) -> None:
    schema, place = REFUSED[name]
    with pytest.raises(Unsupported, match=f"^schema: {re.escape(place)}: "):
        prepare(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_give_valid_answers_alone(name: str) -> None:
    schema, chance = SCHEMAS[name], random.Random(name)
    start = matcher(prepare(schema))
    assert not start.is_error(), start.get_error()
    errors = oracle(schema)
    for _ in range(WALKS):
        text = walk(start, chance)
        if text is None:  # a text without bounds that went on
            continue
        try:
            value = strict_json(text)
        except GenerationError as error:
            # No grammar counts keys without a name in the schema, or knows how far a float reaches.
            if "twice" not in str(error) and "beyond what a float" not in str(error):
                raise
            continue
        assert errors(value) == [], text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "invoice",
            '{"number": "INV-12345", "date": "2024-02-29", "currency": "EUR", "lines": [{"description": "a", '
            '"quantity": 1, "unit_price": 9.99, "tax": 19.5}], "total": 9.99}',
        ),
        ("rpc", '{"jsonrpc": "2.0", "id": "x", "error": {"code": -32000, "message": "no"}}'),
        ("pet", '{"kind": "fish", "salt": true}'),
        ("shipping", '{"country": "US", "zip": "12345"}'),
        ("tree", '{"value": 1, "children": [{"value": 2, "children": []}, {"value": 3}]}'),
        ("receipt", '{"paid": true, "card": "1", "billing_address": {"street": "a", "city": "b"}}'),
        ("filter", '{"eq": 1, "gt": 2}'),
        ("logger", '{"level": 2, "path": "a"}'),
        ("roles", '["user", "admin", "user"]'),
        ("not_root", '{"user": "rooty"}'),
    ],
)
def test_valid_answers_pass(name: str, text: str) -> None:
    assert accepts(matcher(prepare(SCHEMAS[name])), text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rpc", '{"jsonrpc": "2.0", "id": "x"}'),
        ("rpc", '{"jsonrpc": "2.0", "id": 1, "result": 1, "error": {"code": -32000, "message": "no"}}'),
        ("shipping", '{"country": "US", "zip": "AB 123"}'),
        ("receipt", '{"paid": true, "card": "1"}'),
        ("filter", '{"eq": 1, "lt": 1, "gt": 2}'),
        ("filter", "{}"),
        ("logger", '{"level": 2, "path": "a", "other": 1}'),
        ("flags", "[true, true]"),
        ("not_root", '{"user": "root"}'),
        ("headers", '{"x": "a", "\\u0078": "bcdef"}'),
        ("settings", '{"theme":     "dark"}'),
    ],
)
def test_invalid_answers_do_not_pass(name: str, text: str) -> None:
    assert not accepts(matcher(prepare(SCHEMAS[name])), text)
