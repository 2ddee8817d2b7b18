"""llama.cpp's own words for a failure, picked from what it logged."""

from __future__ import annotations

from collections.abc import Iterable

EMPTY_PHRASES = ("failed to load model", "exiting", "loading model from")


def reason(lines: Iterable[str]) -> str:
    """The log lines that explain a failure, in order, without the names of C++ functions in front; "" if none does."""
    told = [line.strip() for line in lines]
    told = [line for line in told if not any(line.endswith(phrase) for phrase in EMPTY_PHRASES)]
    telling = [
        line for line in told if any(word in line.lower() for word in ("error", "fail", "unknown", "invalid", "not "))
    ]
    kept = dict.fromkeys(_without_function(line) for line in (telling or told[-1:])[-3:])
    return "; ".join(kept)


def _without_function(line: str) -> str:
    head, colon, rest = line.partition(": ")
    return rest if colon and head.replace("_", "").isalnum() else line
