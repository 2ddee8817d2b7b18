"""The options of GenerateParams and LoadParams on the command line, in `/set` and in presets.

One option per field, its type read from the field; so none is missing, and all check the same.
"""

from __future__ import annotations

import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from edgellm.errors import InvalidParameter
from edgellm.params import GenerateParams, LoadParams

C = TypeVar("C", bound=Callable[..., Any])

ANSWER, SAMPLING, MODEL = "The answer", "Sampling", "The model"

GENERATE = {  # field of GenerateParams: (section, help)
    "max_tokens": (ANSWER, "Longest answer, in tokens."),
    "stop": (ANSWER, "End the answer before this text; may be repeated."),
    "timeout": (ANSWER, "Seconds after which the answer ends."),
    "ignore_eos": (ANSWER, "Go on after the model's end of an answer."),
    "overflow": (ANSWER, "When a conversation outgrows the context."),
    "logprobs": (ANSWER, "With --json: the N likeliest tokens beside each chosen one."),
    "temperature": (SAMPLING, "0 takes the likeliest token."),
    "top_k": (SAMPLING, "Keep the k likeliest tokens; 0 is off."),
    "top_p": (SAMPLING, "Keep the likeliest tokens that sum to p; 1 is off."),
    "min_p": (SAMPLING, "Drop tokens below p times the likeliest; 0 is off."),
    "typical_p": (SAMPLING, "Keep the tokens of most typical surprise that sum to p; 1 is off."),
    "repeat_penalty": (SAMPLING, "Divide the logits of recent tokens; 1 is off."),
    "frequency_penalty": (SAMPLING, "Lower recent tokens by this for each time."),
    "presence_penalty": (SAMPLING, "Lower recent tokens by this once."),
    "penalty_last_n": (SAMPLING, "How many tokens are recent; -1 is all."),
    "dry_multiplier": (SAMPLING, "Strength of DRY, against repeated sequences; 0 is off."),
    "dry_base": (SAMPLING, "DRY: growth with the length of a repetition."),
    "dry_allowed_length": (SAMPLING, "DRY: repetitions up to this length are free."),
    "dry_last_n": (SAMPLING, "DRY: how many tokens it looks back; -1 is all."),
    "dry_breakers": (SAMPLING, "DRY: texts that end a sequence; may be repeated."),
    "xtc_probability": (SAMPLING, "How often XTC drops the likeliest tokens; 0 is off."),
    "xtc_threshold": (SAMPLING, "XTC: from which probability on a token may be dropped."),
    "logit_bias": (SAMPLING, "Add BIAS to the logit of the token ID; -inf forbids it; may be repeated."),
    "seed": (SAMPLING, "The same seed gives the same answer."),
}
LOAD = {  # field of LoadParams: help
    "ctx": "Context in tokens; default the smaller of 8192, trained and what fits.",
    "kv_type": "Type of the KV cache; default: the engine's usual.",
    "threads": "Default: the physical cores this process may use.",
    "gpu_layers": "Layers on the GPU.",
    "flash_attention": "Default: as the device likes it.",
    "micro_batch": "Tokens of one pass over a prompt.",
    "backend": "Engine.",
    "offline": "Never use the network.",
    "trust": "Skip the trial load of files outside the known-good ranges.",
}


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic for type checkers alone in older versions of click


class Option(click.Option):
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


class _Layers(_ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return "auto"
        if not str(value).isdigit():
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)
        return int(value)


class _Bias(_ParamType):
    name = "ID=BIAS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not ID=BIAS, such as 42=-1.5", param, ctx)


def generate_options(command: C) -> C:
    """A decorator: the options of GenerateParams but `cache`."""
    for name, (section, text) in reversed(GENERATE.items()):
        command = _add(command, _option(GenerateParams, name, section, text))
    return command


def load_options(command: C) -> C:
    """A decorator: the options of LoadParams but `cache`."""
    for name, text in reversed(LOAD.items()):
        command = _add(command, _option(LoadParams, name, MODEL, text))
    return command


def chosen(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that are fields of `kind` and were given, as the field takes them."""
    known = {field.name for field in fields(kind)}
    return {
        name: dict(value) if name == "logit_bias" else value
        for name, value in options.items()
        if name in known and value is not None and value != ()
    }


def from_text(name: str, text: str) -> Any:
    """What an option of GenerateParams becomes from the text behind `/set NAME`. Raises InvalidParameter."""
    option = _option(GenerateParams, name, "", "")
    try:
        words = shlex.split(text) if option.multiple else [text.strip()]
        values = [option.type.convert(word, option, None) for word in words]
    except (click.BadParameter, ValueError) as error:
        said = error.message if isinstance(error, click.BadParameter) else str(error)
        raise InvalidParameter(f"{name}: {said}") from None
    if name == "logit_bias":
        return dict(values)
    return tuple(values) if option.multiple else values[0]


def default_of(kind: type, name: str) -> Any:
    """The default of a field."""
    field: Field[Any] = next(field for field in fields(kind) if field.name == name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _add(command: C, option: click.Option) -> C:
    if isinstance(command, click.Command):
        command.params.append(option)
    else:
        known: list[click.Parameter] = getattr(command, "__click_params__", [])
        known.append(option)
        command.__click_params__ = known  # type: ignore[attr-defined]
    return command


def _option(kind: type, name: str, section: str, text: str) -> Option:
    """The option of a field: --max-tokens for max_tokens; its type is the field's, its default left to the field."""
    hint = get_type_hints(kind)[name]
    union = get_origin(hint) in (Union, types.UnionType)
    alternatives = [each for each in (get_args(hint) if union else (hint,)) if each is not type(None)]
    flag = "--" + name.replace("_", "-")
    extra: dict[str, Any] = {"default": None, "help": _with_default(kind, name, text)}
    names = [flag]
    if name == "gpu_layers":
        extra |= {"type": _Layers(), "metavar": _Layers.name}
    elif alternatives == [bool]:
        optional = default_of(kind, name) is None
        names = [f"{flag}/--no-{flag[2:]}" if optional else flag]
        extra |= {"is_flag": True, "type": click.BOOL}
    elif get_origin(alternatives[0]) is Literal:
        extra["type"] = click.Choice(get_args(alternatives[0]))
    elif alternatives[0] in (int, float):
        extra |= {"type": alternatives[0], "metavar": "N" if alternatives[0] is int else "X"}
    elif name == "logit_bias":
        extra |= {"type": _Bias(), "multiple": True}
    elif issubclass(get_origin(alternatives[0]) or object, Sequence):
        extra |= {"type": click.STRING, "multiple": True, "metavar": "TEXT"}
    else:
        raise TypeError(f"{kind.__name__}.{name} has a type that the command line does not know: {hint}")
    return Option([name, *names], section=section, **extra)


def _with_default(kind: type, name: str, text: str) -> str:
    value = default_of(kind, name)
    if not isinstance(value, (str, int, float)) or value is False:
        return text
    return f"{text[:-1]}; default {value:g}." if isinstance(value, float) else f"{text[:-1]}; default {value}."
