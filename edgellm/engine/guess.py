"""Guess: what probably follows the text of a request, and how likely.

    text     … the name of the river, and … the name of the r▮       "iver, and …" followed there: the guess
    length   of the match, here all that there is of it; the longer, the likelier

It moves on with every token: where that is the guessed one the match is longer by one, else another is looked for. A
long one that a single token breaks goes on behind that, unless another match is likelier: so are texts edited. Where
the form of an earlier part comes again with other content, that is looked for where it comes from (`records.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from edgellm.engine.records import Content, Records
from edgellm.engine.suffixes import LONGEST, SEPARATOR, Suffixes, hashes

OWN = 1 << 17  # tokens of a request that are looked through
LONG = 8  # tokens of a match from which on a text is being copied
FORM = 3  # and from which on a token that breaks it may be content of a record
LEARNED = 3  # bits of the length of matches from which on they say something of longer ones
RESUMED = 64  # in place of the length of a match: a long one that one token broke
FILLED, FILLING = 128, 256  # the first token of the content of a record, and what stands behind it
GAP = 512  # where such content stood, what stood there
AT_FIRST = (
    0.0,
    0.2,
    0.5,
    0.65,
    0.75,
    0.8,
    0.85,
    0.5,
    0.5,
    0.8,
    0.3,
)  # by the bits of that: how likely the match goes on


class Acceptance:
    """How often what followed a match came again, by the length of the match; the newest count most.

    usual: that of all requests, from which one begins and which learns from it.
    """

    def __init__(self, usual: Acceptance | None = None) -> None:
        self._usual = usual
        self._kept = 0.97 if usual else 0.998  # of the weight of a count when the next one comes
        self._hits = [0.0] * len(AT_FIRST)
        self._seen = list(self._hits)
        self._chances = list(AT_FIRST)
        self._update(0, len(AT_FIRST))

    def note(self, length: int, hit: bool) -> None:
        """Behind a match of so many tokens came what the draft says, or not."""
        kind, kept = length.bit_length(), self._kept
        self._hits[kind] = self._hits[kind] * kept + hit
        self._seen[kind] = self._seen[kind] * kept + 1
        if self._usual is None:
            self._update(kind, kind + 1)
        else:
            self._usual.note(length, hit)
            self._update(kind, len(AT_FIRST))

    def chance(self, length: int) -> float:
        """How likely the token behind a match of so many tokens is to come again."""
        return self._chances[length.bit_length()]

    def _update(self, start: int, stop: int) -> None:
        chances, usual = self._chances, self._usual
        for kind in range(start, stop):
            before = AT_FIRST[kind]
            if usual is not None:
                before = usual._chances[kind]
                if LEARNED <= kind <= LONGEST.bit_length():  # seldom seen here: hardly likelier than shorter ones
                    before = (before + chances[kind - 1]) / 2
            chances[kind] = (self._hits[kind] + 4 * before) / (self._seen[kind] + 4)


def longer(length: int) -> int:
    """That of a match which went on with one token more."""
    return min(length + 1, LONGEST) if length <= LONGEST else LONG


class Place(NamedTuple):
    """Where a text goes on. told: where the content of a record ends that came last. gap, content: what is copied there
    fills it."""

    at: int = 0
    length: int = 0  # tokens of the match that ends there; 0: none
    told: int = 0
    gap: int = 0
    content: Content | None = None


class Guess:
    """What probably follows the text of one request. earlier: what else was read and said, of the same owner."""

    def __init__(self, history: list[int], earlier: Suffixes | None, usual: Acceptance) -> None:
        self.acceptance = Acceptance(usual)
        self._own = Suffixes(OWN)
        self._own.extend(history[:-1])
        self._records = Records(self._own)
        self._earlier = earlier
        self._seen = len(history) - 1  # tokens that are known here
        self._text, self._epoch = self._own, 0  # of the place
        self._place = Place()
        self.follow(history)

    @property
    def length(self) -> int:
        """Tokens of the match that the guess goes by, or what stands for them; 0: there is no guess."""
        return self._place.length

    def follow(self, history: list[int]) -> int:
        """The text is `history` now. Whether the guess came true is noted, and the next one found. How many tokens
        came as a long match said."""
        copied = 0
        for seen in range(self._seen + 1, len(history) + 1):
            token, text, place = history[seen - 1], self._text, self._place
            self._place = Place(told=place.told)
            if place.length and text.epoch == self._epoch:
                hit = text[place.at] == token
                self.acceptance.note(place.length, hit)
                self._place = self._came(place) if hit else self._broke(place, token)
                copied += hit and place.length >= LONG
            recent = history[max(0, seen - LONGEST) : seen]
            hashed = hashes(recent)
            if not 0 < self._place.length <= LONGEST:
                self._find(recent, hashed)
            self._own.append(token, hashed)
            if self._own.epoch != self._records.epoch:
                self._records, self._place = Records(self._own), Place()
        self._seen = len(history)
        if self._text.epoch != self._epoch:
            self._place = Place()
        return copied

    def draft(self, count: int, least: float = 0.0) -> tuple[list[int], list[float]]:
        """The next tokens, at most `count`, and how likely all up to each of them are; none where that is less than
        `least`. What followed the match, and of the own text again and again the part that repeats."""
        text, place, tokens, chances, chance = self._text, self._place, list[int](), list[float](), 1.0
        while place.length and len(tokens) < count:
            chance *= self.acceptance.chance(place.length)
            token = text[place.at] if place.at < text.length else tokens[place.at - text.length]
            if chance < least or token == SEPARATOR:
                break
            tokens.append(token)
            chances.append(chance)
            place = self._next(place)
        return tokens, chances

    def _next(self, place: Place) -> Place:
        """Behind what stands there."""
        at, length, told, content, text = place.at + 1, longer(place.length), place.told, place.content, self._text
        if content is not None:
            ends = at < text.length and text[at] == content.stop
            return Place(content.back, FILLING, at) if ends else Place(at, FILLING, at, place.gap, content)
        if text is not self._own:
            return Place(told=told) if _ends(text, at) else Place(at, length, told)
        if length == LONGEST or at not in self._records:  # so long a match was right at its gaps, too
            return Place(at, length, told)
        content = self._records.content(at, told)
        if content is not None and text[content.at] == text[at]:
            return Place(at, length, told)
        if content is None or self.acceptance.chance(FILLED) < self.acceptance.chance(GAP):
            return Place(at, GAP, told)
        return Place(content.at, FILLED, told, at, content)

    def _came(self, place: Place) -> Place:
        """What stands there came; it is not part of the own text yet."""
        if place.length == FILLED:
            self._records.add(self._own.length, place.at)
        return self._next(place)

    def _broke(self, place: Place, token: int) -> Place:
        """This token came instead."""
        at, length, told, text = place.at, place.length, place.told, self._text
        if text is self._own and (FORM <= length <= LONGEST or length in (FILLED, GAP)):
            gap = place.gap or at
            content = self._records.content(gap, told, token)
            self._records.add(self._own.length, content and content.at)
            if content is not None:
                return self._next(Place(content.at, FILLED, told, gap, content))
        elif place.content is not None and token == text[place.content.back]:
            return self._next(Place(place.content.back, FILLING, told))
        if LONG <= length <= LONGEST and (text is self._own or not _ends(text, at + 1)):
            return Place(at + 1, RESUMED, told)
        return Place(told=told)

    def _find(self, recent: list[int], hashed: list[int]) -> None:
        """The longest match, unless what there is is likelier: a copy where one token was another, or a record, which
        only a long match interrupts."""
        text, (at, length) = self._own, self._own.find(recent, hashed)
        if self._earlier is not None and length < LONGEST:
            place, size = self._earlier.find(recent, hashed)
            if size > length and not _ends(self._earlier, place):
                text, at, length = self._earlier, place, size
        now, chance = self._place, self.acceptance.chance
        if now.length and (length < (LONG if now.length > RESUMED else 1) or chance(length) < chance(now.length)):
            return
        self._text, self._epoch, self._place = text, text.epoch, Place(at, length, now.told)


def _ends(text: Suffixes, at: int) -> bool:
    """Whether nothing of the same text follows there."""
    return at >= text.length or text[at] == SEPARATOR
