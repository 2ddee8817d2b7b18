"""What callers hand in, checked: each function gives the plain value it stands for, or raises InvalidParameter."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec

from edgellm.errors import InvalidParameter
from edgellm.files import read_file

LARGEST_TEXT = 1 << 30  # bytes
LARGEST_ID = 2**31  # above every token id: engines take 32 bits

P = ParamSpec("P")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: object) -> str:
    """`repr` for a message: short, and never an error (that of a number of 5,000 digits is one)."""
    try:
        return _short.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def refuse(name: str, value: object, rule: str) -> InvalidParameter:
    """The error to raise: `name` must be `rule`, and is `value`."""
    return InvalidParameter(f"{name}={shown(value)}: must be {rule}")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether it is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def one_of(name: str, value: object, choices: Iterable[object]) -> None:
    """`value` is one of `choices`, in its type as well."""
    choices = tuple(choices)
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise refuse(name, value, f"one of {', '.join(map(str, choices))}")


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False")
    return value


def whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise refuse(name, value, f"a whole number, at least {least}")
    return value


def text(name: str, value: object) -> str:
    """A string of valid Unicode: half a surrogate pair has no bytes in UTF-8."""
    if not isinstance(value, str):
        raise refuse(name, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(f"{name}: not valid Unicode: {error.reason} at position {error.start}") from None
    return value


def path(name: str, value: object) -> Path:
    """A path that the system can be asked for; whether anything is there is not looked at."""
    try:
        plain = os.fspath(value)  # type: ignore[call-overload]
        if isinstance(plain, str) and b"\0" not in os.fsencode(plain):
            return Path(plain)
    except (TypeError, ValueError):
        pass
    raise refuse(name, value, "a path: a string without NUL, or a pathlib.Path")


def utf8_file(name: str, path: Path) -> bytes:
    """The bytes of a UTF-8 text of at most LARGEST_TEXT bytes, read once: it may come through a pipe."""
    try:
        raw = read_file(path, LARGEST_TEXT, pipe=True)
        raw.decode("utf-8")
    except OSError as error:
        raise InvalidParameter(f"{name} {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{name} {path}: not UTF-8: {error}") from None
    return raw


def function(name: str, value: object) -> None:
    """Something that can be called."""
    if not callable(value):
        raise refuse(name, value, "a function")


def callback(name: str, value: Callable[P, object]) -> Callable[P, None]:
    """A function that is called with news. Its StopIteration is an InvalidParameter: Python ends loops by it."""
    function(name, value)

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            value(*args, **kwargs)
        except (StopIteration, StopAsyncIteration) as error:
            kind = type(error).__name__
            raise InvalidParameter(
                f"{name} raised {kind}, by which Python ends loops; raise another exception"
            ) from error

    return call


def instance(name: str, value: object, kind: type, hint: str = "") -> None:
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise refuse(name, value, f"{article} {kind.__name__}{hint}")


def token_ids(name: str, value: Any, rule: str = "a list of token ids") -> list[int]:
    """Token ids as plain numbers, from any sequence or array of them; how many a vocabulary has is not known here.

    Bytes are neither text nor ids, though Python iterates them as numbers; a set has no order, a mapping no ids.
    """
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set)):
        raise refuse(name, value, rule)
    try:
        items = list(value.tolist() if hasattr(value, "tolist") else value)
    except TypeError:  # no sequence, or an array without a dimension
        raise refuse(name, value, rule) from None
    tokens = items if set(map(type, items)) <= {int} else [token_id(name, item) for item in items]
    bad = next((token for token in (min(tokens), max(tokens)) if not 0 <= token < LARGEST_ID), None) if tokens else None
    if bad is not None:
        raise InvalidParameter(f"{name}: token {shown(bad)} is outside of every vocabulary")
    return tokens


def token_id(name: str, value: object) -> int:
    """A token id as a plain number, from one of Python's or numpy's."""
    if not isinstance(value, (int, Integral)) or isinstance(value, bool):
        raise InvalidParameter(f"{name}: {shown(value)} is no token id; those are whole numbers")
    return int(value)
