"""Ids: the id of a response, and of its items, which tell whose they are."""

from __future__ import annotations

import itertools
import secrets

HEX = 24  # digits that a response and its items have in common


class Ids:
    """Those of one response."""

    def __init__(self) -> None:
        self._hex = secrets.token_hex(HEX // 2)
        self._count = itertools.count()
        self.response = f"resp_{self._hex}"

    def new(self, kind: str) -> str:
        """The id of an item. kind: what it begins with: msg, fc, rs."""
        return f"{kind}_{self._hex}{next(self._count):04x}"


def response_of(item: str) -> str:
    """The id of the response whose item has this id."""
    return f"resp_{item.partition('_')[2][:HEX]}"
