"""What is known of a prompt: the longest prefix over blocks in memory and on disk.

Blocks form a tree under a root that names the model and everything that shapes its state. A block continues its parent
from any position in it, so two conversations that part in the middle of a block share everything before, and the
second stores only its own tokens:

    root ── [0, 256) ── [256, 512) ── [512, 700)                  first conversation
                             └── (from 300) [300, 420)            second conversation

A block is loaded whole and truncated to where the path leaves it. Models whose sequences cannot be truncated keep
checkpoints instead: blocks that begin at 0 and are used whole or not at all.

The logits after a whole prompt are a leaf of this tree too, a block of the one token LOGITS: then the same prompt costs
nothing at all.

What is private has an owner, whose key is a part of the root of a tree of its own: nobody else's prompt meets it, and
it stays off the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Tokens
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Buffer, SavedFile, Sequence
from edgellm.errors import Closed, Interrupted, ResourceError
from edgellm.kv.blocks import BLOCK_TOKENS, LOGITS, Block, chain, make_block, root_key
from edgellm.kv.memory import MemoryTier
from edgellm.kv.store import BlockStore

log = logging.getLogger("edgellm.kv")

SHORTEST_ON_DISK = 64  # tokens; shorter conversations are not worth a file
PUBLIC = b""  # the owner of what every prompt may find, and the disk may hold
UNNAMED = b"memory"  # of what calls with cache="memory" have read that belong to no conversation


@dataclass(frozen=True, slots=True)
class Hit:
    """A block on the path of a prompt, the tokens of it that agree, and where it lies."""

    block: Block
    taken: int
    on_disk: bool


@dataclass(frozen=True, slots=True)
class Match:
    """The known prefix of a prompt: `length` tokens whose state can be had.

    agreed: tokens that the prompt shares with the nearest known text, of which checkpoints may hold less. next_known:
    what followed there. logits: the block of the logits after the whole prompt. beyond: more of it is known, in a block
    that a sequence has no room for.
    """

    hits: list[Hit]
    length: int
    agreed: int
    next_known: list[int]
    logits: Block | None = None
    beyond: bool = False


NOTHING = Match([], 0, 0, [])


class PrefixCache:
    """The parked state of one model. For the engine's thread alone.

    root: the key that all its blocks descend from. store: None keeps everything off the disk. whole: sequences cannot
    be truncated, so blocks are checkpoints. room: tokens that a sequence holds; a block that reaches further, from a
    larger context, is of no use.
    """

    def __init__(
        self,
        root: bytes,
        memory: MemoryTier,
        store: BlockStore | None,
        *,
        label: str,
        whole: bool = False,
        room: int = 2**31,
    ) -> None:
        self.memory = memory
        self.store = store
        self._root = root
        self._label = label
        self._whole = whole
        self._room = room

    def under(self, part: str) -> PrefixCache:
        """What is known of the same model with something else that shapes state, in the same places."""
        root = root_key(self._root, part)
        return PrefixCache(root, self.memory, self.store, label=self._label, whole=self._whole, room=self._room)

    @property
    def problem(self) -> str | None:
        """Why nothing is kept on disk where it should be."""
        return None if self.store is None else self.store.problem

    def match(self, prompt: Tokens[int], *, owner: bytes = PUBLIC, feed: int = 1) -> Match:
        """The longest known prefix. feed: tokens at the end of the prompt that a checkpoint must not hold."""
        tokens = np.asarray(prompt, np.int32)
        if not len(tokens):
            return NOTHING
        node, at = self._top(owner), 0
        if self._whole:
            return self._match_checkpoint(node, tokens, owner, len(tokens) - feed)
        hits: list[Hit] = []
        rest: list[int] = []
        beyond = False
        while at < len(tokens):
            best: Hit | None = None
            for candidate, on_disk in self._children(node, at, int(tokens[at]), owner):
                if candidate.stop > self._room:
                    beyond = True
                    continue
                taken = common_prefix(candidate.tokens, tokens[at:])
                if best is None or taken > best.taken:
                    best = Hit(candidate, taken, on_disk)
            if best is None:
                rest = rest if rest or beyond else self._any_after(node, at, owner)
                break
            beyond = False
            rest = [int(token) for token in best.block.tokens[best.taken :]]
            hits.append(best)
            at += best.taken
            node = best.block.key
        ends = self._children(node, at, LOGITS, owner) if hits and at == len(tokens) else []
        return Match(hits, at, at, rest, ends[0][0] if ends else None, beyond)

    def _match_checkpoint(self, root: bytes, tokens: NDArray[np.int32], owner: bytes, limit: int) -> Match:
        """The longest checkpoint of at most `limit` tokens that the prompt begins with."""
        found = NOTHING
        for block, on_disk in self._children(root, 0, int(tokens[0]), owner):
            shared = common_prefix(block.tokens, tokens)
            hits, length = found.hits, found.length
            if length < shared == len(block.tokens) <= limit:
                hits, length = [Hit(block, shared, on_disk)], shared
            if shared > found.agreed:
                found = Match(hits, length, shared, [int(token) for token in block.tokens[shared:]])
            else:
                found = replace(found, hits=hits, length=length)
        return found

    def logits(self, match: Match) -> Buffer | None:
        """The bytes that `park_logits` got for exactly this prompt; None where there are none, or damaged ones."""
        if match.logits is None:
            return None
        known = self.memory.read(match.logits.key)
        if known is None and self.store is not None:
            known = self.store.read(match.logits.key)
            if known is not None:
                self.memory.write(match.logits, known)
        return known

    def used(self, match: Match) -> None:
        """A match was used, though its state may not be loaded."""
        if self.store is not None:
            self.store.touch([hit.block.key for hit in match.hits if hit.on_disk])

    def beyond_memory(self, match: Match) -> list[tuple[int, int]]:
        """The positions of a match, from and to, whose state is on disk alone: before it is loaded."""
        away = [hit for hit in match.hits if self.memory.read(hit.block.key) is None]
        return [(hit.block.start, hit.block.start + hit.taken) for hit in away]

    def park_logits(self, prompt: list[int], row: bytes, words: str, *, owner: bytes) -> None:
        """Keep the logits after a prompt whose state is parked."""
        match = self.match(prompt, owner=owner)
        if match.length < len(prompt) or match.logits is not None:
            return
        block = make_block(match.hits[-1].block.key, len(prompt), [LOGITS])
        self._write([(block, row)], self._disk(len(prompt), owner), words)

    def load(self, match: Match, length: int, sequence: Sequence) -> bool:
        """Load the first `length` tokens of a match into an empty sequence. False: fewer, as a block is damaged."""
        hits = [(hit, self.memory.read(hit.block.key)) for hit in match.hits if hit.block.start < length]
        if sequence.reads_files:
            while hits and (count := self._load_together(hits, length, sequence)):
                hits = hits[count:]
        missing = [hit.block.key for hit, payload in hits if payload is None]
        stored = iter(()) if self.store is None else self.store.read_ahead(missing)
        for hit, payload in hits:
            came_from_disk = payload is None
            if payload is None:
                payload = next(stored, None)
            if payload is None:
                return False
            try:
                sequence.load([payload])
            except (Closed, Interrupted, ResourceError, MemoryError):  # not for what is in the block
                raise
            except Exception as error:
                self._give_up(hit, str(error))
                return False
            if came_from_disk:
                self.memory.write(hit.block, payload)
            wanted = min(hit.block.start + hit.taken, length)
            if sequence.length > wanted and not sequence.truncate(wanted):
                break
        return True

    def _load_together(self, hits: list[tuple[Hit, Buffer | None]], length: int, sequence: Sequence) -> int:
        """Load the first of these hits, up to one that is used in part: from memory, and from files past it. How many
        they were; 0 where one of them is damaged, which shows when they are loaded one by one."""
        blocks: list[Buffer | SavedFile] = []
        with ExitStack() as until:
            for hit, payload in hits:
                block = payload if payload is not None or self.store is None else self.store.open(hit.block.key, until)
                if block is None:
                    break
                blocks.append(block)
                if hit.taken < len(hit.block.tokens):
                    break
            try:
                sequence.load(blocks)
            except (Closed, Interrupted, ResourceError, MemoryError):  # not for what is in the blocks
                raise
            except Exception as error:
                log.debug("stored blocks are looked at one by one: %s", error)
                return 0
        if blocks:
            last = hits[len(blocks) - 1][0]
            wanted = min(last.block.start + last.taken, length)
            if sequence.length > wanted:
                sequence.truncate(wanted)
        return len(blocks)

    def park(self, tokens: list[int], sequence: Sequence, words: str, *, owner: bytes) -> None:
        """Keep the state of a sequence that holds `tokens`: what is not known yet is saved, and written to disk."""
        match = self._known_checkpoint(tokens, owner) if self._whole else self.match(tokens, owner=owner)
        disk = self._disk(len(tokens), owner)
        for hit in match.hits:
            payload = self.memory.read(hit.block.key)
            if disk is not None and payload is not None and not hit.on_disk:
                disk.write(hit.block, payload, label=self._label, words=words)
        if disk is not None:
            disk.touch([hit.block.key for hit in match.hits])
        at = match.length
        if at == len(tokens):
            return
        node = match.hits[-1].block.key if match.hits else self._top(owner)
        self._write(self._saved(node, at, tokens, sequence), disk, words)

    def park_saved(self, blocks: Tokens[tuple[Block, Buffer]], words: str, *, owner: bytes) -> None:
        """`park`, for state that `export` has saved."""
        tokens = [int(token) for block, _payload in blocks for token in block.tokens]
        match = self._known_checkpoint(tokens, owner) if self._whole else self.match(tokens, owner=owner)
        if match.length == len(tokens):
            return
        self._write(blocks, self._disk(len(tokens), owner), words)

    def export(self, tokens: list[int], sequence: Sequence, *, owner: bytes = PUBLIC) -> list[tuple[Block, Buffer]]:
        """The state of a sequence that holds `tokens`, as blocks of nothing but these tokens."""
        return list(self._saved(self._top(owner), 0, tokens, sequence))

    def adopt(self, blocks: Tokens[tuple[Block, Buffer]], *, owner: bytes) -> bool:
        """Keep what `export` gave as public. False when it is of another model, engine build or kind of cache."""
        node = self._root
        for block, _payload in blocks:
            if block.parent != node:
                return False
            node = block.key
        node = self._top(owner)
        for block, payload in blocks:
            known = make_block(node, block.start, block.tokens)
            self.memory.write(known, payload)
            node = known.key
        return True

    def forget(self, owner: bytes) -> None:
        """Let go what is private of somebody."""
        self.memory.drop(self._top(owner))

    def close(self) -> None:
        """Finish writing and let everything go."""
        self.memory.clear()
        if self.store is not None:
            self.store.close()

    def _give_up(self, hit: Hit, reason: str) -> None:
        """Know a block no more that the engine does not take."""
        log.warning("stored state could not be loaded and is computed again: %s", reason)
        self.memory.drop(hit.block.key)
        if self.store is not None and hit.on_disk:
            self.store.reject(hit.block.key, reason)

    def _write(self, blocks: Iterable[tuple[Block, Buffer]], disk: BlockStore | None, words: str) -> None:
        for block, payload in blocks:
            self.memory.write(block, payload)
            if disk is not None:
                disk.write(block, payload, label=self._label, words=words)

    def _saved(self, node: bytes, at: int, tokens: list[int], sequence: Sequence) -> Iterator[tuple[Block, Buffer]]:
        size = max(1, len(tokens)) if self._whole else BLOCK_TOKENS
        for block in chain(node, tokens[at:], size, at):
            yield block, sequence.save(block.start, block.stop)

    def _disk(self, length: int, owner: bytes) -> BlockStore | None:
        """Where a conversation of `length` tokens goes beside memory."""
        return self.store if not owner and length >= SHORTEST_ON_DISK else None

    def _top(self, owner: bytes) -> bytes:
        return root_key(self._root, owner) if owner else self._root

    def _known_checkpoint(self, tokens: list[int], owner: bytes) -> Match:
        """The checkpoint of exactly these tokens, if there is one."""
        wanted = make_block(self._top(owner), 0, tokens)
        in_memory = self.memory.read(wanted.key) is not None
        on_disk = self.store is not None and not owner and self.store.has(wanted.key)
        if not in_memory and not on_disk:
            return NOTHING
        return Match([Hit(wanted, len(tokens), on_disk)], len(tokens), len(tokens), [])

    def _children(self, node: bytes, at: int, token: int, owner: bytes) -> list[tuple[Block, bool]]:
        """Blocks that continue `node` at this position with this token, and whether they are on disk."""
        here = {child.key: (child, False) for child in self.memory.children(node, at, token)}
        if self.store is not None and not owner:
            for child in self.store.children(node, at, token):
                here[child.key] = (child, True)
        return list(here.values())

    def _any_after(self, node: bytes, at: int, owner: bytes) -> list[int]:
        """The tokens of one block that continues `node` at this position, whatever they are."""
        found = self.memory.children(node, at, limit=2)  # one of them may be logits
        if not found and self.store is not None and not owner:
            found = self.store.children(node, at, limit=2)
        known = next((block.tokens for block in found if block.tokens[0] != LOGITS), ())
        return [int(token) for token in known]


def common_prefix(a: Tokens[int] | NDArray[np.int32], b: Tokens[int] | NDArray[np.int32]) -> int:
    """Number of leading tokens that `a` and `b` share."""
    n = min(len(a), len(b))
    different = np.nonzero(np.asarray(a[:n], np.int64) != np.asarray(b[:n], np.int64))[0]
    return int(different[0]) if different.size else n
