"""Shape: what one conjunction of schemas leaves of JSON, type by type; `meet` is the conjunction of two.

What hangs below (properties, items) is kept as a State, the schemas that must hold there, and looked at later: so that
recursive schemas end, and those that only overlap in their depth are never multiplied out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd, lcm
from typing import Any

from edgellm.constrain import library
from edgellm.constrain.instances import State, matches
from edgellm.constrain.values import key


@dataclass(frozen=True)
class Number:
    low: Fraction | None = None
    above: bool = False  # low itself is out
    high: Fraction | None = None
    below: bool = False
    integer: bool = False
    fractional: bool = False  # no integer
    step: Fraction | None = None
    steps_not: frozenset[Fraction] = frozenset()

    def holds(self, value: Fraction) -> bool:
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return False
        if self.high is not None and (value > self.high or (self.below and value == self.high)):
            return False
        whole = value.denominator == 1
        if (self.integer and not whole) or (self.fractional and whole):
            return False
        return (self.step is None or (value / self.step).denominator == 1) and not any(
            (value / step).denominator == 1 for step in self.steps_not
        )


@dataclass(frozen=True)
class String:
    least: int = 0
    most: int | None = None
    patterns: tuple[str, ...] = ()  # for the whole string, in the common form
    patterns_not: tuple[str, ...] = ()

    def holds(self, value: str) -> bool:
        return (
            self.least <= len(value) <= (len(value) if self.most is None else self.most)
            and all(library.fits(each, value) for each in self.patterns)
            and not any(library.fits(each, value) for each in self.patterns_not)
        )


@dataclass(frozen=True)
class Contained:
    """How many items must satisfy `state`."""

    state: State
    least: int
    most: int | None


@dataclass(frozen=True)
class Array:
    prefix: tuple[State, ...] = ()
    rest: State = ()
    least: int = 0
    most: int | None = None
    unique: bool = False
    repeated: bool = False  # not unique
    contained: tuple[Contained, ...] = ()

    def at(self, index: int) -> State:
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True)
class Layer:
    """What one schema says of the values of an object: by name, by pattern, and of all others."""

    names: dict[str, State] = field(default_factory=dict)
    patterns: dict[str, State] = field(default_factory=dict)
    rest: State = ()

    def of(self, name: str) -> State:
        found = [self.names[name]] if name in self.names else []
        found += [state for pattern, state in self.patterns.items() if matches(pattern, name)]
        return together(*found) if found else self.rest

    def declares(self, name: str) -> bool:
        return name in self.names or any(matches(pattern, name) for pattern in self.patterns)


@dataclass(frozen=True)
class Object:
    layers: tuple[Layer, ...] = ()
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    keys: State = ()  # what every name satisfies
    some: tuple[tuple[Layer, State], ...] = ()  # a name that the layer does not declare has such a value
    key_not: tuple[State, ...] = ()  # some name breaks these

    def of(self, name: str) -> State:
        return together(*(layer.of(name) for layer in self.layers))


@dataclass(frozen=True)
class Shape:
    """What is left of each type, None where nothing is. With `values` it is these alone, whatever else stands here."""

    null: bool = True
    booleans: frozenset[bool] = frozenset((False, True))
    number: Number | None = Number()
    string: String | None = String()
    array: Array | None = Array()
    object: Object | None = Object()
    excluded: tuple[Any, ...] = ()
    values: tuple[Any, ...] | None = None
    marks: tuple[tuple[str, str], ...] = ()  # keyword, place: for messages

    def alive(self) -> bool:
        if self.values is not None:
            return bool(self.values)
        return bool(self.null or self.booleans or self.number or self.string or self.array or self.object)


ANY = Shape()
NOTHING = Shape(False, frozenset(), None, None, None, None)


def together(*states: State) -> State:
    """The state in which all of these hold."""
    return tuple(dict.fromkeys(literal for state in states for literal in state))


def meet(one: Shape, other: Shape) -> Shape:
    """What both leave; neither has values."""
    if one is ANY or other is ANY:
        return other if one is ANY else one
    return Shape(
        one.null and other.null,
        one.booleans & other.booleans,
        one.number and other.number and numbers(one.number, other.number),
        one.string and other.string and strings(one.string, other.string),
        one.array and other.array and arrays(one.array, other.array),
        one.object and other.object and objects(one.object, other.object),
        tuple({key(value): value for value in (*one.excluded, *other.excluded)}.values()),
        None,
        tuple(dict.fromkeys((*one.marks, *other.marks))),
    )


def numbers(one: Number, other: Number) -> Number | None:
    low, above = _tighter((one.low, one.above), (other.low, other.above), 1)
    high, below = _tighter((one.high, one.below), (other.high, other.below), -1)
    steps = [step for step in (one.step, other.step) if step is not None]
    step = steps[0] if len(steps) == 1 else _multiple(*steps) if steps else None
    found = Number(
        low,
        above,
        high,
        below,
        one.integer or other.integer,
        one.fractional or other.fractional,
        step,
        one.steps_not | other.steps_not,
    )
    return settled(found)


def _tighter(
    one: tuple[Fraction | None, bool], other: tuple[Fraction | None, bool], sign: int
) -> tuple[Fraction | None, bool]:
    if one[0] is None or other[0] is None:
        return other if one[0] is None else one
    return max(one, other, key=lambda bound: (sign * bound[0], bound[1]))  # type: ignore[operator]


def _multiple(one: Fraction, other: Fraction) -> Fraction:
    """The least number that both divide."""
    return Fraction(lcm(one.numerator, other.numerator), gcd(one.denominator, other.denominator))


def settled(number: Number) -> Number | None:
    """The same numbers with whole steps and bounds that are among them where steps are known; None for no number."""
    step = number.step
    if number.integer:
        step = _multiple(step or Fraction(1), Fraction(1))
    whole = step is not None and step.denominator == 1
    if (whole and number.fractional) or any(step and (step / each).denominator == 1 for each in number.steps_not):
        return None
    low, above, high, below = number.low, number.above, number.high, number.below
    if step is not None:
        if low is not None:
            at = -(-low // step)
            low, above = (at + (1 if above and at * step == low else 0)) * step, False
        if high is not None:
            at = high // step
            high, below = (at - (1 if below and at * step == high else 0)) * step, False
    if low is not None and high is not None and (low > high or (low == high and (above or below))):
        return None
    return replace(number, low=low, above=above, high=high, below=below, integer=whole, step=step)


def strings(one: String, other: String) -> String | None:
    most = least_of(one.most, other.most)
    found = String(
        max(one.least, other.least),
        most,
        tuple(dict.fromkeys((*one.patterns, *other.patterns))),
        tuple(dict.fromkeys((*one.patterns_not, *other.patterns_not))),
    )
    if (most is not None and found.least > most) or set(found.patterns) & set(found.patterns_not):
        return None
    return found


def arrays(one: Array, other: Array) -> Array | None:
    most = least_of(one.most, other.most)
    least = max(one.least, other.least)
    unique, repeated = one.unique or other.unique, one.repeated or other.repeated
    if (most is not None and least > most) or (unique and repeated):
        return None
    length = max(len(one.prefix), len(other.prefix))
    return Array(
        tuple(together(one.at(index), other.at(index)) for index in range(length)),
        together(one.rest, other.rest),
        least,
        most,
        unique,
        repeated,
        tuple(dict.fromkeys((*one.contained, *other.contained))),
    )


def objects(one: Object, other: Object) -> Object | None:
    most = least_of(one.most, other.most)
    required = tuple(dict.fromkeys((*one.required, *other.required)))
    least = max(one.least, other.least)
    if most is not None and max(least, len(required)) > most:
        return None
    return Object(
        (*one.layers, *(layer for layer in other.layers if layer not in one.layers)),
        required,
        least,
        most,
        together(one.keys, other.keys),
        (*one.some, *other.some),
        (*one.key_not, *other.key_not),
    )


def least_of(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)
