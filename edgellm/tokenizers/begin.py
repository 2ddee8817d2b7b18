"""How a text begins: what a model wants in front of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def begun(tokens: list[int], begin: Sequence[int], piece: Callable[[int], bytes]) -> list[int]:
    """`tokens` with `begin` in front, unless they have it there already, behind nothing but white space: templates
    write it, and two of them are not what a model was trained on. piece: the bytes of a token, control tokens shown.
    """
    if not begin:
        return tokens
    at = 0
    while at < len(tokens) and tokens[at] != begin[0] and piece(tokens[at]).isspace():
        at += 1
    return tokens if tokens[at : at + len(begin)] == list(begin) else [*begin, *tokens]
