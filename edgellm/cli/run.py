"""`edgellm run`: one answer, or a conversation."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from edgellm.cli import streams
from edgellm.cli.chats import Keeper, KeptChat, kept
from edgellm.cli.completion import complete_model
from edgellm.cli.options import GENERATE, LOAD, Sectioned, chosen, flags, in_section, with_adapter
from edgellm.cli.talk import Manner, Talk, open_model, statistics
from edgellm.config import Config, Preset, config_path, read_config
from edgellm.errors import InvalidParameter
from edgellm.params import ANSWER, MODEL, CacheParams, GenerateParams, LoadParams

PATIENCE = 2.0  # seconds without a word from standard input, after which the user is told what is waited for
HINT = "reading standard input, which joins the prompt; Ctrl-D ends it, `< /dev/null` leaves it out"


@click.command(cls=Sectioned)
@click.argument("model", required=False, shell_complete=complete_model)
@click.argument("prompt", required=False)
@in_section(ANSWER, "--system", metavar="TEXT", help="System prompt.")
@in_section(ANSWER, "--raw", is_flag=True, default=None, help="Continue the text, without the chat template.")
@in_section(ANSWER, "--thinking/--no-thinking", default=None, help="Of models that think before they answer.")
@flags([*GENERATE.values(), *LOAD.values()])
@in_section(MODEL, "--no-cache", is_flag=True, default=None, help="Reuse nothing of earlier prompts.")
@in_section(MODEL, "--no-disk-cache", is_flag=True, default=None, help="Keep what was read in memory only.")
@click.option("--preset", metavar="NAME", help="Options and a system prompt by name: see `edgellm config`.")
@click.option("--private", is_flag=True, default=None, help="Nothing that is said reaches the disk.")
@click.option("--continue", "latest", is_flag=True, help="Go on with the last conversation that was kept.")
@click.option("--resume", type=int, metavar="N", help="Go on with that one: see `edgellm chats`.")
@click.option("--stats", is_flag=True, help="Token counts and speeds on stderr after each answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def run(
    model: str | None,
    prompt: str | None,
    *,
    preset: str | None,
    latest: bool,
    resume: int | None,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """One answer to PROMPT, or a conversation when there is none.

    MODEL is a GGUF file, an ONNX folder or a name: see `edgellm list`. Without it the model of `edgellm config` runs.
    Standard input joins the prompt; `-` for PROMPT reads it alone.
    """
    past = kept(resume) if latest or resume is not None else None
    asked = _asked((model, prompt), preset, past)
    given = {**asked.options, **{k: v for k, v in options.items() if v is not None and v != ()}}
    manner = Manner(**{f.name: given.pop(f.name) for f in fields(Manner) if f.name in given})
    text = _text(asked.prompt)
    if text is None and (as_json or manner.raw):
        raise click.UsageError(f"{'--json' if as_json else '--raw'} needs a PROMPT")
    if "logprobs" in given and not as_json:
        raise click.UsageError("logprobs are reported with --json alone")
    if manner.raw and manner.system is not None:
        raise click.UsageError("--raw leaves no place for --system")
    cache = CacheParams(disk=0) if given.pop("no_disk_cache", False) or manner.private else CacheParams()
    params = GenerateParams(cache=not given.pop("no_cache", False), **chosen(GenerateParams, given))
    load_params = LoadParams(cache=cache, **chosen(LoadParams, given))
    params = with_adapter(params, load_params)

    with open_model(asked.model, load_params) as opened:
        keeper = Keeper(asked.model, past) if (past or asked.keep) and not manner.private and not manner.raw else None
        talk = Talk(opened, params, manner, keeper)
        if text is None:
            from edgellm.cli.conversation import converse

            converse(talk, asked.model, stats=stats)
        elif as_json:
            click.echo(json.dumps(talk.answer(text).to_dict(), ensure_ascii=not streams.shows_everything()))
        else:
            done = talk.show(text)
            if stats:
                click.echo(statistics(done, opened.info.engine_reason), err=True)


@dataclass(frozen=True)
class _Asked:
    """What the words of the command line mean, with the settings of the user."""

    model: str
    prompt: str | None
    options: Mapping[str, Any]  # of the preset
    keep: bool


def _asked(words: tuple[str | None, str | None], preset: str | None, past: KeptChat | None) -> _Asked:
    """One word alone is the model; a prompt if it holds a blank, or names no model where a conversation goes on."""
    config = read_config()
    model, prompt = words
    if model is not None and prompt is None and not _is_there(model):
        blank = any(character.isspace() for character in model)
        if blank or (past is not None and not _names_a_model(model, config)):
            model, prompt = None, model
    if preset is None and model is not None and model in config.presets and not _is_there(model):
        model, preset = None, model
    if preset is not None and preset not in config.presets:
        names = f"there are {', '.join(config.presets)}" if config.presets else "there are none yet"
        raise InvalidParameter(f"no preset {preset!r} in {config_path()}; {names}")
    found = config.presets[preset] if preset is not None else Preset()
    model = model or found.model or (past.model if past else None) or config.model
    if not model:
        raise click.UsageError(
            f'which MODEL? `edgellm list` shows them; model = "NAME" in {config_path()} makes one the default'
        )
    return _Asked(model, prompt, _checked(preset, found.options), config.keep)


def check_presets(config: Config) -> None:
    """Raises InvalidParameter for a preset that could not be run, or aliases that go in a circle."""
    for name, preset in config.presets.items():
        options = _checked(name, preset.options)
        try:
            GenerateParams(**chosen(GenerateParams, options))
            LoadParams(**chosen(LoadParams, options))
        except InvalidParameter as error:
            raise InvalidParameter(f"{config_path()}: presets.{name}: {error}") from None
    for alias in config.aliases:
        config.named(alias)


def _checked(preset: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a preset as the command line has them; their values are checked where they are used."""
    known = [f.name for kind in (GenerateParams, LoadParams, Manner) for f in fields(kind) if f.name != "cache"]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise InvalidParameter(
            f"{config_path()}: presets.{preset} has an option {unknown!r}; there are {', '.join(known)}"
        )
    bias = options.get("logit_bias")
    if not isinstance(bias, dict):
        return dict(options)
    try:
        return {**options, "logit_bias": {int(token): value for token, value in bias.items()}}
    except ValueError as error:
        raise InvalidParameter(f"{config_path()}: presets.{preset}.logit_bias: {error}") from None


def _names_a_model(name: str, config: Config) -> bool:
    from edgellm import hub
    from edgellm.hub.catalog import match

    if name in config.presets or name in config.aliases or name.startswith("hf:"):
        return True
    try:
        return hub.find(name, hub.ModelStore()) is not None or match(name, hub.catalog()) is not None
    except InvalidParameter:  # it stands for several
        return True


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _text(prompt: str | None) -> str | None:
    """The prompt with standard input behind it; None when there is neither."""
    if prompt is not None and prompt != "-":
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidParameter("PROMPT is not UTF-8") from None
    if prompt != "-" and (sys.stdin is None or sys.stdin.isatty()):
        if prompt is None and sys.stdin is None:
            raise click.UsageError("no prompt: standard input is closed")
        return prompt
    hint = threading.Timer(PATIENCE, click.echo, [HINT], {"err": True})
    if sys.stderr.isatty():
        hint.start()
    try:
        read = streams.read_text().rstrip("\n")
    finally:
        hint.cancel()
    if prompt in (None, "-"):
        if not read:
            raise click.UsageError("no prompt: none is given, and standard input is empty")
        return read
    return f"{prompt}\n\n{read}" if read else prompt
