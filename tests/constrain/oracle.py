"""What is valid by a schema, to a library that is not ours."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import jsonschema


def oracle(schema: Any) -> Any:
    """A function of a value, for what is wrong with it."""
    checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator = checker(exact(schema), format_checker=checker.FORMAT_CHECKER)
    return lambda value: [error.message for error in validator.iter_errors(exact(value))]


def exact(part: Any) -> Any:
    """Numbers as they are written, in which 0.3 is a multiple of 0.1."""
    if isinstance(part, dict):
        return {name: exact(each) for name, each in part.items()}
    if isinstance(part, list):
        return [exact(each) for each in part]
    return Decimal(repr(part)) if isinstance(part, float) else part
