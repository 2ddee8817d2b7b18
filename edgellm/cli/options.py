"""The options of params.py as flags and behind `/set`: made from the metadata of their fields, so none is missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from edgellm.errors import InvalidParameter
from edgellm.option import Choice, Flag, Option, Params, Rule
from edgellm.params import GenerateParams, LoadParams

C = TypeVar("C", bound=Callable[..., Any])

GENERATE, LOAD = (
    {name: option for name, option in kind.OPTIONS.items() if option.section} for kind in (GenerateParams, LoadParams)
)

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic for type checkers alone in older versions of click


class SectionedOption(click.Option):
    """An option that knows its section of the help page."""

    def __init__(self, *arguments: Any, section: str, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


class Sectioned(click.Command):
    """A command whose help page has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        other = sections.pop("Other", [])
        for title, records in [*sections.items(), ("Other", other)]:
            with formatter.section(title):
                formatter.write_dl(records)


class _Value(_ParamType):
    """A word of the command line, read as a rule says."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = rule.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.rule.read(str(value))
        except InvalidParameter as error:
            self.fail(str(error), param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not {self.rule.metavar if self.rule.gather else self.rule}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        choices = self.rule.choices if isinstance(self.rule, Choice) else ()
        return [CompletionItem(each) for each in choices if each.startswith(incomplete)]


def in_section(section: str, *spelling: str, **attributes: Any) -> Callable[[C], C]:
    """A decorator: an option under this heading of the help page."""
    return click.option(*spelling, cls=SectionedOption, section=section, **attributes)


def flags(options: Iterable[Option]) -> Callable[[C], C]:
    """A decorator: these options as flags; what is not given is left to the option's default."""

    def decorate(command: C) -> C:
        for each in reversed(list(options)):
            spelling, rule = each.flag, each.rule
            if isinstance(rule, Flag) and each.default is None:
                spelling += f"/--no-{spelling[2:]}"
            form: dict[str, Any] = {"type": _value(rule), "metavar": rule.metavar, "multiple": bool(rule.gather)}
            if isinstance(rule, Flag):
                form = {"is_flag": True, "type": click.BOOL}
            command = in_section(each.section, each.name, spelling, default=None, help=each.meaning, **form)(command)
        return command

    return decorate


def chosen(kind: type[Params], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that are of `kind` and were given, as it takes them."""
    given = {name: (each, options[name]) for name, each in kind.OPTIONS.items() if options.get(name) is not None}
    return {
        name: each.rule.gather(value) if each.rule.gather and isinstance(value, tuple) else value
        for name, (each, value) in given.items()
        if value != ()
    }


def with_adapter(params: GenerateParams, load: LoadParams) -> GenerateParams:
    """The options of answers: where one adapter is loaded and none chosen, they are that one's. Raises InvalidParameter
    for a name that none of them has, before anything is loaded."""
    names = [name for name, _, _ in load.adapters]
    if params.adapter is not None and params.adapter not in names:
        raise InvalidParameter(
            f"--use-adapter {params.adapter}: no --adapter has this name; {', '.join(names) or 'none'}"
        )
    return replace(params, adapter=names[0]) if len(names) == 1 and params.adapter is None else params


def from_text(name: str, text: str) -> Any:
    """What an option of GenerateParams becomes from the text behind `/set NAME`. Raises InvalidParameter."""
    rule = GENERATE[name].rule
    try:
        words = shlex.split(text) if rule.gather else [text.strip()]
        values = [_value(rule).convert(word, None, None) for word in words]
    except (click.BadParameter, ValueError) as error:
        said = error.message if isinstance(error, click.BadParameter) else str(error)
        raise InvalidParameter(f"{name}: {said}") from None
    return rule.gather(tuple(values)) if rule.gather else values[0]


def _value(rule: Rule) -> _ParamType:
    return click.BOOL if isinstance(rule, Flag) else _Value(rule)
