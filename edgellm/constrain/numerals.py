"""Numbers as llguidance is to be given them: ranges, and steps that it takes exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from edgellm.constrain.instances import exact
from edgellm.constrain.shapes import Number, Shape, numbers
from edgellm.errors import Unsupported

LARGEST = 2**53  # bounds beyond it do not pass a double unharmed
DIGITS = 15  # behind the point, likewise
LARGEST_STEP = 5_000  # digits of a step: the lexer has a state for every remainder (30,000 take 0.4 s)
MOST_LISTED = 64  # whole numbers of a range that are looked at one by one

Json = dict[str, Any]


def number_schemas(number: Number, excluded: list[Any], where: str) -> list[Json]:
    """The ranges of a number between the values that are excluded. Raises Unsupported."""
    if number.fractional or number.steps_not:
        raise Unsupported(f'{where}: numbers that must not be whole, or no multiple of another ("not"); use ranges')
    cuts = sorted({exact(value) for value in excluded if number.holds(exact(value))})
    found, low = [], Number()
    for cut in cuts:
        found.append(numbers(number, Number(low.low, low.above, cut, True)))
        low = Number(low=cut, above=True)
    found.append(numbers(number, low))
    ranges = [each for each in found if each is not None]
    return [_range(each, where) for each in ranges] + [{"enum": [bound]} for each in ranges for bound in _missed(each)]


def _missed(number: Number) -> list[int | float]:
    """Bounds that llguidance leaves out: 0.5 is spelt without zeros behind it, a multiple of 0.25 with two digits."""
    step = number.step
    if step is None or step.denominator == 1:
        return []
    bounds = [bound for bound in (number.low, number.high) if bound is not None and bound.denominator != 1]
    return [float(bound) for bound in bounds if _digits(bound) < _digits(step)]


def _digits(value: Fraction) -> int:
    return next((digits for digits in range(DIGITS) if (value * 10**digits).denominator == 1), DIGITS)


def _range(number: Number, where: str) -> Json:
    found: Json = {"type": "integer" if number.integer else "number"}
    for bound in (number.low, number.high):
        if bound is not None and (abs(bound) > LARGEST or (bound * 10**DIGITS).denominator != 1):
            raise Unsupported(
                f"{where}: a bound beyond 2**53, or of more than {DIGITS} digits behind the point; round it"
            )
    low, high = number.low, number.high
    if low is not None and low == high:
        return {"enum": [_plain(low)]}
    if low is not None:
        found["exclusiveMinimum" if number.above else "minimum"] = _plain(low)
    if high is not None:
        found["exclusiveMaximum" if number.below else "maximum"] = _plain(high)
    if number.step is not None and number.step != 1:
        found["multipleOf"] = _step(number.step, where)
    elif number.step == 1:
        found["type"] = "integer"
    if not number.integer:
        _refuse_narrow(number, where)
    elif number.step in (None, 1):  # small models find no end of their digits
        found |= {} if low is not None else {"minimum": -LARGEST}
        found |= {} if high is not None else {"maximum": LARGEST}
    return found


def _refuse_narrow(number: Number, where: str) -> None:
    """llguidance lets a whole bound through that is excluded where the other one has the same whole part."""
    low, high = number.low, number.high
    if low is None or high is None or low < 0 < high:
        return
    near, far, open_ = (low, high, number.above) if low >= 0 else (-high, -low, number.below)
    if open_ and near.denominator == 1 and int(near) == int(far):
        raise Unsupported(
            f"{where}: an excluded bound of {_plain(low if low >= 0 else high)} so near to the other one; "
            f"include it, or use multipleOf and whole steps"
        )


def _step(step: Fraction, where: str) -> Any:
    """The step, where a double that is multiplied by ten until it is whole says the same."""
    value, power = float(step), 0
    while not value.is_integer() and power < 20:
        value, power = value * 10, power + 1
    if value > LARGEST_STEP or Fraction(int(value), 10**power) != step:
        raise Unsupported(
            f'{where}: "multipleOf" {_plain(step)} is no number that it can be counted by; use a rounder one'
        )
    return _plain(step)


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def values_of(shape: Shape) -> list[Any] | None:
    """The values of a shape of few, None for others."""
    if shape.values is not None:
        return list(shape.values)
    if shape.string or shape.array or shape.object:
        return None
    found: list[Any] = [None] * shape.null + sorted(shape.booleans)
    number = shape.number
    if number:
        if not number.integer or number.low is None or number.high is None or not number.step:
            return None
        count = (number.high - number.low) / number.step
        if count > MOST_LISTED:
            return None
        found += [int(number.low + at * number.step) for at in range(int(count) + 1)]
        found = [each for each in found if isinstance(each, bool) or each is None or number.holds(Fraction(each))]
    out = [str(each) for each in shape.excluded]
    return [each for each in found if str(each) not in out]
