"""Where the state of a request comes from, and where it goes.

start(request)        its own parked state │ the live sequence or the parked blocks that share most │ nothing
park(request)         its state moves to host memory until it goes on
checkpoint(request)   known from now on, in the middle of a prompt, where a sequence cannot be truncated to later
retain(request)       known from now on; if it was the only one running, its sequence also stays live
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from edgellm.backends.base import INSIDE, Backend, Buffer, Sequence, text_of
from edgellm.engine.request import Request
from edgellm.errors import Busy, EdgeLLMError, Unsupported
from edgellm.events import CacheReport
from edgellm.kv.blocks import Block, make_block
from edgellm.kv.explain import explain
from edgellm.kv.prefixes import NOTHING, Match, PrefixCache, common_prefix

log = logging.getLogger("edgellm.engine")

WORTH_WAITING = 64  # tokens that a running prefill will hold and this prompt shares
WORDS = 64  # tokens of a conversation that people are shown
DAMAGED = "a stored block was damaged and is computed again"
NO_ROOM = "there was no room for the known state"
BEYOND = "what is known of it was read with a larger context, in a block that this one has no room for"
UNCUT = "the known state could not be cut to where this prompt leaves it"
LOGITS_SHARE = 20  # logits are kept when the state that was computed before them takes so many times their bytes


class Reuse:
    """For the engine's thread alone. known: parked state; None keeps none."""

    def __init__(self, backend: Backend, known: PrefixCache | None) -> None:
        self._backend = backend
        self._known = known
        adapters = {} if known is None else backend.adapters
        self._with = {name: known.under(f"adapter {key}") for name, key in adapters.items() if known is not None}
        self._live: Request | None = None  # finished last; its sequence is still in the KV cache
        self._whole = not backend.info.can_truncate
        self._shape = backend.pass_shape

    def start(self, request: Request, running: Many[Request]) -> None:
        """Give `request` a sequence and its cache report. Raises Busy and what the backend raises."""
        if request.parked:
            self.forget_live()
            sequence = self._new(request, request.expected)
            try:
                sequence.load([payload for _block, payload in request.parked])
            except BaseException:
                sequence.close()
                raise
            request.sequence, request.parked = sequence, []
            return
        if not request.params.cache:
            self.forget_live()
            request.sequence = self._new(request, request.expected)
            request.cache = CacheReport(computed=len(request.prompt), reason="the cache was switched off")
            return
        match, known = NOTHING, self._of(request)
        if known is not None:
            match = known.match(request.prompt, owner=request.owner, feed=self._shape.shortest)
            if self._whole:
                request.checkpoints = self._worth_a_checkpoint(request, match.agreed)
        if self._start_at_end(request, match, running):
            return
        live, shared = self._nearest_live(request, running)
        from_live, from_blocks, why = self._usable(shared, request), self._usable(match.length, request), ""
        if live is not None and from_live >= max(1, from_blocks):
            text, why = self._known_text(live, request)
            if self._take_live(request, live, from_live):
                agreed = common_prefix(text, request.prompt)
                request.cache = self._report(request, CacheReport(from_live=from_live), agreed, text[agreed:], why)
                return
            why = UNCUT
        self.forget_live()
        request.sequence = self._new(request, request.expected)
        try:
            self._fill(request, match, from_blocks, why)
        except Busy:  # no cells for it now: the engine tries again when another request has finished
            request.release()
            raise

    def _start_at_end(self, request: Request, match: Match, running: Many[Request]) -> bool:
        """Whether the very same prompt is known with the logits after it: then nothing is left to compute."""
        known = self._of(request)
        if known is None or match.logits is None:
            return False
        row = known.logits(match)
        n_vocab = self._backend.info.n_vocab
        if row is None or len(row) != 4 * n_vocab:
            return False
        length = len(request.prompt)
        live, shared = self._nearest_live(request, running)
        if live is not None and shared == length and self._take_live(request, live, length):
            report = CacheReport(from_live=length)
        else:
            self.forget_live()
            request.sequence = self._new(request, request.expected)
            request.reused, request.deferred = length, match
            known.used(match)
            report = _by_tier(known.beyond_memory(match), length)
        request.cache = self._report(request, report, length, [])
        request.row = np.frombuffer(row, np.float32).reshape(1, n_vocab)
        return True

    def load_deferred(self, request: Request) -> None:
        """Load the state that a request began without: its first token needed no more than the logits."""
        match, request.deferred = request.deferred, None
        assert match is not None  # the caller has looked
        started = time.perf_counter()
        self._fill(request, match, len(request.prompt))
        request.spent.waited += time.perf_counter() - started

    def is_coming(self, request: Request, running: Many[Request]) -> bool:
        """Whether a prompt that is being read will soon hold much more of this one than it does now."""
        if not request.params.cache or self._whole:
            return False
        for other in running:
            if not other.in_prefill or not other.params.cache or other.state_of != request.state_of:
                continue
            if self._usable(common_prefix(request.prompt, other.prompt), request) - other.length >= WORTH_WAITING:
                return True
        return False

    def park(self, request: Request) -> None:
        """Move the state of a running request to host memory. Raises BackendFailed when it cannot be saved."""
        sequence = request.sequence
        assert sequence is not None  # every running request has one
        tokens = request.history[: sequence.length]
        known = self._of(request)
        if known is not None:
            request.parked = known.export(tokens, sequence, owner=request.owner)
        elif tokens:
            request.parked = [(make_block(b"", 0, tokens), sequence.save(0, len(tokens)))]
        request.release()

    def checkpoint(self, request: Request) -> None:
        """Park the state of a request that goes on."""
        sequence = request.sequence
        assert sequence is not None  # the caller has looked
        known = self._of(request)
        if known is not None and request.params.cache:
            tokens = request.history[: sequence.length]
            try:
                words = self._title(request)
                known.park(tokens, sequence, words, owner=request.owner)
                if self._worth_keeping_logits(request):
                    assert request.row is not None  # the line above has looked
                    known.park_logits(request.prompt, request.row.tobytes(), words, owner=request.owner)
            except (EdgeLLMError, MemoryError) as error:
                log.warning("the state of a request could not be kept: %s", str(error) or "the memory is not enough")

    def retain(self, request: Request, *, alone: bool) -> None:
        """Know the state of a finished request, and leave its sequence alive when it was the only one running."""
        known = self._of(request)
        if request.parked and known is not None:
            known.park_saved(request.parked, self._title(request), owner=request.owner)
        if request.sequence is None:
            return
        self.checkpoint(request)
        if alone:
            self.forget_live()
            self._live = request
        else:
            request.release()

    def export(self, tokens: list[int], *, owner: bytes) -> list[tuple[Block, Buffer]]:
        """What is known of the beginning of `tokens`, as blocks of nothing but them."""
        if self._known is None:
            return []
        match = self._known.match(tokens, owner=owner, feed=0)
        sequence = self._backend.new_sequence(match.length)
        try:
            self._known.load(match, match.length, sequence)
            return self._known.export(tokens[: sequence.length], sequence)
        finally:
            sequence.close()

    def adopt(self, blocks: Many[tuple[Block, Buffer]], *, owner: bytes) -> bool:
        """Know what `export` gave. False when it belongs to another model, engine build or kind of cache."""
        return self._known is not None and self._known.adopt(blocks, owner=owner)

    def forget(self, owner: bytes) -> None:
        """Let go what is private of a conversation that nobody can go on with."""
        if self._live is not None and self._live.owner == owner:
            self.forget_live()
        if self._known is not None:
            for known in (self._known, *self._with.values()):
                known.forget(owner)

    def forget_live(self) -> bool:
        """Free the cells of the sequence that was kept alive. False when there was none."""
        live, self._live = self._live, None
        if live is None or live.sequence is None:
            return False
        live.release()
        return True

    def close(self) -> None:
        """Finish writing what is parked."""
        self.forget_live()
        if self._known is not None:
            self._known.close()

    def _of(self, request: Request) -> PrefixCache | None:
        """What is known of the model with the adapter of a request."""
        return self._with[request.adapter] if request.adapter and self._with else self._known

    def _new(self, request: Request, expected: int = 0) -> Sequence:
        sequence = self._backend.new_sequence(expected)
        sequence.adapter = request.adapter
        return sequence

    def _worth_keeping_logits(self, request: Request) -> bool:
        """Whether the logits after a prompt take little beside the state that was computed for it."""
        if request.row is None or self._whole:
            return False
        computed = (len(request.prompt) - request.reused) * self._backend.info.kv_bytes_per_token
        return request.length >= len(request.prompt) and computed >= LOGITS_SHARE * request.row.nbytes

    def _worth_a_checkpoint(self, request: Request, agreed: int) -> list[int]:
        """Positions in a prompt, in tokens: where it leaves what is known, and just before its end.

        So what several prompts begin with is kept from the second one on, and the same prompt can be asked again.
        """
        length = len(request.prompt)
        end, shared = self._shape.reusable(length, length), self._shape.reusable(agreed, length)
        return [at for at in (shared if shared <= end - WORTH_WAITING else 0, end) if at >= self._shape.shortest]

    def _usable(self, matched: int, request: Request) -> int:
        """Tokens of a match that can be reused: see `reusable`; a checkpoint is used whole or not at all."""
        if self._whole:
            return matched if matched <= len(request.prompt) - self._shape.shortest else 0
        return self._shape.reusable(matched, len(request.prompt))

    def _nearest_live(self, request: Request, running: Many[Request]) -> tuple[Request | None, int]:
        """The running or last finished request whose sequence shares most with this prompt, and how many tokens."""
        best: Request | None = None
        most = 0
        for other in running if self._live is None else [*running, self._live]:
            if other.sequence is None or not other.params.cache or other.state_of != request.state_of:
                continue
            shared = min(common_prefix(other.history, request.prompt), other.length)
            if self._whole and shared < other.length:
                continue
            if shared > most:
                best, most = other, shared
        return best, most

    def _take_live(self, request: Request, live: Request, length: int) -> bool:
        """Continue the kept sequence, or fork a running one, at `length` tokens. False when that cannot be."""
        assert live.sequence is not None  # _nearest_live chose one that has
        if live is self._live:
            if not live.sequence.truncate(length):
                return False
            request.sequence, live.sequence, self._live = live.sequence, None, None
        else:
            try:
                request.sequence = live.sequence.fork(length)
            except Unsupported:
                return False
        request.reused = length
        return True

    def _fill(self, request: Request, match: Match, length: int, why: str = "") -> None:
        """Load the first `length` tokens of the prompt into its sequence, which is empty, and report what came.

        Raises Busy where there is no room, unless the request began without its state: what is missing is computed
        when there is. why: nothing better than this match could be used.
        """
        sequence = request.sequence
        assert sequence is not None  # the callers have made one
        away: list[tuple[int, int]] = []
        known = self._of(request)
        if length and known is not None:
            away = known.beyond_memory(match)
            try:
                if not known.load(match, length, sequence):
                    why = DAMAGED
            except Busy:
                if request.row is None:
                    raise
                why = NO_ROOM
        aligned = length if sequence.length == length else self._usable(sequence.length, request)
        if aligned < sequence.length and not sequence.truncate(aligned):
            sequence.close()
            request.sequence = self._new(request)
            aligned, why = 0, UNCUT
        request.reused = aligned
        report = _by_tier(away, aligned)
        why = why or (BEYOND if match.beyond else "")
        request.cache = self._report(request, report, match.agreed, match.next_known, why)

    def _known_text(self, live: Request, request: Request) -> tuple[list[int], str]:
        """The tokens that are known with a sequence, and why a prompt does not find more of them."""
        length = live.length
        if length >= len(live.prompt):
            return live.history, ""  # the last token of an answer was sampled, and has no state yet
        if common_prefix(live.prompt, request.prompt) <= length:
            return live.prompt[:length], ""
        who = "the request before this one stopped" if live is self._live else "another request is"
        return live.prompt[:length], f"the prompt is known up to token {length}, where {who} reading it"

    def _report(
        self, request: Request, report: CacheReport, matched: int, next_known: list[int], why: str = ""
    ) -> CacheReport:
        """`report` with what will be computed, and the words. why: they are known already."""
        reused = request.reused
        broke = explain(request.prompt, matched, next_known, self._text)
        reasons = [why or broke.reason]
        again = matched - reused  # known, and computed all the same
        if not why and self._whole and reused < self._shape.reusable(matched, len(request.prompt)):
            reasons.append(f"this model goes on only from a checkpoint, the nearest one at token {reused}")
        elif not why and again and (matched == len(request.prompt) or (not reused and again >= self._shape.align)):
            last = f"its last {again} tokens are" if reused else f"all {again} known tokens are"
            why_again = f"{last} computed again, because a pass over a prompt has at least {self._shape.shortest}"
            reasons.append(why_again if again > 1 else "its last token is computed again, for the logits behind it")
        if not matched and self._known is not None and self._known.problem:
            reasons.append(self._known.problem)
        return replace(
            report,
            computed=len(request.prompt) - reused,
            broke_at=broke.broke_at,
            expected=broke.expected,
            found=broke.found,
            reason="; ".join(reasons),
        )

    def _title(self, request: Request) -> str:
        """What people are shown of a request: the text it begins with, without control tokens."""
        return request.title or text_of(self._backend.tokenizer, request.prompt[:WORDS])

    def _text(self, tokens: list[int]) -> str:
        return text_of(self._backend.tokenizer, tokens, special=True, before=INSIDE)


def _by_tier(beyond: Many[tuple[int, int]], length: int) -> CacheReport:
    """Where the first `length` tokens of a match come from. beyond: the positions, from and to, that memory lacks."""
    from_disk = sum(max(0, min(stop, length) - start) for start, stop in beyond)
    return CacheReport(from_memory=length - from_disk, from_disk=from_disk)
