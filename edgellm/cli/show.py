"""edgellm show: what a model file is, and what it needs to run here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.completion import complete_model
from edgellm.cli.locate import here
from edgellm.cli.output import print_facts, print_json, size, values_of

if TYPE_CHECKING:
    from edgellm import ModelInfo

# what JSON has as it is in ModelInfo
SAME = "format architecture name file_bytes quantization bits_per_weight kv_bytes_per_token chat_template"


@click.command("show")
@click.argument("model", shell_complete=complete_model)
@click.option("--ctx", type=click.IntRange(min=16), metavar="N", help="Tokens of context to count memory for.")
@click.option("--template", is_flag=True, help="Print the chat template alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(model: str, ctx: int | None, template: bool, as_json: bool) -> None:
    """Describe MODEL, a path or the name of a model that is here, or of a preset; nothing is pulled."""
    import edgellm
    from edgellm import machine

    path, licence = _locate(model)
    info = edgellm.inspect(path)
    if template:
        if info.chat_template is None:
            from edgellm.errors import Unsupported

            raise Unsupported(f"{path.name} has no chat template; it completes text")
        click.echo(info.chat_template)
        return
    available = machine.memory().available  # 0 where the system does not say
    default = edgellm.context_that_fits(info, None, available)
    context = min(ctx or default or edgellm.context_that_fits(info, ctx, 0), info.n_ctx_train)
    needed = edgellm.memory_needed(info, context)
    licence = info.license or licence
    shares = sorted(info.tensor_types.items(), key=lambda pair: -pair[1])
    stored = sum(info.tensor_types.values()) or 1
    if as_json:
        print_json(
            {
                "path": str(path),
                **values_of(info, SAME),
                "parameters": info.n_params,
                "tensor_types": dict(shares),
                "context": context,
                "context_default": default,
                "context_trained": info.n_ctx_train,
                "engine": info.engine,
                "engine_reason": info.engine_reason,
                "generates": info.can_generate,
                "embeds": info.can_embed,
                "reranks": info.can_rerank,
                "memory_needed": needed,
                "memory_available": available or None,
                "layers": info.n_layer,
                "embedding": info.n_embd,
                "vocabulary": info.n_vocab,
                "license": licence,
                "base_models": list(info.base_models),
            }
        )
        return
    mix = [f"{kind:<6} {100 * count / stored:5.1f} %  {size(count)}" for kind, count in shares]
    fits = "" if needed <= available or not available else "; it does not fit"
    have = f"{size(available)} available" if available else "the system does not say how much is available"
    cut = "" if ctx is None or ctx == context else f"; {ctx:,} asked, which is more than it was trained for"
    unasked = f"{default:,} by default" if default else "none of use fits in memory"
    facts = [
        ("name", info.name),
        ("path", str(path)),
        ("format", info.format),
        ("architecture", info.architecture),
        ("engine", f"{info.engine}: {info.engine_reason}"),
        ("parameters", f"{_count(info.n_params)} ({info.n_params:,})"),
        ("file", f"{size(info.file_bytes)}, {info.bits_per_weight:.2f} bits per weight, mostly {info.quantization}"),
        ("types", "\n".join(mix)),
        ("layers", f"{info.n_layer} of width {info.n_embd:,}"),
        ("vocabulary", f"{info.n_vocab:,} tokens"),
        ("context", f"{info.n_ctx_train:,} tokens trained, {unasked}{cut}"),
        ("KV cache", f"{info.kv_bytes_per_token:,} bytes per token"),
        ("memory", f"{size(needed)} needed at {context:,} tokens, {have}{fits}"),
        ("chat template", _template(info)),
        ("embeddings", "yes" if info.can_embed else "no"),
        *([("reranking", "yes")] if info.can_rerank else []),
        ("licence", licence or "not stated"),
    ]
    if info.base_models:
        facts.append(("made from", ", ".join(info.base_models)))
    print_facts(facts)


def _locate(model: str) -> tuple[Path, str | None]:
    """The file of a path, a preset or a name that is here, and the licence the store knows; never pulls."""
    from edgellm import hub
    from edgellm.config import read_config

    if not Path(model).expanduser().exists():
        config = read_config()
        if model in config.presets:
            model = config.presets[model].model or config.model or model
    path = here(model)
    licences = (stored.license for stored in hub.ModelStore().list() if not stored.problem and stored.path == path)
    return path, next(licences, None)


def _count(number: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def _template(info: ModelInfo) -> str:
    if not info.can_generate:
        gives = "scores (model.rerank)" if info.can_rerank else "vectors (model.embed)"
        return f"no: an encoder, which gives {gives} and no text"
    if info.chat_template is None:
        return "no: a base model, which completes text"
    first = next((line.strip() for line in info.chat_template.splitlines() if line.strip()), "")
    if len(first) > 60:
        first = first[:60] + "…"
    return f"yes, {len(info.chat_template):,} characters (--template prints it)\n{first}"
