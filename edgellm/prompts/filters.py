"""The filters and tests that chat templates may use.

They are Jinja's own, metered, except: `tojson` is the one of Hugging Face (no HTML escapes, not ASCII); `safe` and
`escape` give plain strings (autoescape is off); and filters for web pages, which no chat template needs and whose cost
has no simple bound, do not exist (urlize, wordwrap, wordcount, striptags, xmlattr, urlencode, filesizeformat, pprint,
random).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import markupsafe
from jinja2 import Environment
from jinja2 import filters as jinja
from jinja2.runtime import Context, Undefined
from jinja2.tests import TESTS
from jinja2.utils import pass_context, pass_environment

from edgellm.prompts import text
from edgellm.prompts.meter import SLOT, Meter, Metered, size_of

MAX_NUMBER = 1000  # characters of a text that is read as a number
MAX_NAME = 65536  # characters of an argument that may name an attribute
MAX_TITLE = 65536  # characters of a text that `title` cuts into words

Function = Callable[..., Any]


def _metered(function: Function, *, takes: str = "", items: str = "", keeps: bool = False) -> Function:
    """Jinja's filter, paying for the step and for what it makes.

    takes: what it wants before the value, "environment" or "context". items: how it goes through the value, "steps"
    (one after the other) or "list" (all of them at once). keeps: its result is a value that was there.
    """

    @pass_context
    def filter_(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.environment.meter  # type: ignore[attr-defined]
        meter.tick()
        meter.weigh_arguments(args, kwargs)
        if items:
            if any(isinstance(arg, str) and len(arg) > MAX_NAME for arg in (*args, *kwargs.values())):
                meter.stop("names an attribute with a very long name")
            if items == "list":
                value = meter.listed(value)
            elif value:
                value = meter.steps(value)
        first = {"environment": (context.environment,), "context": (context,)}.get(takes, ())
        result = function(*first, value, *args, **kwargs)
        return result if keeps else meter.made(result)

    return filter_


def _method(name: str) -> Function:
    """The filter that is a method of str, called on the text of any value."""

    @pass_environment
    def filter_(env: Metered, value: Any, *args: Any, **kwargs: Any) -> Any:
        env.meter.tick()
        return text.call(env.meter, env.meter.text(value), name, args, kwargs)

    return filter_


@pass_environment
def _steps(env: Metered, items: Iterable[Any]) -> Iterator[Any]:
    return env.meter.steps(items)


@pass_environment
def _text(env: Metered, value: Any) -> str:
    env.meter.tick()
    return env.meter.text(value)


@pass_environment
def _escape(env: Metered, value: Any) -> str:
    plain = env.meter.text(value)
    env.meter.fits(size_of(5 * len(plain), plain))
    return str(markupsafe.escape(plain))


@pass_environment
def _title(env: Metered, value: Any) -> str:
    plain = env.meter.text(value)
    if len(plain) > MAX_TITLE:
        env.meter.stop("makes a title of a very long text")
    return str(env.meter.made(jinja.do_title(plain)))


@pass_environment
def _trim(env: Metered, value: Any, chars: str | None = None) -> str:
    env.meter.tick()
    return str(text.call(env.meter, env.meter.text(value), "strip", (chars,), {}))


@pass_environment
def _replace(env: Metered, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    meter = env.meter
    args = (meter.text(old), meter.text(new), -1 if count is None else count)
    return str(text.call(meter, meter.text(value), "replace", args, {}))


@pass_environment
def _center(env: Metered, value: Any, width: int = 80) -> str:
    return str(text.call(env.meter, env.meter.text(value), "center", (width,), {}))


@pass_environment
def _indent(env: Metered, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(value, str):
        mark = width if isinstance(width, str) else ""
        columns = len(width) if isinstance(width, str) else width
        lines = text.lines_of(value)
        env.meter.fits(size_of(len(value) + lines * max(columns, 0), value, mark) + SLOT * lines)
    return str(env.meter.made(jinja.do_indent(value, width, first, blank)))


@pass_environment
def _format(env: Metered, value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("format takes positional or keyword arguments, not both")
    return text.percent(env.meter, env.meter.text(value), kwargs or args)


@pass_environment
def _join(env: Metered, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(_getter(env, attribute), value)
    return env.meter.joined(env.meter.listed(value), env.meter.text(d))


@pass_environment
def _list(env: Metered, value: Iterable[Any]) -> list[Any]:
    return env.meter.listed(value)


@pass_environment
def _sum(env: Metered, value: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings [use the filter join]")
    for item in value if attribute is None else map(_getter(env, attribute), value):
        start = env.operate("+", start, item)
    return start


def _getter(env: Metered, attribute: str | int) -> Function:
    if isinstance(attribute, str) and len(attribute) > MAX_NAME:
        env.meter.stop("names an attribute with a very long name")
    return jinja.make_attrgetter(cast(Environment, env), attribute)


@pass_environment
def _batch(env: Metered, value: Iterable[Any], linecount: int, fill_with: Any = None) -> Any:
    if fill_with is not None:
        env.meter.fits(SLOT * max(linecount, 0))
    return env.meter.steps(jinja.do_batch(env.meter.steps(value), linecount, fill_with))


@pass_environment
def _int(env: Metered, value: Any, default: Any = 0, base: int = 10) -> Any:
    return env.meter.made(jinja.do_int(_number(value), default, base))


@pass_environment
def _float(env: Metered, value: Any, default: Any = 0.0) -> Any:
    return env.meter.made(jinja.do_float(_number(value), default))


def _number(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_NUMBER:
        raise ValueError(f"a number of {len(value)} characters")
    return value


@pass_environment
def _round(env: Metered, value: Any, precision: int = 0, method: Any = "common") -> Any:
    if abs(precision) > 300:
        raise ValueError(f"rounding to {precision} digits")
    return env.meter.made(jinja.do_round(value, precision, method))


@pass_environment
def _tojson(
    env: Metered,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    size, depth = env.meter.weigh(value)
    per_item = depth * (len(indent) if isinstance(indent, str) else indent or 0)
    per_item += sum(len(mark) for mark in separators or ())
    env.meter.fits(size + size // SLOT * per_item)
    made = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return str(env.meter.made(made))


STEPS = " steps"
"""The filter that makes a loop pay for its turns. No template can spell the name."""

FILTERS: Mapping[str, Function] = {
    STEPS: _steps,
    "abs": _metered(abs),
    "attr": _metered(jinja.do_attr, takes="environment", keeps=True),
    "batch": _batch,
    "capitalize": _method("capitalize"),
    "center": _center,
    "count": len,
    "d": _metered(jinja.do_default, keeps=True),
    "default": _metered(jinja.do_default, keeps=True),
    "dictsort": _metered(jinja.do_dictsort),
    "e": _escape,
    "escape": _escape,
    "first": _metered(jinja.sync_do_first, takes="environment", keeps=True),
    "float": _float,
    "forceescape": _escape,
    "format": _format,
    "groupby": _metered(jinja.sync_do_groupby, takes="environment", items="list"),
    "indent": _indent,
    "int": _int,
    "items": _metered(jinja.do_items),
    "join": _join,
    "last": _metered(jinja.do_last, takes="environment", keeps=True),
    "length": len,
    "list": _list,
    "lower": _method("lower"),
    "map": _metered(jinja.sync_do_map, takes="context", items="steps"),
    "max": _metered(jinja.do_max, takes="environment", items="steps", keeps=True),
    "min": _metered(jinja.do_min, takes="environment", items="steps", keeps=True),
    "reject": _metered(jinja.sync_do_reject, takes="context", items="steps"),
    "rejectattr": _metered(jinja.sync_do_rejectattr, takes="context", items="steps"),
    "replace": _replace,
    "reverse": _metered(jinja.do_reverse),
    "round": _round,
    "safe": _text,
    "select": _metered(jinja.sync_do_select, takes="context", items="steps"),
    "selectattr": _metered(jinja.sync_do_selectattr, takes="context", items="steps"),
    "slice": _metered(jinja.sync_do_slice, items="list"),
    "sort": _metered(jinja.do_sort, takes="environment", items="list"),
    "string": _text,
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": _trim,
    "truncate": _metered(jinja.do_truncate, takes="environment"),
    "unique": _metered(jinja.sync_do_unique, takes="environment", items="steps"),
    "upper": _method("upper"),
}


def _test(name: str, function: Function) -> Function:
    numeric = name in ("odd", "even", "divisibleby")  # they take a remainder, which formats when the value is a text
    takes_environment = name in ("filter", "test")

    @pass_environment
    def test(env: Metered, *args: Any, **kwargs: Any) -> Any:
        env.meter.tick()
        env.meter.weigh_arguments(args, kwargs)
        if numeric and not all(isinstance(arg, (int, float, Undefined)) for arg in (*args, *kwargs.values())):
            raise TypeError(f"the test {name!r} is for numbers")
        return function(*((env,) if takes_environment else ()), *args, **kwargs)

    return test


_JINJA_TESTS: Mapping[str, Any] = TESTS
TEST_FUNCTIONS: Mapping[str, Function] = {name: _test(name, function) for name, function in _JINJA_TESTS.items()}
