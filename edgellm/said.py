"""Said: the answers of a conversation as the model produced them.

The text of a conversation does not tell the tokens of its answers: a model may spell a word in many ways. What it
produced is kept, so that the state computed for it is found again; all else has the tokens of the whole text.

    prompt of the next turn   <bos>USER: hi\\nASSISTANT: hello│\\nUSER: ...
                              as the model saw it    produced │continued (engine/seam.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.backends.base import Tokenizer
from edgellm.engine.seam import continued
from edgellm.engine.textstream import TextStream

REMEMBERED = 64  # answers of one conversation


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a prompt.

    place: its index among the messages. text: what the message holds, which may end before the last tokens do (a stop
    string was cut off). tokens: those of the prompt, `n_prompt` of them, and those that were produced.
    """

    place: int
    prompt: str
    text: str
    tokens: list[int]
    n_prompt: int

    def is_in(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether it is still the message in its place: one that somebody edited was not said by the model."""
        message = messages[self.place] if self.place < len(messages) else {}
        return message.get("role") == "assistant" and message.get("content") == self.text

    def begins(self, text: str) -> bool:
        """Whether a prompt begins with it as it was said; templates may leave out the blanks at its end."""
        return text.startswith(self.prompt) and text.startswith(self.text.rstrip(), len(self.prompt))


class Said:
    """The last answers of a conversation. Lists of tokens are never changed, so copies share them."""

    def __init__(self, tokenizer: Tokenizer, answers: Sequence[Answer] = ()) -> None:
        self.answers = list(answers)
        self._tokenizer = tokenizer
        self._last: tuple[str, list[int]] | None = None  # a prompt and its tokens: streams ask twice

    def add(self, answer: Answer) -> None:
        self.answers = [*self.answers, answer][-REMEMBERED:]
        self._last = None

    def tokens(self, text: str, messages: Sequence[Mapping[str, Any]], *, bos: bool = True) -> list[int]:
        """Tokens of a prompt that shows `messages`: those of the whole text, but for what the model produced.

        bos: begin as the model asks for.
        """
        last = self._last
        if last is None or last[0] != text:
            self._last = last = (text, self._tokens(text, messages, bos))
        return last[1]

    def _tokens(self, text: str, messages: Sequence[Mapping[str, Any]], bos: bool) -> list[int]:
        known = [answer for answer in self.answers if answer.begins(text) and answer.is_in(messages)]
        known.sort(key=lambda answer: len(answer.prompt))
        for answer in reversed(known):  # the longest prompt first, of answers to the same one the last
            count, end = self._shown(answer, text)
            if count:
                return answer.tokens[: answer.n_prompt + count] + continued(self._tokenizer, text, end)
        return self._tokenizer.encode(text, special=True, bos=bos)

    def _shown(self, answer: Answer, text: str) -> tuple[int, int]:
        """How many tokens of the answer lie whole within what `text` shows of it, and where in `text` they end."""
        at = len(answer.prompt)
        limit = at + len(answer.text)
        stream = TextStream()
        shown = (0, at)
        before = answer.tokens[answer.n_prompt - 1] if answer.n_prompt else None
        for count, token in enumerate(answer.tokens[answer.n_prompt :], 1):
            piece = stream.push(self._tokenizer.piece(token, before=before))
            before = token
            if at + len(piece) > limit or not text.startswith(piece, at):
                return shown
            at += len(piece)
            if piece and not stream.pending:
                shown = (count, at)
        rest = stream.flush()  # an answer may end inside a character
        if rest and at + len(rest) <= limit and text.startswith(rest, at):
            shown = (len(answer.tokens) - answer.n_prompt, at + len(rest))
        return shown


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
        rest.append([*(numbers if inside else [each.prompt, each.tokens, each.text]), each.n_prompt, each.place])
    return [[last.prompt, last.tokens, last.text, last.n_prompt, last.place], *rest]


def unpacked(value: Any, n_vocab: int) -> list[Answer]:
    """What `packed` gave. Raises ValueError or TypeError for anything else; answers in other ids than 0 to n_vocab - 1
    are left out."""
    if not value:
        return []
    first, *others = value
    whole, ids = first[0] + first[2], first[1]
    answers = []
    for prompt, tokens, text, n_prompt, place in [*others, first]:
        if isinstance(prompt, int):
            prompt, tokens, text = whole[:prompt], ids[:tokens], whole[prompt : prompt + text]
        answers.append(_checked(Answer(place, prompt, text, tokens, n_prompt)))
    return [answer for answer in answers if all(0 <= token < n_vocab for token in answer.tokens)]


def _checked(answer: Answer) -> Answer:
    texts = isinstance(answer.prompt, str) and isinstance(answer.text, str)
    numbers = isinstance(answer.tokens, list) and all(
        type(number) is int for number in (*answer.tokens, answer.n_prompt, answer.place)
    )
    if not texts or not numbers or answer.place < 0 or not 0 <= answer.n_prompt <= len(answer.tokens):
        raise ValueError("an answer in it is not as edgellm writes them")
    return answer
