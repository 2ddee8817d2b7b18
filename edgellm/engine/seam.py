"""The tokens of a text that goes on where another one ends.

A tokenizer takes every text for one that begins: some put a space in front (SentencePiece), all merge what they are
given and nothing more. So what follows is never tokenized alone, but in its place:

    text      A S S I S T A N T : ▁ h e l│l o \\n U S E R : ...     │ the seam
    whole     [ASSISTANT][:][▁hello         ][\\n][USER][:] ...     tokens of the whole text
    continued                            [lo][\\n][USER][:] ...     what is taken: the token over the seam is cut

The same is so where QUOTE parts a text (engine/quotes.py): no token reaches over it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.backends.base import Tokenizer
from edgellm.engine.quotes import QUOTE, unquoted
from edgellm.kv.prefixes import common_prefix

ANCHORS = ("\n", "a", ".")  # texts to put before another one, so that it does not begin


def encoded(tokenizer: Tokenizer, text: str, *, bos: bool = False) -> list[int]:
    """Tokens of a text that begins; control tokens written in it count as such, unless QUOTE is in them. bos: begin as
    the model asks for."""
    first, *rest = text.split(QUOTE)
    return tokenizer.encode(first, special=True, bos=bos) + _parts(tokenizer, rest)


def continued(tokenizer: Tokenizer, text: str, at: int) -> list[int]:
    """Tokens of text[at:] as the whole text, which is `encoded`, has them.

    Where a token of the whole text reaches over the seam, the part of it behind the seam gets tokens of its own.
    """
    whole, head = encoded(tokenizer, text), encoded(tokenizer, text[:at])
    same = common_prefix(head, whole)
    if same == len(head):
        return whole[same:]
    before, rest = spelled(tokenizer, head[same:]), unquoted(text[at:]).encode()
    cut = bytearray()
    for end in range(same, len(whole)):
        cut += tokenizer.piece(whole[end], special=True)
        behind = len(cut) - len(before)
        inside = behind < len(rest) and rest[behind] & 0xC0 == 0x80  # of a character
        if behind > 0 and not inside:
            if cut != before + rest[:behind]:
                break  # this tokenizer does not give its text back, so that nobody knows where a token ends
            return alone(tokenizer, rest[:behind].decode()) + whole[end + 1 :]
    first, *others = text[at:].split(QUOTE)
    return alone(tokenizer, first) + _parts(tokenizer, others)


def _parts(tokenizer: Tokenizer, parts: Sequence[str]) -> list[int]:
    """Tokens of what is behind each QUOTE. A part of one character may be the text of a control token; it is none."""
    if not parts:
        return []
    spaced = spelled(tokenizer, tokenizer.encode("a")) != b"a"  # each part would begin as a text does
    tokens_of = _behind if spaced else _begun
    return [token for part in parts for token in tokens_of(tokenizer, part, len(part) > 1)]


def alone(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """Tokens of a text that is no beginning, whatever stands before it. special: parse control tokens written in it."""
    tokens = _begun(tokenizer, text, special)
    return tokens if spelled(tokenizer, tokens) == text.encode() else _behind(tokenizer, text, special)


def _begun(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    return tokenizer.encode(text, special=special)


def _behind(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    """Tokens of a text behind another one, where there is one that lets go of it."""
    for anchor in ANCHORS:
        head, both = (tokenizer.encode(each, special=special) for each in (anchor, anchor + text))
        if both[: len(head)] == head:
            return both[len(head) :]
    return tokenizer.encode(text, special=special)


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    """What the tokens stand for, control tokens included."""
    return b"".join(tokenizer.piece(token, special=True) for token in tokens)
