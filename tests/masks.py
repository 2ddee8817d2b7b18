"""Walks through llguidance's masks over a vocabulary of single bytes, and whether a text passes them."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import llguidance

from edgellm.constrain.schema import OPTIONS

END = 256  # the token after those of the bytes
LONGEST = 3_000  # bytes of a walk
_CLOSING = [ord(letter) for letter in '"]}']


class _Bytes:
    eos_token_id = END
    bos_token_id = None
    special_token_ids = (END,)
    tokens = (*(bytes([code]) for code in range(256)), b"<|end|>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@lru_cache(1)
def _tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def matcher(prepared: Any) -> llguidance.LLMatcher:
    """A matcher of a schema that was prepared; whether it is in error is for the caller to ask."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(prepared), overrides=OPTIONS)
    return llguidance.LLMatcher(_tokenizer(), grammar, log_level=0)


def accepts(start: llguidance.LLMatcher, text: str) -> bool:
    """Whether the text is a whole answer."""
    copy, tokens = start.deep_copy(), list(text.encode())
    return copy.try_consume_tokens(tokens) == len(tokens) and copy.is_accepting()


def walk(start: llguidance.LLMatcher, chance: random.Random) -> str | None:
    """A text that the masks let through; None where it does not end in time. Raises RuntimeError at a dead end."""
    at, text = start.deep_copy(), bytearray()
    while len(text) < LONGEST:
        mask = int.from_bytes(at.compute_bitmask(), "little")
        allowed = [code for code in range(END) if mask >> code & 1]
        end = bool(mask >> END & 1)
        if at.is_error() or not (allowed or end):
            raise RuntimeError(f"{bytes(text)[-200:]!r}: {at.get_error()[:200] or 'nothing may follow'}")
        if end and (not allowed or chance.random() < 0.5):
            return text.decode()
        # Closing what is open grows likelier with the length.
        closing = [code for code in _CLOSING if code in allowed]
        code = chance.choice(closing if closing and chance.random() < 0.3 + len(text) / 600 else allowed)
        if not at.consume_token(code):
            raise RuntimeError(f"{bytes(text)[-200:]!r}: a token of the mask was refused")
        text.append(code)
    return None
