"""The names a chat template finds besides its variables: those of Hugging Face's `apply_chat_template`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import safe_range
from jinja2.utils import Cycler, Joiner, Namespace, pass_environment

from edgellm.prompts.meter import Metered

MAX_TIME_FORMAT = 256  # characters


class Raised(Exception):
    """The template called raise_exception; the message is its own."""


class TemplateNamespace(Namespace):
    """`namespace()`, without private names, and whose text does not show what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        pairs = [pair for given in (*rest, kwargs) for pair in (given.items() if isinstance(given, dict) else given)]
        for name, _ in pairs:
            _public(name)
        Namespace.__init__(self, pairs)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _public(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace holds public names, not {name!r:.40}")


class DictMaker:
    """`dict(...)` and `dict.fromkeys(...)`, for keys that hash in constant time."""

    @pass_environment
    def __call__(self, env: Metered, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for arg in args[:1]:
            pairs = arg.items() if isinstance(arg, dict) else arg
            for key, value in env.meter.steps(pairs):
                result[_key(key)] = value
        if len(args) > 1:
            raise TypeError(f"dict expected at most 1 argument, got {len(args)}")
        made: dict[Any, Any] = env.meter.made({**result, **kwargs})
        return made

    @pass_environment
    def fromkeys(self, env: Metered, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        made: dict[Any, Any] = env.meter.made({_key(key): value for key in env.meter.steps(keys)})
        return made


def _key(key: Any) -> Any:
    if key is not None and not isinstance(key, (str, int, float)):
        raise TypeError(f"a key of type {type(key).__name__}")
    return key


@pass_environment
def raise_exception(env: Metered, message: Any = "") -> None:
    raise Raised(env.meter.text(message))


@pass_environment
def strftime_now(env: Metered, format: str) -> str:
    if len(format) > MAX_TIME_FORMAT:
        env.meter.stop("formats the time with a very long format")
    return str(env.meter.made(env.now().strftime(format)))


GLOBALS: Mapping[str, Any] = {
    "range": safe_range,
    "dict": DictMaker(),
    "namespace": TemplateNamespace,
    "cycler": Cycler,
    "joiner": Joiner,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
}
