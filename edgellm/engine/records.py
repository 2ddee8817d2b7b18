"""Records: what comes next where a text is written in the form of an earlier part of it, with other content.

    source    … Mei Tanaka, who is 28 …⏎ Tom Weller, who is 52 …
    record    {"name": "Mei Tanaka", "age": 28 …       the content of the one before came from here,
    now       {"name": "Tom Weller", "age": ▮          so this comes from the next place behind the same tokens: 52

A gap is where the copy of a record broke: content stands there, in the record that was copied and in the new one. Where
that of the old one occurred before, the tokens around it say where to look for that of the new one, and where it ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgellm.engine.suffixes import Suffixes

WINDOW = 1 << 14  # tokens that are looked through for content
CONTENT = 32  # tokens of it
RECORD = 128  # tokens between two gaps, at most
NOWHERE = -1


class Content(NamedTuple):
    """What fills a gap: it begins at `at`, and ends before the token `stop`; the record goes on at `back` then."""

    at: int
    stop: int
    back: int


class Records:
    """The gaps of one text, as long as no part of that goes (`epoch`)."""

    def __init__(self, text: Suffixes) -> None:
        self.epoch = text.epoch
        self._text = text
        self._gaps: set[int] = set()
        self._origins: dict[int, int] = {}  # where what stands at a place came from, as far as that was looked for

    def __contains__(self, at: int) -> bool:
        """Whether there is a gap."""
        return at in self._gaps

    def add(self, gap: int, origin: int | None = None) -> None:
        """Content begins there, which came from `origin` if that is known."""
        self._gaps.add(gap)
        if origin is not None:
            self._origins[gap] = origin

    def content(self, gap: int, told: int, first: int | None = None) -> Content | None:
        """What stands in a new record where something else stands at `gap`; None: nobody knows. told: where in the text
        the content ends that the new record had last, 0 if it had none. first: the token that it begins with, if that
        has come."""
        text = self._text
        origin = self._origin(gap) if gap < text.length else NOWHERE
        size = text.common(origin, gap, CONTENT) if origin >= 2 else 0
        if not size or gap + size >= text.length:
            return None
        at = self._alike(origin, told, gap, first)
        return None if at is None else Content(at, text[origin + size], gap + size)

    def _alike(self, origin: int, told: int, gap: int, first: int | None) -> int | None:
        """The nearest place that has in front what `origin` has there, on the same side of `told` as `origin` is of
        what was told before it."""
        array, told = self._text.array, told or origin + 1
        if back := self._before(gap) > origin:
            low, high = max(2, told - WINDOW), told - 1
        else:
            low, high = max(2, told), min(gap, told + WINDOW)
        places = low + np.flatnonzero(array[low - 1 : high - 1] == array[origin - 1])
        if first is not None:
            places = places[array[places] == first]
        alike = places[array[places - 2] == array[origin - 2]]
        places = alike if alike.size else places
        return int(places[-1 if back else 0]) if places.size else None

    def _origin(self, gap: int) -> int:
        """Where most of what stands at `gap` occurred before; of such places the first behind the origin before, or
        else the last. NOWHERE if it is new."""
        origin = self._origins.get(gap)
        if origin is None:
            array, low = self._text.array, max(0, gap - WINDOW)
            places = longer = low + np.flatnonzero(array[low:gap] == array[gap])
            size = 1
            while longer.size and size < min(CONTENT, len(array) - gap):
                places, longer = longer, longer[array[longer + size] == array[gap + size]]
                size += 1
            places = longer if longer.size else places
            behind = places[places > self._before(gap)]
            origin = NOWHERE if not places.size else int(behind[0] if behind.size else places[-1])
            self._origins[gap] = origin
        return origin

    def _before(self, gap: int) -> int:
        """The origin of the gap before it; NOWHERE if there is none."""
        earlier = range(gap - 1, max(gap - RECORD, 0), -1)
        return self._origins[at] if (at := next((at for at in earlier if at in self._origins), 0)) else NOWHERE
