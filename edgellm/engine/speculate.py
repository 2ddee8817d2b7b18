"""Speculation: what probably follows is computed beside the last token, and kept as far as the sampler chooses it.

    answer so far   … a b c ▮             the end of it occurred before, and "d e f" followed there: the draft
    pass            c d e f               one row of logits for each, hardly dearer than one while weights are read
    sampler         d e x                 its own choice from each row, as without a draft: d and e were right
    sequence        … a b c d e           f is cut off again; x is sampled, and goes into the next pass

So the answer is the one that the rows give. Where rows have the same bits in every pass (`PassShape.exact`), that is
the answer without drafts to the last token, whatever the sampler. Elsewhere a row differs by rounding with the size of
its pass, so the answer is another one as likely, and drafts are made only for those who ask.

Drafts come from the prompt, the answer and earlier texts of the same owner (`guess.py`). Whether one is worth its rows
follows from how often those behind a match of its length came true (`Acceptance`: seen at every token, also where
nothing was drafted) and from what passes with so many rows took (`rowcost.py`). What it loses all the same is bounded:
by `SHARE` of the time in which answers were decoded, beside what was gained just before, and a little to begin with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgellm.backends.base import Backend
from edgellm.engine.guess import Acceptance, Guess
from edgellm.engine.rowcost import RowCost
from edgellm.engine.suffixes import LONGEST, SEPARATOR, Suffixes
from edgellm.errors import Unsupported
from edgellm.kv.prefixes import PUBLIC
from edgellm.params import GenerateParams

if TYPE_CHECKING:
    from edgellm.engine.request import Request

GAIN = 1.05  # by how much a draft must be expected to be faster
SHARE = 0.01  # of the time of decoding may be lost in the long run
FIRST, CREDIT, DEBT = 4, 8, 16  # plain passes that may be lost at first, and of what was gained; that are remembered
MISSED = 0.2  # of a plain pass, what each token counts that a draft would have had while none was made for its losses
MOST = 31  # tokens of a draft
LEAST = 0.02  # how likely its last one is
ROWS = 64  # of a pass with drafts
TOGETHER = 8  # sequences beyond which a pass is full enough
PAUSE = 64  # passes without drafts after one that there was no room for
EARLIER = 1 << 16  # tokens of earlier texts of an owner that are looked through
OWNERS = 8  # private conversations whose texts are known, beside what is public


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
        drafts = self._choose(guesses, len(decoding))
        drafts = {request: self._until_the_end(request, draft) for request, draft in drafts.items()}
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

    def _choose(self, guesses: dict[Request, Guess], sequences: int) -> dict[Request, list[int]]:
        """The drafts that bring most tokens per second. Each further row goes where it is likeliest to be
        right, which is never behind one that is less likely."""
        cost = self._costs.get(sequences)
        if not guesses or cost is None or self._credit < 0 or sequences > TOGETHER:
            return {}
        plain = cost.seconds(sequences)
        if plain is None:
            return {}
        most = min(ROWS, self._backend.max_rows, self._backend.micro_batch) - sequences
        likely: list[tuple[float, Request]] = []
        drafts: dict[Request, list[int]] = {}
        for request, guess in guesses.items():
            drafts[request], chances = guess.draft(min(MOST, most, self._room(request)), LEAST)
            likely += [(-chance, request) for chance in chances]
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
        taken = [request for _, request in likely[:best]]
        return {request: draft[: taken.count(request)] for request, draft in drafts.items()}

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
