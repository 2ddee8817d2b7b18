"""`edgellm run`: one answer, or a conversation."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from edgellm.cli.talk import Talk, open_model, statistics
from edgellm.params import BACKENDS, KV_TYPES, OVERFLOW, CacheParams, GenerateParams, LoadParams


def _layers(_ctx: click.Context, _option: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not value.isdigit():
        raise click.BadParameter(f"{value!r} is neither a number nor auto")
    return int(value)


def _disk_cache(_ctx: click.Context, _option: click.Parameter, off: bool | None) -> CacheParams | None:
    return CacheParams(disk=0) if off else None


LOAD_OPTIONS = {"ctx", "kv_type", "threads", "gpu_layers", "offline", "trust", "backend", "cache"}


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--max-tokens", type=int, help="Longest answer, in tokens.")
@click.option("--temperature", type=float, help="0 takes the likeliest token; default 0.8.")
@click.option("--top-k", type=int, help="Keep the k likeliest tokens; default 40, 0 is off.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens that sum to p; default 0.95, 1 is off.")
@click.option("--min-p", type=float, help="Drop tokens below p times the likeliest; default 0.05, 0 is off.")
@click.option("--repeat-penalty", type=float, help="Divide the logits of recent tokens; default 1, off.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
@click.option(
    "--overflow", type=click.Choice(OVERFLOW), help="When a conversation outgrows the context; default error."
)
@click.option("--ctx", type=int, help="Context in tokens; default the smaller of 8192, trained and what fits.")
@click.option("--kv-type", type=click.Choice(KV_TYPES), help="Type of the KV cache; default: the engine's usual.")
@click.option("--threads", type=int, help="Default: the physical cores this process may use.")
@click.option("--gpu-layers", metavar="N|auto", callback=_layers, help="Layers on the GPU; default auto.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Engine; default auto.")
@click.option("--offline", is_flag=True, default=None, help="Never use the network.")
@click.option("--trust", is_flag=True, default=None, help="Skip the trial load of files outside the known-good ranges.")
@click.option("--no-cache", is_flag=True, help="Reuse nothing of earlier prompts.")
@click.option("--stats", is_flag=True, help="Token counts and speeds on stderr after each answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--no-disk-cache", "cache", is_flag=True, callback=_disk_cache, help="Keep nothing of prompts on disk.")
def run(
    model: str,
    prompt: str | None,
    *,
    system: str | None,
    raw: bool,
    no_cache: bool,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """One answer to PROMPT (or to standard input), or a conversation when there is neither.

    MODEL is a GGUF file or a name: see `edgellm list`.
    """
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    params = GenerateParams(cache=not no_cache, **{k: v for k, v in given.items() if k not in LOAD_OPTIONS})
    load_params = LoadParams(**{k: v for k, v in given.items() if k in LOAD_OPTIONS})
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").rstrip("\n")
        if not prompt:
            raise click.UsageError("no prompt: standard input is empty")
    if prompt is None and (as_json or raw):
        raise click.UsageError(f"{'--json' if as_json else '--raw'} needs a PROMPT")
    if raw and system is not None:
        raise click.UsageError("--raw leaves no place for --system")

    with open_model(model, load_params) as opened:
        talk = Talk(opened, params, system=system, raw=raw)
        if prompt is None:
            from edgellm.cli.conversation import converse

            converse(talk, model, stats=stats)
        elif as_json:
            done = talk.answer(prompt)
            click.echo(json.dumps(done.to_dict(), ensure_ascii=False))
        else:
            done = talk.show(prompt)
            if stats:
                click.echo(statistics(done), err=True)
