"""groups: the tensors of a plan, those of all layers together as long as the same becomes of them.

blk.{0-3,5}.attn_v.weight, blk.{4,6-9}.attn_v.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .plan import Planned

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def groups(tensors: Sequence[Planned]) -> list[tuple[str, Planned, int]]:
    """Tensors that differ in the numbers of their names alone: a name for all, one of them, and the bytes of all; in
    the order of their first ones."""
    found: dict[tuple[object, ...], list[Planned]] = {}
    for one in tensors:
        kind = (_NUMBER.sub("{}", one.name), one.shape, one.source, one.target, one.exact, one.fallback_from)
        found.setdefault(kind, []).append(one)
    return [(_common(group), group[0], sum(one.nbytes for one in group)) for group in found.values()]


def _common(group: Sequence[Planned]) -> str:
    """ "blk.{0-3,5}.attn_v.weight"; of a single tensor its name."""
    if len(group) == 1:
        return group[0].name
    columns = zip(*(map(int, _NUMBER.findall(one.name)) for one in group), strict=True)
    numbers = iter([_ranges(column) for column in columns])
    return _NUMBER.sub(lambda _: f"{{{next(numbers)}}}", group[0].name)


def _ranges(numbers: Iterable[int]) -> str:
    """ "0-3,5" for 0, 1, 2, 3, 5 in any order."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
