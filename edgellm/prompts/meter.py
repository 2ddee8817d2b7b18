"""The Meter: what one rendering of a template may use of this machine.

Every operation of a template that can grow something asks the meter first, and every step (a turn of a loop, a call, a
filter, a comparison) pays. Three limits hold at any time:

- a single value, counted as a tree (a list held twice counts twice), is at most MAX_VALUE bytes;
- all values ever made, plus STEP bytes for every step, are at most BUDGET bytes, so memory and steps are bounded;
- the clock: SECONDS from the start.

Because values are bounded as trees, anything Python does with one in C (print, compare, hash, copy, sort) is bounded
too, and no single operation can run for long between two looks at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import GeneratorType
from typing import Any, NoReturn, Protocol

STEP = 64  # bytes charged for one step
RECORD = 256  # bytes charged for remembering the size of a container
SLOT = 64  # bytes charged for one place in a list, tuple or dict
MAX_VALUE = 8 * 2**20
MAX_DEPTH = 100  # lists in lists
MAX_INT_BITS = 64  # no arithmetic beyond; also keeps a template from making many integers of one hash
BUDGET = 256 * 2**20
SECONDS = 2.0

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS = (list, tuple, dict, *_VIEWS)


class Stopped(Exception):
    """A limit was reached. The text completes the sentence "it ..."."""


def size_of(chars: int, *strings: str) -> int:
    """Bytes that `chars` characters taken from these strings may need."""
    return STEP + chars * (1 if all(string.isascii() for string in strings) else 4)


class Meter:
    """The account of one rendering. Raises Stopped when a limit is reached, and again at every later step."""

    def __init__(self) -> None:
        self.used = 0
        self.deadline = time.monotonic() + SECONDS
        # id -> (the container, kept alive so that the id stays its own; bytes as a tree; depth)
        self._known: dict[int, tuple[object, int, int]] = {}

    def stop(self, reason: str) -> NoReturn:
        raise Stopped(reason)

    def tick(self, cost: int = STEP) -> None:
        """Pay for a step, or for `cost` bytes."""
        self.used += cost
        if self.used > BUDGET:
            self.stop(f"needs more than {BUDGET >> 20} MiB of work")
        if time.monotonic() > self.deadline:
            self.stop(f"runs longer than {SECONDS:g} s")

    def fits(self, size: int) -> None:
        """Pay for a value of `size` bytes that is about to be made."""
        if size > MAX_VALUE:
            self.stop(f"makes a value larger than {MAX_VALUE >> 20} MiB")
        self.tick(size)

    def steps(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each paid for as it is taken."""
        for item in items:
            self.tick()
            yield item

    def weigh(self, value: object) -> tuple[int, int]:
        """(bytes as a tree, depth of nesting) of a value; containers are looked into once."""
        if isinstance(value, str):
            return size_of(len(value), value), 0
        if not isinstance(value, _CONTAINERS):
            return STEP, 0
        known = self._known.get(id(value))
        if known is not None:
            return known[1], known[2]
        size, depth = STEP, 0
        for child in _children(value):
            child_size, child_depth = self.weigh(child)
            size += SLOT + child_size
            depth = max(depth, child_depth)
            if size > MAX_VALUE:
                self.fits(size)
        return self._know(value, size, depth + 1)

    def weigh_arguments(self, args: Iterable[object], kwargs: Mapping[str, object]) -> None:
        """Weigh what a call was given; macros and filters may keep it in lists of their own."""
        for value in (*args, *kwargs.values()):
            self.weigh(value)

    def _know(self, value: object, size: int, depth: int) -> tuple[int, int]:
        if depth > MAX_DEPTH:
            self.stop(f"nests lists more than {MAX_DEPTH} deep")
        self.tick(RECORD)
        self._known[id(value)] = (value, size, depth)
        return size, depth

    def made(self, value: Any) -> Any:
        """Pay for a value that an operation with a bounded result just made, and hand it on."""
        if isinstance(value, str):
            self.fits(size_of(len(value), value))
        elif isinstance(value, _CONTAINERS):
            self.weigh(value)
            places: int = len(value)  # type: ignore[arg-type]
            self.tick(STEP + SLOT * places)
        elif isinstance(value, GeneratorType):
            return self.steps(value)
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            self.stop(f"computes an integer of more than {MAX_INT_BITS} bits")
        else:
            self.tick()
        return value

    def chained(self, left: Sequence[Any], right: Sequence[Any]) -> Any:
        """left + right for two lists or two tuples, without looking into every item again."""
        (left_size, left_depth), (right_size, right_depth) = self.weigh(left), self.weigh(right)
        size = left_size + right_size
        if size > MAX_VALUE:
            self.fits(size)
        self.tick(STEP + SLOT * (len(left) + len(right)))
        result = left + right  # type: ignore[operator]
        self._know(result, size, max(left_depth, right_depth))
        return result

    def listed(self, items: Iterable[Any]) -> list[Any]:
        """list(items), stopping as soon as it grows too large."""
        result = []
        size = STEP
        for item in items:
            result.append(item)
            size += SLOT + self.weigh(item)[0]
            self.tick()
            if size > MAX_VALUE:
                self.fits(size)
        return result

    def text(self, value: Any) -> str:
        """str(value)."""
        if isinstance(value, str):
            return value
        size, _ = self.weigh(value)
        self.fits(size)
        result = str(value)
        self.fits(size_of(len(result), result))
        return result

    def joined(self, parts: Sequence[Any], separator: str = "") -> str:
        """separator.join(str(part) for part in parts)."""
        strings = [self.text(part) for part in parts]
        chars = sum(map(len, strings)) + len(separator) * max(len(strings) - 1, 0)
        self.fits(size_of(chars, separator, *strings))
        return separator.join(strings)


def _children(value: Any) -> Iterable[object]:
    if isinstance(value, dict):
        for pair in value.items():
            yield from pair
    else:
        yield from value


class Metered(Protocol):
    """What the functions that a template calls see of its environment: the meter of the rendering, the clock, and
    `operate`, which computes `left op right`."""

    meter: Meter
    now: Callable[[], datetime]

    def operate(self, op: str, left: Any, right: Any) -> Any: ...
