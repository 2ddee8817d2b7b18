"""Guess: what probably follows the text of a request, and how likely.

    text     … the name of the river, and … the name of the r▮       "iver, and …" followed there: the guess
    length   of the match, here all that there is of it; the longer, the likelier

It moves on with every token: where that is the guessed one the match is longer by one, else another is looked for. A
long one that a single token breaks goes on behind that, unless another match is likelier: so are texts edited.
"""

from __future__ import annotations

from edgellm.engine.suffixes import LONGEST, SEPARATOR, Suffixes, hashes

OWN = 1 << 17  # tokens of a request that are looked through
LONG = 8  # tokens of a match from which on a text is being copied
LEARNED = 3  # bits of the length of matches from which on they say something of longer ones
RESUMED = 64  # in place of the length of a match: a long one that one token broke
AT_FIRST = (0.0, 0.2, 0.5, 0.65, 0.75, 0.8, 0.85, 0.5)  # by the bits of that: how likely the match goes on


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
                if LEARNED <= kind < len(AT_FIRST) - 1:  # what is seldom seen here is hardly likelier than shorter ones
                    before = (before + chances[kind - 1]) / 2
            chances[kind] = (self._hits[kind] + 4 * before) / (self._seen[kind] + 4)


def longer(length: int) -> int:
    """That of a match which went on with one token more."""
    return LONG if length == RESUMED else min(length + 1, LONGEST)


class Guess:
    """What probably follows the text of one request. earlier: what else was read and said, of the same owner."""

    def __init__(self, history: list[int], earlier: Suffixes | None, usual: Acceptance) -> None:
        self.acceptance = Acceptance(usual)
        self._own = Suffixes(OWN)
        self._own.extend(history[:-1])
        self._earlier = earlier
        self._seen = len(history) - 1  # tokens that are known here
        self._text, self._at, self._epoch = self._own, 0, 0  # where it goes on
        self.length = 0  # tokens of the match that ends there; 0: none
        self.follow(history)

    def follow(self, history: list[int]) -> int:
        """The text is `history` now. Whether the guess came true is noted, and the next one found. How many tokens
        came as a long match said."""
        copied = 0
        for seen in range(self._seen + 1, len(history) + 1):
            token, text = history[seen - 1], self._text
            before, self.length = self.length, 0
            if before and text.epoch == self._epoch:
                hit = text[self._at] == token
                self.acceptance.note(before, hit)
                self._at += 1
                if text is self._own or not _ends(text, self._at):
                    self.length = longer(before) if hit else RESUMED if LONG <= before <= LONGEST else 0
                copied += hit and before >= LONG
            recent = history[max(0, seen - LONGEST) : seen]
            hashed = hashes(recent)
            if self.length in (0, RESUMED):
                self._find(recent, hashed)
            self._own.append(token, hashed)
        self._seen = len(history)
        if self._text.epoch != self._epoch:
            self.length = 0
        return copied

    def draft(self, count: int) -> list[int]:
        """The next tokens, at most `count`: what followed the match, and of the own text again and again the part that
        repeats."""
        tokens = self._text.tokens(self._at, self._at + count)
        if self._text is self._own:
            period = len(tokens)
            tokens += [tokens[index % period] for index in range(period, count)]
        return tokens[: tokens.index(SEPARATOR)] if SEPARATOR in tokens else tokens

    def _find(self, recent: list[int], hashed: list[int]) -> None:
        """The longest match, unless a copy is likelier to go on where one token was another."""
        text, (at, length) = self._own, self._own.find(recent, hashed)
        if self._earlier is not None and length < LONGEST:
            place, size = self._earlier.find(recent, hashed)
            if size > length and not _ends(self._earlier, place):
                text, at, length = self._earlier, place, size
        if not self.length or (length and self.acceptance.chance(length) >= self.acceptance.chance(self.length)):
            self._text, self._at, self.length, self._epoch = text, at, length, text.epoch


def _ends(text: Suffixes, at: int) -> bool:
    """Whether nothing of the same text follows there."""
    return at >= text.length or text[at] == SEPARATOR
