"""parse_object, read_object: JSON that strangers wrote, with one reading only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgellm.arguments import shown
from edgellm.errors import InvalidModelFile
from edgellm.files import read_file


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


def read_object(path: Path, limit: int) -> dict[str, Any] | None:
    """The object in a JSON file of at most `limit` bytes, None where there is no file. Raises InvalidModelFile."""
    raw = read_small(path, limit)
    return None if raw is None else parse_object(raw, str(path))


def read_small(path: Path, limit: int) -> bytes | None:
    """A file of at most `limit` bytes, None where there is none. Raises InvalidModelFile."""
    try:
        return read_file(path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidModelFile(f"{path}: cannot be read: {error.strerror}; put the file itself there") from error
