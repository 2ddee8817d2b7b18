"""overlap: whether one text can fit two patterns, by partial derivatives (Antimirov 1996) of both at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from edgellm.constrain import patience
from edgellm.constrain.regex import WRITABLE, Chars, Choice, Node, Ranges, Repeat, Sequence, common, whole

MOST_PAIRS = 2_000  # states that are looked at

EMPTY = Sequence(())


@lru_cache(1024)
def overlap(one: str, other: str) -> bool:
    """False is certain; True also where it would take too long to find out."""
    left = [(whole(one), whole(other))]
    met = set(left)
    while left:
        pair = left.pop()
        if _ends(pair[0]) and _ends(pair[1]):
            return True
        for ranges, first in _steps(pair[0]):
            for others, second in _steps(pair[1]):
                patience.step()
                if (first, second) not in met and common(common(ranges, others), WRITABLE):
                    met.add((first, second))
                    left.append((first, second))
        if len(met) > MOST_PAIRS:
            return True
    return False


def _ends(node: Node) -> bool:
    """Whether the empty text fits."""
    if isinstance(node, Sequence):
        return all(map(_ends, node.parts))
    if isinstance(node, Choice):
        return any(map(_ends, node.ways))
    return isinstance(node, Repeat) and (node.least == 0 or _ends(node.what))


def _steps(node: Node) -> Iterator[tuple[Ranges, Node]]:
    """Which characters may come first, and what must follow them."""
    if isinstance(node, Chars):
        yield node.ranges, EMPTY
    elif isinstance(node, Choice):
        for way in node.ways:
            yield from _steps(way)
    elif isinstance(node, Sequence):
        for at, part in enumerate(node.parts):
            for ranges, rest in _steps(part):
                yield ranges, _sequence(rest, *node.parts[at + 1 :])
            if not _ends(part):
                return
    elif isinstance(node, Repeat) and node.most != 0:
        fewer = Repeat(node.what, max(node.least - 1, 0), None if node.most is None else node.most - 1)
        for ranges, rest in _steps(node.what):
            yield ranges, _sequence(rest, fewer)


def _sequence(*parts: Node) -> Node:
    flat = [each for part in parts for each in (part.parts if isinstance(part, Sequence) else (part,))]
    flat = [each for each in flat if not (isinstance(each, Repeat) and each.most == 0)]
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))
