"""Said: the answers of a model as it produced them, found by the text before them.

The text of a conversation does not tell the tokens of its answers: a model may spell a word in many ways. What it
produced is kept, so that the state computed for it is found again, whoever brings the conversation back; all else has
the tokens of the whole text.

    prompt of the next turn   <bos>USER: hi\\nASSISTANT: hello│\\nUSER: ...
                              as the model saw it    produced │continued (engine/seam.py)

An answer belongs to the whole text of its prompt. Prompts that go on with one another form a tree, so that each turn of
a conversation takes the bytes of what is new in it:

    USER: hi\\nASSISTANT: ──── hello\\nUSER: and you?\\nASSISTANT: ──── ...
      └ the answer "hello"      └ the answer to that

Texts of prompts are those that the tokens were made of: QUOTE (engine/quotes.py) is in what only looks like a control
token, so that a conversation in which somebody wrote one is not taken for the conversation that has it.
"""

from __future__ import annotations

import itertools
import sys
import threading
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from edgellm.backends.base import Tokenizer
from edgellm.engine.quotes import unquoted
from edgellm.engine.seam import continued, encoded, spelled
from edgellm.engine.textstream import TextStream
from edgellm.prompts.messages import flattened

REMEMBERED = 16 << 20  # bytes of answers and their prompts
OVERHEAD = 600  # bytes that an answer takes beside its texts and tokens

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a prompt.

    place: its index among the messages. text: what the message holds, which may end before the last tokens do (a stop
    string was cut off). tokens: those of the prompt, `n_prompt` of them, and those that were produced. content: what
    the message holds where that is less than the model wrote, because reasoning and calls stand apart; then `text` is
    all of it, and a template that puts them together again may show it.
    """

    place: int
    prompt: str
    text: str
    tokens: list[int]
    n_prompt: int
    content: str | None = None


@dataclass(eq=False, slots=True)
class _Known:
    """An answer in the tree, and what its prompt has beyond that of `before`: the text `asked` with the tokens `read`.

    start, n_start: characters and tokens of the prompt before that. order: of answers to one prompt the last counts.
    """

    before: _Known | None
    asked: str
    read: array[int]
    place: int
    text: str
    produced: array[int]
    order: int
    content: str | None = None
    start: int = field(init=False)
    n_start: int = field(init=False)
    after: dict[_Known, None] = field(default_factory=dict)  # whose prompts go on with this one's

    def __post_init__(self) -> None:
        self.start, self.n_start = (self.before.end, self.before.n_prompt) if self.before is not None else (0, 0)

    @property
    def end(self) -> int:
        return self.start + len(self.asked)

    @property
    def n_prompt(self) -> int:
        return self.n_start + len(self.read)

    @property
    def nbytes(self) -> int:
        tokens = self.read.itemsize * (len(self.read) + len(self.produced))
        return OVERHEAD + sum(map(sys.getsizeof, (self.asked, self.text, self.content))) + tokens

    def path(self) -> list[_Known]:
        """From the first prompt to this one's."""
        known, found = self, list[_Known]()
        while known.before is not None:
            found.append(known)
            known = known.before
        return found[::-1]

    def is_in(self, messages: Messages) -> bool:
        """Whether it is still the message in its place: one that somebody edited was not said by the model."""
        message = messages[self.place] if self.place < len(messages) else {}
        held = self.text if self.content is None else self.content
        said = (held, held.rstrip())
        return message.get("role") == "assistant" and flattened(dict(message)).get("content") in said

    def begins(self, text: str) -> bool:
        """Whether `text` shows it behind its prompt as it was said; templates may leave out the blanks at its end, and
        of what stands apart in the message they show what they like."""
        return self.content is not None or text.startswith(self.text.rstrip(), self.end)


class Said:
    """The answers that were said or used last, in `limit` bytes. Safe from any thread.

    The least recently used goes first, and a prompt after all that go on with it. owner: the key of the private
    conversation whose memory it is; b"" for what is public.

    The collector may end a dropped stream in the midst of anything here, on the thread that holds the lock. So what the
    model gave waits in `_arrived`, and whoever holds the lock, or has it next, puts it into the tree.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int = REMEMBERED, owner: bytes = b"") -> None:
        self.nbytes = 0
        self.owner = owner
        self._tokenizer = tokenizer
        self._limit = limit
        self._arrived: deque[Answer] = deque()
        self._lock = threading.Lock()  # guards the tree and the two below
        self._top = _Known(None, "", array("i"), -1, "", array("i"), 0)
        self._used: OrderedDict[_Known, None] = OrderedDict()  # a prompt behind all that go on with it
        self._orders = itertools.count(1)

    def __len__(self) -> int:
        return len(self._used)

    def add(self, answer: Answer, *, proven: bool = True) -> None:
        """Remember an answer. proven: the model gave it here and now, and nobody is waited for; else its tokens must be
        those of its text."""
        if not proven:
            with self._lock:
                self._add_arrived()
                self._put(answer, proven=False)
            return
        self._arrived.append(answer)
        while self._arrived and self._lock.acquire(blocking=False):  # looks again, for what came while it was held
            try:
                self._add_arrived()
            finally:
                self._lock.release()

    def tokens(self, text: str, messages: Messages, *, bos: bool = True) -> list[int]:
        """Tokens of a prompt that shows `messages`: those of the whole text, but for what the model produced.

        bos: begin as the model asks for. A prompt that was answered has the tokens that it had then.
        """
        for known in self._beginning(text):
            if known.end == len(text):
                count, end = 0, known.end
            elif known.is_in(messages) and known.begins(text):
                count, end = self._shown(known, text)
            else:
                continue
            if count or end == len(text):
                with self._lock:
                    self._use(known)
                rest = continued(self._tokenizer, text, end) if end < len(text) else []
                read = b"".join(each.read for each in known.path())
                return [*array("i", read), *known.produced[:count], *rest]
        return encoded(self._tokenizer, text, bos=bos)

    def answers(self, text: str, messages: Messages) -> list[Answer]:
        """The answers among `messages` whose prompts the prompt `text` begins with, or is: the shortest first."""
        read: dict[_Known | None, list[int]] = {self._top: []}  # the tokens of each prompt
        found = []
        for known in reversed(self._beginning(text)):  # each behind the one that it goes on with
            read[known] = tokens = read[known.before] + known.read.tolist()
            if known.is_in(messages):
                whole = tokens + known.produced.tolist()
                found.append(Answer(known.place, text[: known.end], known.text, whole, len(tokens), known.content))
        return found

    def _beginning(self, text: str) -> list[_Known]:
        """Whose prompts `text` begins with: the longest prompt first, of answers to the same one the last first."""
        found = []
        with self._lock:
            self._add_arrived()
            left = list(self._top.after)
            while left:
                known = left.pop()
                if text.startswith(known.asked, known.start):
                    found.append(known)
                    left += known.after
        return sorted(found, key=lambda known: (known.end, known.order), reverse=True)

    def _add_arrived(self) -> None:
        while self._arrived:
            self._put(self._arrived.popleft(), proven=True)

    def _put(self, answer: Answer, *, proven: bool) -> None:
        tokens = array("i", answer.tokens[: answer.n_prompt])
        produced = array("i", answer.tokens[answer.n_prompt :])
        before = self._longest(answer.prompt, tokens)
        asked, read = answer.prompt[before.end :], tokens[before.n_prompt :]
        order = next(self._orders)
        new = _Known(before, asked, read, answer.place, answer.text, produced, order, answer.content)
        if not proven and not self._spells(new):
            return
        alike = attrgetter(
            "asked", "place", "text", "read", "produced", "content"
        )  # one prompt, answered twice the same
        same = next((known for known in before.after if alike(known) == alike(new)), None)
        if same is None:
            before.after[new] = self._used[new] = None
            self.nbytes += new.nbytes
        else:
            same.order, new = new.order, same
        self._use(new)
        while self.nbytes > self._limit:
            oldest, _ = self._used.popitem(last=False)
            assert oldest.before is not None  # the top is not among them
            del oldest.before.after[oldest]
            self.nbytes -= oldest.nbytes

    def _longest(self, prompt: str, tokens: array[int]) -> _Known:
        """Where in the tree a prompt belongs: behind the longest one that it goes on with, in text and tokens."""
        before = self._top
        while True:
            behind = [
                known
                for known in before.after
                if known.end < len(prompt)
                and prompt.startswith(known.asked, known.start)
                and tokens[known.n_start : known.n_prompt] == known.read
            ]
            if not behind:
                return before
            before = max(behind, key=lambda known: (known.end, known.order))

    def _use(self, known: _Known) -> None:
        for each in reversed(known.path()):
            if each in self._used:  # else it was given up meanwhile
                self._used.move_to_end(each)

    def _spells(self, known: _Known) -> bool:
        """Whether its tokens stand for its texts, but for white space, which vocabularies put in and take away, and
        none of the prompt's are control tokens that its text does not have."""
        begin = 0 if known.n_start else len(self._tokenizer.begin)
        asked, controls = (
            _letters(unquoted(known.asked).encode()),
            self._controls(encoded(self._tokenizer, known.asked)),
        )
        read = (known.read[at:] for at in {0, begin})
        produced = _letters(spelled(self._tokenizer, known.produced))
        return produced.startswith(_letters(known.text.encode())) and any(
            _letters(spelled(self._tokenizer, tokens)) == asked and self._controls(tokens) <= controls
            for tokens in read
        )

    def _controls(self, tokens: Sequence[int]) -> Counter[int]:
        return Counter(token for token in tokens if not self._tokenizer.piece(token))

    def _shown(self, known: _Known, text: str) -> tuple[int, int]:
        """How many tokens of the answer lie whole within what `text` shows of it, and where in `text` they end."""
        at = known.end
        limit = at + len(known.text)
        stream = TextStream()
        shown = (0, at)
        before = known.read[-1] if known.read else None
        for count, token in enumerate(known.produced, 1):
            piece = stream.push(self._tokenizer.piece(token, before=before))
            if not piece and known.content is not None:  # maybe a mark that stands for no text elsewhere
                mark = self._tokenizer.piece(token, special=True).decode("utf-8", "replace")
                piece = mark if not stream.pending and text.startswith(mark, at) and at + len(mark) <= limit else ""
            before = token
            if at + len(piece) > limit or not text.startswith(piece, at):
                return shown
            at += len(piece)
            if piece and not stream.pending:
                shown = (count, at)
        rest = stream.flush()  # an answer may end inside a character
        if rest and at + len(rest) <= limit and text.startswith(rest, at):
            shown = (len(known.produced), at + len(rest))
        return shown


def _letters(data: bytes) -> str:
    return "".join(data.decode("utf-8", "replace").split())


def packed(answers: Sequence[Answer]) -> list[Any]:
    """The last answer in full, then the others: where they are a part of the last one, lengths stand for it."""
    if not answers:
        return []
    last = answers[-1]
    text = last.prompt + last.text
    rest = []
    for each in answers[:-1]:
        inside = text.startswith(each.prompt + each.text) and last.tokens[: len(each.tokens)] == each.tokens
        numbers = [len(each.prompt), len(each.tokens), len(each.text)]
        parts = numbers if inside else [each.prompt, each.tokens, each.text]
        rest.append([*parts, each.n_prompt, each.place, *_apart(each)])
    return [[last.prompt, last.tokens, last.text, last.n_prompt, last.place, *_apart(last)], *rest]


def _apart(answer: Answer) -> list[str]:
    return [] if answer.content is None else [answer.content]


def unpacked(value: Any, n_vocab: int) -> list[Answer]:
    """What `packed` gave. Raises ValueError or TypeError for anything else; answers in other ids than 0 to n_vocab - 1
    are left out."""
    if not value:
        return []
    first, *others = value
    whole, ids = first[0] + first[2], first[1]
    answers = []
    for prompt, tokens, text, n_prompt, place, *apart in [*others, first]:
        if isinstance(prompt, int):
            prompt, tokens, text = whole[:prompt], ids[:tokens], whole[prompt : prompt + text]
        texts = all(isinstance(each, str) for each in (prompt, text, *apart)) and len(apart) < 2
        numbers = isinstance(tokens, list) and {type(n_prompt), type(place), *map(type, tokens)} == {int}
        if not texts or not numbers or place < 0 or not 0 <= n_prompt <= len(tokens):
            raise ValueError("an answer in it is not as edgellm writes them")
        answers.append(Answer(place, prompt, text, tokens, n_prompt, *apart))
    return [each for each in answers if not each.tokens or 0 <= min(each.tokens) <= max(each.tokens) < n_vocab]
