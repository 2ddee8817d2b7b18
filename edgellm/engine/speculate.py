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
by `SHARE` of the time in which answers were decoded, beside what was gained just before.
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
CREDIT = 8  # plain passes that may be lost of what was gained, and that losses are counted up to, twice
MOST = 31  # tokens of a draft
ROWS = 64  # of a pass with drafts
TOGETHER = 8  # sequences beyond which a pass is full enough
PAUSE = 64  # passes without drafts after one that there was no room for
OWN, EARLIER = 1 << 17, 1 << 16  # tokens that are looked through: of a request, of all before it
OWNERS = 8  # private conversations whose texts are known, beside what is public


class Acceptance:
    """How often what followed a match came again, by the length of the match; the newest count most.

    usual: that of all requests, from which one begins and which learns from it.
    """

    def __init__(self, usual: Acceptance | None = None) -> None:
        self._usual = usual
        self._kept = 0.97 if usual else 0.998  # of the weight of a count when the next one comes
        self._hits = [0.0] * (LONGEST.bit_length() + 1)
        self._seen = list(self._hits)

    def note(self, length: int, hit: bool) -> None:
        """Behind a match of so many tokens came what the draft says, or not."""
        kind, kept = length.bit_length(), self._kept
        self._hits[kind] = self._hits[kind] * kept + hit
        self._seen[kind] = self._seen[kind] * kept + 1
        if self._usual is not None:
            self._usual.note(length, hit)

    def chance(self, length: int) -> float:
        """How likely the token behind a match of so many tokens is to come again."""
        length = min(length, LONGEST)
        kind = length.bit_length()
        before = self._usual.chance(length) if self._usual else 1 - 1 / kind
        return (self._hits[kind] + 4 * before) / (self._seen[kind] + 4)


class Guess:
    """What probably follows the text of one request. earlier: what else was read and said, of the same owner."""

    def __init__(self, history: list[int], earlier: Suffixes | None, usual: Acceptance) -> None:
        self.acceptance = Acceptance(usual)
        self._own = Suffixes(OWN)
        self._own.extend(history[:-1])
        self._earlier = earlier
        self._seen = len(history) - 1  # tokens that are known here
        self._text, self._at, self._epoch = self._own, 0, 0  # where it goes on
        self.length = 0  # tokens of the match that ends there; 0: none, and nothing is guessed
        self.follow(history)

    def follow(self, history: list[int]) -> None:
        """The text is `history` now. Whether the guess came true is noted, and the next one found."""
        for seen in range(self._seen + 1, len(history) + 1):
            token, text = history[seen - 1], self._text
            if self.length and text.epoch == self._epoch:
                hit = text[self._at] == token
                self.acceptance.note(self.length, hit)
                self._at += 1
                self.length = min(self.length + 1, LONGEST) if hit else 0
            else:
                self.length = 0
            recent = history[max(0, seen - LONGEST) : seen]
            hashed = hashes(recent)
            if not self.length or (text is not self._own and _ends(text, self._at)):
                self._find(recent, hashed)
            self._own.append(token, hashed)
        self._seen = len(history)
        if self._text.epoch != self._epoch:
            self.length = 0

    def draft(self, count: int) -> list[int]:
        """The next tokens, at most `count`: what followed the match, and of the own text again and again the part that
        repeats."""
        tokens = self._text.tokens(self._at, self._at + count)
        if self._text is self._own:
            period = len(tokens)
            tokens += [tokens[index % period] for index in range(period, count)]
        return tokens[: tokens.index(SEPARATOR)] if SEPARATOR in tokens else tokens

    def _find(self, recent: list[int], hashed: list[int]) -> None:
        self._text, (self._at, self.length) = self._own, self._own.find(recent, hashed)
        if self._earlier is not None and self.length < LONGEST:
            at, length = self._earlier.find(recent, hashed)
            if length > self.length and not _ends(self._earlier, at):
                self._text, self._at, self.length = self._earlier, at, length
        self._epoch = self._text.epoch


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
        self._credit = 0.0  # seconds that may be lost
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
        guesses = {request: guess for request in decoding if (guess := self._guess(request)) is not None}
        for request, guess in guesses.items():
            guess.follow(request.history)
        if self._paused:
            self._paused -= 1
            return {}
        counts = self._counts({request: guess for request, guess in guesses.items() if guess.length}, len(decoding))
        drafts = {request: self._until_the_end(request, guesses[request].draft(n)) for request, n in counts.items()}
        return {request: draft for request, draft in drafts.items() if draft}

    def passed(self, sequences: int, rows: int, tokens: int, seconds: float) -> None:
        """A pass of answers alone gave so many tokens."""
        if sequences > TOGETHER:
            return
        cost = self._costs.setdefault(sequences, RowCost(sequences))
        cost.observe(rows, seconds)
        plain, took = cost.seconds(sequences), cost.seconds(rows)
        if plain is not None and took is not None:  # a single slow pass is no loss
            credit = self._credit + SHARE * took
            if rows > sequences:
                credit += plain * tokens / sequences - took
            self._credit = min(max(credit, -2 * CREDIT * plain), CREDIT * plain)

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
                likely.append((-chance, request))
                length += 1
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
