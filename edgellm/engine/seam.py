"""The tokens of a text that goes on where another one ends.

A tokenizer takes every text for one that begins: some put a space in front (SentencePiece), all merge what they are
given and nothing more. So what follows is never tokenized alone, but in its place:

    text      A S S I S T A N T : ▁ h e l│l o \\n U S E R : ...     │ the seam
    whole     [ASSISTANT][:][▁hello         ][\\n][USER][:] ...     tokens of the whole text
    continued                            [lo][\\n][USER][:] ...     what is taken: the token over the seam is cut
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.backends.base import Tokenizer
from edgellm.kv.prefixes import common_prefix

ANCHORS = ("\n", "a", ".")  # texts to put before another one, so that it does not begin


def continued(tokenizer: Tokenizer, text: str, at: int) -> list[int]:
    """Tokens of text[at:] as the whole text has them; control tokens written in it count as such.

    Where a token of the whole text reaches over the seam, the part of it behind the seam gets tokens of its own.
    """
    whole = tokenizer.encode(text, special=True)
    head = tokenizer.encode(text[:at], special=True)
    same = common_prefix(head, whole)
    if same == len(head):
        return whole[same:]
    before, rest = spelled(tokenizer, head[same:]), text[at:].encode()
    cut = bytearray()
    for end in range(same, len(whole)):
        cut += tokenizer.piece(whole[end], special=True)
        behind = len(cut) - len(before)
        inside = behind < len(rest) and rest[behind] & 0xC0 == 0x80  # of a character
        if behind > 0 and not inside:
            if cut != before + rest[:behind]:
                break  # this tokenizer does not give its text back, so that nobody knows where a token ends
            return alone(tokenizer, rest[:behind].decode()) + whole[end + 1 :]
    return alone(tokenizer, text[at:])


def alone(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """Tokens of a text that is no beginning, whatever stands before it. special: parse control tokens written in it."""
    tokens = tokenizer.encode(text, special=special)
    if spelled(tokenizer, tokens) == text.encode():
        return tokens
    for anchor in ANCHORS:
        head, both = (tokenizer.encode(each, special=special) for each in (anchor, anchor + text))
        if both[: len(head)] == head:
            return both[len(head) :]
    return tokens


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    """What the tokens stand for, control tokens included."""
    return b"".join(tokenizer.piece(token, special=True) for token in tokens)
