"""The words that say why a prefix broke."""

from __future__ import annotations

import pytest

from edgellm.events import CacheReport
from edgellm.kv.explain import explain


def break_of(known: str, prompt: str) -> CacheReport:
    """Tokens are characters here."""
    matched = next(
        (i for i, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), min(len(known), len(prompt))
    )
    return explain([ord(c) for c in prompt], matched, [ord(c) for c in known[matched:]], lambda t: "".join(map(chr, t)))


@pytest.mark.parametrize(
    ("known", "prompt", "reason"),
    [
        ("Today is 2026-11-21. Hi", "Today is 2026-11-22. Hi", "another date or time at token 18"),
        ("Today is 21 November.\n", "Today is 22 November.\n", "another date or time at token 10"),
        (
            "<|s|>system\nA helpful assistant, kind",
            "<|s|>system\nA helpful assistant, bold",
            "the system prompt differs at token 33",
        ),
        ("<system>Be brief.", "<system>Be long.", "the system prompt differs at token 11"),
        ("<user>What is red?", "<user>What is blue?", "the user's message differs at token 14"),
        ("<assistant>yes", "<assistant>no", "the assistant's answer differs at token 11"),
        ("abc", "abd", "the text differs at token 2"),
        ("abc", "abcdef", "the prompt goes on where the known text ends"),
        ("abcdef", "abc", "the whole prompt is known"),
        ("", "abc", "nothing that begins like this prompt is known"),
    ],
)
def test_reasons(known: str, prompt: str, reason: str) -> None:
    assert break_of(known, prompt).reason.endswith(reason)


def test_both_sides_are_shown() -> None:
    found = break_of("You are a pirate. Speak.", "You are a priest. Speak.")
    assert found.broke_at == 11
    assert found.expected.startswith("irate")
    assert found.found.startswith("riest")
