"""parse_object: JSON that strangers wrote, with one reading only."""

from __future__ import annotations

import json
from typing import Any

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `raw`, UTF-8; `where` names its place in messages.

    Raises InvalidModelFile for anything else: other values, broken JSON, a key that appears twice in an object (parsers
    disagree about which one counts).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in found if keys.count(key) > 1)
            raise InvalidModelFile(f"{where}: the key {shown(twice)} appears twice; fetch or write the file again")
        return found

    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, broken UTF-8, an endless number
        raise InvalidModelFile(f"{where}: not JSON: {str(error)[:200]}; fetch or write the file again") from None
    if not isinstance(value, dict):
        raise InvalidModelFile(f"{where}: a JSON object is expected, this is a {type(value).__name__}")
    return value
