from __future__ import annotations
import json
from typing import Any
from edgellm.errors import InvalidParameter
def strict_json(text: str, number=float) -> Any:
    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InvalidParameter("a key appears twice")
        return found
    return json.loads(text, object_pairs_hook=unique, parse_float=number)
