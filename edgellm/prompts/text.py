"""String operations for templates: the methods of str that they may call, each with a bound on its result.

`METHODS` is a list of what is allowed; anything else of str, and every method of other types but a few, is refused.
A bound is computed before the operation runs, from the lengths of what goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.environment import Environment
from jinja2.sandbox import SandboxedFormatter

from edgellm.prompts.meter import MAX_VALUE, SLOT, Meter, size_of

MAX_FORMAT = 65536  # characters of a format string
MAX_PRODUCT = 2**28  # steps of a search whose worst case is quadratic
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # what str.splitlines splits at

Bound = Callable[..., None]  # (meter, text, *arguments of the method)

LINEAR = frozenset(
    {
        *("capitalize", "casefold", "lower", "swapcase", "title", "upper"),
        *("count", "endswith", "find", "index", "startswith"),
        *("partition", "removeprefix", "removesuffix"),
        *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric"),
        *("isprintable", "isspace", "istitle", "isupper"),
    }
)
"""Methods whose time and result are a small multiple of what goes in."""


def _pad(meter: Meter, text: str, width: int, fill: str = " ") -> None:
    meter.fits(size_of(max(len(text), width), text, fill))


def _expandtabs(meter: Meter, text: str, tabsize: int = 8) -> None:
    meter.fits(size_of(len(text) + text.count("\t") * max(tabsize, 0), text))


def _replace(meter: Meter, text: str, old: str, new: str, count: int = -1) -> None:
    found = text.count(old)
    if 0 <= count < found:
        found = count
    meter.fits(size_of(len(text) + found * len(new), text, new))


def _product(meter: Meter, text: str, sub: str | None = None, *_: object) -> None:
    """CPython strips and searches backwards in len(text) * len(sub) steps in the worst case."""
    if len(text) * len(sub or "") > MAX_PRODUCT:
        meter.stop("searches a long text for a long text")


def _split(meter: Meter, text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    if sep is None:
        pieces = len(text) // 2 if len(text) * SLOT <= MAX_VALUE else sum(map(str.isspace, text))
    else:
        _product(meter, text, sep if len(sep) > 1 else "")
        pieces = text.count(sep) if sep else 0
    if maxsplit >= 0:
        pieces = min(pieces, maxsplit)
    meter.fits(size_of(len(text), text) + 2 * SLOT * (pieces + 1))


def _splitlines(meter: Meter, text: str, keepends: bool = False) -> None:
    meter.fits(size_of(len(text), text) + 2 * SLOT * lines_of(text))


BOUNDED: Mapping[str, Bound] = {
    "center": _pad,
    "ljust": _pad,
    "rjust": _pad,
    "zfill": _pad,
    "expandtabs": _expandtabs,
    "replace": _replace,
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"), _product),
    "split": _split,
    "rsplit": _split,
    "splitlines": _splitlines,
}

OTHERS: Mapping[type, frozenset[str]] = {
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    float: frozenset({"is_integer"}),
}
"""Methods of other types, all linear in what goes in."""


def lines_of(text: str) -> int:
    """At most so many lines does str.splitlines make."""
    return 1 + sum(text.count(mark) for mark in _BREAKS)


def call(meter: Meter, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """owner.name(*args, **kwargs), for methods of builtin values. Raises LookupError for one that is not allowed."""
    if isinstance(owner, str):
        if name == "join":
            return join(meter, owner, *args)
        if name in BOUNDED:
            BOUNDED[name](meter, owner, *args, **kwargs)
        elif name not in LINEAR:
            raise LookupError(name)
        return meter.made(getattr(owner, name)(*args, **kwargs))
    if name not in OTHERS.get(type(owner), ()):
        raise LookupError(name)
    result = getattr(owner, name)(*args, **kwargs)
    return result if name == "get" else meter.made(result)


def join(meter: Meter, separator: str, items: Iterable[Any]) -> str:
    """separator.join(items)."""
    parts = meter.listed(items)
    for index, part in enumerate(parts):
        if not isinstance(part, str):
            raise TypeError(f"sequence item {index}: expected str instance, {type(part).__name__} found")
    return meter.joined(parts, separator)


def repeat(meter: Meter, value: str | list[Any] | tuple[Any, ...], times: int) -> Any:
    """value * times."""
    times = max(times, 0)
    meter.fits(size_of(len(value) * times, value) if isinstance(value, str) else meter.weigh(value)[0] * times)
    return meter.made(value * times)


def percent(meter: Meter, template: str, values: Any) -> str:
    """template % values, printf-style."""
    _check_format(meter, template)
    fields = template.count("%")
    size = len(template) + _widths(template) + 400 * fields  # 400: the longest float
    size += meter.weigh(values)[0] * (fields if isinstance(values, dict) else 1)  # a key may be named many times
    if "*" in template and isinstance(values, tuple):
        size += sum(min(abs(value), MAX_VALUE) for value in values if isinstance(value, int))
    meter.fits(size)
    return str(meter.made(template % values))


def _check_format(meter: Meter, template: str) -> None:
    if len(template) > MAX_FORMAT:
        meter.stop("formats with a very long format string")


def _widths(template: str) -> int:
    """The sum of all numbers in a format string, in the digits of any script, as Python reads them."""
    digits = "".join(char if char.isdecimal() else " " for char in template)
    return sum(MAX_VALUE if len(number) > 9 else int(number) for number in digits.split())


class Format(SandboxedFormatter):
    """The bound method str.format (or format_map) of one string, safe to call from a template.

    Fields reach attributes and items through the sandbox, as the template itself does.
    """

    def __init__(self, environment: Environment, meter: Meter, template: str, mapping: bool) -> None:
        super().__init__(environment)
        self.meter = meter
        self.template = template
        self.mapping = mapping

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        _check_format(self.meter, self.template)
        if self.mapping:
            (kwargs,) = args
            args = ()
        return str(self.meter.made(self.vformat(self.template, args, kwargs)))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self.meter.fits(self.meter.weigh(value)[0])
        return self.meter.made(super().convert_field(value, conversion))

    def format_field(self, value: Any, format_spec: str) -> str:
        _check_format(self.meter, format_spec)
        self.meter.fits(400 + _widths(format_spec) + self.meter.weigh(value)[0])
        return str(self.meter.made(super().format_field(value, format_spec)))
