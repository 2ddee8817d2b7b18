"""Speculation: what probably follows is computed beside the last token, and kept as far as the sampler chooses it.

    answer so far   … a b c ▮             the end of it occurred before, and "d e f" followed there: the draft
    pass            c d e f               one row of logits for each, hardly dearer than one while weights are read
    sampler         d e x                 its own choice from each row, as without a draft: d and e were right
    sequence        … a b c d e           f is cut off again; x is sampled, and goes into the next pass

So the answer is the one that the rows give. Where rows have the same bits in every pass (`PassShape.exact`), that is
the answer without drafts to the last token, whatever the sampler. Elsewhere a row differs by rounding with the size of
its pass, so the answer is another one as likely, and drafts are made only for those who ask.

Drafts come from the prompt, the answer and earlier texts of the same owner (`suffixes.py`). Whether one is worth its
rows follows from how often those behind a match of its length came true (`Acceptance`: seen at every token, also where
nothing was drafted) and from what passes with so many rows took (`rowcost.py`). What it loses all the same is bounded:
by `SHARE` of the time in which answers were decoded, beside what was gained just before, and a little to begin with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgellm.backends.base import Backend
from edgellm.engine.rowcost import RowCost
from edgellm.engine.suffixes import LONGEST, SEPARATOR, Suffixes, hashes
from edgellm.errors import Unsupported
from edgellm.kv.prefixes import PUBLIC
from edgellm.params import GenerateParams

if TYPE_CHECKING:
    from edgellm.engine.request import Request

GAIN = 1.05  # by how much a draft must be expected to be faster
SHARE = 0.01  # of the time of decoding may be lost in the long run
FIRST, CREDIT, DEBT = 4, 8, 16  # plain passes that may be lost at first, and of what was gained; that are remembered
LONG = 8  # tokens of a match from which on a text is being copied
MISSED = 0.2  # of a plain pass, what each token counts that a draft would have had while none was made for its losses
MOST = 31  # tokens of a draft
LEAST = 0.02  # how likely its last one is
ROWS = 64  # of a pass with drafts
TOGETHER = 8  # sequences beyond which a pass is full enough
PAUSE = 64  # passes without drafts after one that there was no room for
OWN, EARLIER = 1 << 17, 1 << 16  # tokens that are looked through: of a request, of all before it
OWNERS = 8  # private conversations whose texts are known, beside what is public


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


class Speculation:
    """Drafts of all requests of an engine. For its thread alone, but for `check`."""

    def __init__(self, backend: Backend) -> None:
        shape = backend.pass_shape
        self._backend = backend
        self._unasked = shape.exact  # whether those get drafts who did not ask
        self._why_not = ""
        if not backend.info.can_truncate:
            self._why_not = "the state of this architecture cannot be cut back to what was right"
        elif not shape.all_rows:
            self._why_not = "a pass gives the logits of its last token alone"
        self._costs: dict[int, RowCost] = {}  # by sequences in a pass
        self._usual = Acceptance()
        self._guesses: dict[Request, Guess] = {}
        self._earlier: OrderedDict[bytes, Suffixes] = OrderedDict()  # texts by owner
        self._credit = float(FIRST)  # plain passes that may be lost
        self._paused = 0  # passes

    def check(self, params: GenerateParams) -> None:
        """Raises Unsupported where drafts are asked for and cannot be. From any thread."""
        if params.speculate and self._why_not:
            raise Unsupported(f"speculate: {self._backend.info.name} on {self._backend.name}: {self._why_not}")

    def drafts(self, decoding: Sequence[Request]) -> dict[Request, list[int]]:
        """The drafts that pay in a pass of these requests; none where one of them has more than its newest token to
        feed."""
        if any(len(request.history) - request.length != 1 for request in decoding):
            return {}
        guesses: dict[Request, Guess] = {}
        for request in decoding:
            guess = self._guess(request)
            if guess is not None:
                copied = guess.follow(request.history)
                if self._credit < 0:
                    self._credit += MISSED * copied
                if guess.length:
                    guesses[request] = guess
        if self._paused or not guesses:
            self._paused = max(0, self._paused - 1)
            return {}
        counts = self._counts(guesses, len(decoding))
        drafts = {request: self._until_the_end(request, guesses[request].draft(n)) for request, n in counts.items()}
        return {request: draft for request, draft in drafts.items() if draft}

    def passed(self, sequences: int, rows: int, tokens: int, seconds: float) -> None:
        """A pass of answers alone gave so many tokens. It counts while somebody may have drafts."""
        if sequences > TOGETHER or not self._guesses:
            return
        cost = self._costs.get(sequences)
        if cost is None:
            cost = self._costs[sequences] = RowCost(sequences)
        cost.observe(rows, seconds)
        if rows == sequences:
            self._credit = min(self._credit + SHARE, CREDIT)
            return
        plain, took = cost.seconds(sequences), cost.seconds(rows)
        if plain is not None and took is not None:  # a single slow pass is no loss
            credit = self._credit + tokens / sequences - (1 - SHARE) * took / plain
            self._credit = min(max(credit, -DEBT), CREDIT)

    def pause(self) -> None:
        """A draft was in the way: the next passes go without."""
        self._paused = PAUSE

    def ended(self, request: Request) -> None:
        """A request ends: what is new of its text may come again."""
        if self._guesses.pop(request, None) is None or not request.params.cache:
            return
        text = self._earlier.get(request.owner)
        if text is None:
            text = self._earlier[request.owner] = Suffixes(EARLIER)
        self._earlier.move_to_end(request.owner)
        text.extend([SEPARATOR, *request.history[max(0, request.reused - LONGEST) :]])
        private = [owner for owner in self._earlier if owner != PUBLIC]
        for owner in private[:-OWNERS]:
            del self._earlier[owner]

    def forget(self, owner: bytes) -> None:
        """Let go what is private of a conversation that nobody can go on with."""
        self._earlier.pop(owner, None)

    def _guess(self, request: Request) -> Guess | None:
        """That of a request that may have drafts; what it has read is looked through with its second token."""
        guess = self._guesses.get(request)
        if guess is None:
            wanted = request.params.speculate
            if self._why_not or not (self._unasked if wanted is None else wanted):
                return None
            earlier = self._earlier.get(request.owner) if request.params.cache else None
            guess = self._guesses[request] = Guess(request.history, earlier, self._usual)
        return guess

    def _counts(self, guesses: dict[Request, Guess], sequences: int) -> dict[Request, int]:
        """Tokens of the drafts that bring most tokens per second. Each further row goes where it is likeliest to be
        right, which is never behind one that is less likely."""
        cost = self._costs.get(sequences)
        if not guesses or cost is None or self._credit < 0 or sequences > TOGETHER:
            return {}
        plain = cost.seconds(sequences)
        if plain is None:
            return {}
        most = min(ROWS, self._backend.max_rows, self._backend.micro_batch) - sequences
        likely: list[tuple[float, Request]] = []
        for request, guess in guesses.items():
            chance, length = 1.0, guess.length
            for _ in range(min(MOST, most, self._room(request))):
                chance *= guess.acceptance.chance(length)
                if chance < LEAST:
                    break
                likely.append((-chance, request))
                length = longer(length)
        likely.sort(key=lambda each: each[0])
        best, fastest, expected = 0, GAIN * sequences / plain, float(sequences)
        for extra, (less, _) in enumerate(likely[:most], 1):
            expected -= less
            rows = sequences + extra
            if rows & (rows - 1) and extra < min(most, len(likely)):
                continue  # passes are measured at powers of two
            took = cost.seconds(rows)
            if took is not None and expected / took > fastest:
                best, fastest = extra, expected / took
        counts: dict[Request, int] = {}
        for _, request in likely[:best]:
            counts[request] = counts.get(request, 0) + 1
        return counts

    def _room(self, request: Request) -> int:
        """Tokens of a draft that the answer, its context and its end have room for: the last one is never fed."""
        room = self._backend.n_ctx - len(request.history)
        if request.params.max_tokens is not None:
            room = min(room, request.params.max_tokens - len(request.answer.tokens) - 1)
        return room

    def _until_the_end(self, request: Request, draft: list[int]) -> list[int]:
        """What stands before a token that ends answers: the row before it tells."""
        if request.params.ignore_eos:
            return draft
        ends = self._backend.info.stop_ids
        return draft[: next((at for at, token in enumerate(draft) if token in ends), len(draft))]
