"""`edgellm convert`: a checkpoint becomes a GGUF file or an ONNX folder, or a GGUF file a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.cache import parse_size
from edgellm.cli.locate import here
from edgellm.cli.output import bars, note, print_facts, print_json, print_table, size

if TYPE_CHECKING:
    from edgellm.converters import Conversion, Plan, Planned
    from edgellm.converters.job import Progress

FILE = click.Path(path_type=Path)


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.option("-o", "--output", metavar="DST", type=FILE, help="The file, or the folder, to write.")
@click.option("--to", type=click.Choice(("gguf", "onnx", "safetensors")), default="gguf", show_default=True)
@click.option(
    "--quant",
    metavar="TYPE|keep",
    default="keep",
    help="q4_k_m, q8_0, f16 ...; for ONNX int4, int8 ...; default: the types of SRC.",
)
@click.option("--fit", metavar="SIZE", callback=parse_size, help="The best mix of types for a file of this size.")
@click.option("--for", "machine", type=click.Choice(("cpu",)), help="No types whose kernels are slow on x86.")
@click.option("--imatrix", metavar="FILE", type=FILE, help="An importance matrix to quantize with.")
@click.option("--calibrate", metavar="TEXT", type=FILE, help="Collect one first, on this UTF-8 text.")
@click.option(
    "--adapter",
    "adapters",
    metavar="FOLDER[=SCALE]",
    multiple=True,
    callback=lambda context, option, values: tuple(map(_adapter, values)),
    help="Merge this LoRA or DoRA adapter (a PEFT folder) into the weights of SRC first; can be repeated.",
)
@click.option("--pre", metavar="NAME", help="llama.cpp's name of the pre-tokenizer, where it is not recognised.")
@click.option("--exact", is_flag=True, help="ONNX: compute products in float32, not in 8 bits; slower.")
@click.option("--max-context", type=int, metavar="N", help="ONNX: make room for N tokens, not for all trained ones.")
@click.option(
    "--kv-type",
    "kv",
    type=click.Choice(("f32", "int8")),
    default="f32",
    help="ONNX: int8 keeps keys and values in a quarter of the memory; its scales come from TEXT, or from a short one.",
)
@click.option(
    "--exporter",
    type=click.Choice(("own", "optimum")),
    default="own",
    help="ONNX: optimum, by way of PyTorch, for models that edgellm does not know.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan: what the tensors would become (--verbose: each).")
@click.option("--strict", is_flag=True, help="Refuse to store a tensor in another type than the recipe's.")
@click.option("--no-verify", is_flag=True, help="Do not compare the result with SRC.")
@click.option("--force", is_flag=True, help="Replace DST if it is a file that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    source: str,
    *,
    output: Path | None,
    machine: str | None,
    dry_run: bool,
    no_verify: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SRC: a Hugging Face or ONNX folder, a GGUF file, or the name of a model that is here.

    The result is compared with SRC, tensor by tensor, and run, before it gets its name. Prints its path.
    """
    from edgellm import converters

    params = converters.ConvertParams(fast_on_cpu=machine == "cpu", verify=not no_verify, **options)
    path = here(source)
    if dry_run:
        found = converters.plan(path, params)
        if as_json:
            print_json(found.to_dict())
        else:
            about = click.get_current_context().find_root().obj or {}  # of --verbose, as every command may have
            _print_plan(found, verbose=bool(about.get("verbose")))
        return
    if output is None:
        raise click.UsageError("say where to write with -o DST, or ask for --dry-run.")
    try:
        with _progress() as progress:
            done = converters.convert(path, output, params, progress=progress)
    except (KeyboardInterrupt, SystemExit):
        note("stopped; nothing was left behind")
        raise
    _report(done)
    if as_json:
        verified = done.verified.to_dict() if done.verified else None
        print_json({"path": str(done.path), "seconds": done.seconds, "plan": done.plan.to_dict(), "verified": verified})
    else:
        click.echo(str(done.path))


def _adapter(value: str) -> tuple[Path, float]:
    """A folder, and how strongly it counts; what a folder is called may end in =1, too."""
    folder, equals, scale = value.rpartition("=")
    if not equals or Path(value).exists():
        return Path(value), 1.0
    try:
        return Path(folder), float(scale)
    except ValueError:
        raise click.BadParameter(f"{value!r}: behind = a number is expected, as in FOLDER=0.5") from None


def _print_plan(plan: Plan, *, verbose: bool) -> None:
    """The tensors, what is left out, the totals, and what to mind. verbose: a row for every tensor."""
    from edgellm.converters.groups import groups

    if verbose:
        rows = [(one.name, _shape(one), one.source, one.target, f"{one.nbytes:,}", _loss(one)) for one in plan.tensors]
        print_table(("TENSOR", "SHAPE", "FROM", "TO", "BYTES", ""), rows, right=(4,), words=0)
    else:
        grouped = [
            (name, _shape(one), f"{one.source}→{one.target}", size(nbytes), _loss(one))
            for name, one, nbytes in groups(plan.tensors)
        ]
        print_table(("TENSORS", "SHAPE", "TYPE", "SIZE", ""), grouped, right=(3,), words=0)
    click.echo("")
    lossy = [one for one in plan.tensors if not one.exact]
    kinds = ", ".join(sorted({one.source for one in lossy}))
    facts = [
        ("recipe", plan.recipe),
        ("file", f"{size(plan.file_bytes)}, {plan.bits_per_weight:.2f} bits per weight"),
        ("weights", f"{plan.n_params:,} in {len(plan.tensors)} tensors"),
        ("loss", f"{len(lossy)} tensors are lossy (from {kinds})" if lossy else "none: every tensor is exact"),
    ]
    if plan.fallbacks:
        wanted = ", ".join(sorted({str(one.fallback_from) for one in plan.fallbacks}))
        many = f"{len(plan.fallbacks)} tensors (*), whose rows are no whole blocks of {wanted}; --strict refuses them"
        facts.append(("fallbacks", many))
    if plan.memory is not None:
        facts.append(("memory", f"{size(plan.memory)} to run it with {plan.memory_ctx:,} tokens of context"))
    facts += [("left out", f"{one.name}: {one.why}") for one in plan.left_out]
    facts += [("note", text) for text in plan.notes]
    facts += [("warning", text) for text in plan.warnings]
    print_facts(facts)


def _shape(one: Planned) -> str:
    return "×".join(map(str, one.shape))


def _loss(one: Planned) -> str:
    """Ends in * where the type is not the recipe's."""
    return ("exact" if one.exact else "lossy") + "*" * bool(one.fallback_from)


def _report(done: Conversion) -> None:
    """What is to be known, on stderr."""
    plan = done.plan
    for text in plan.warnings:
        note(f"warning: {text}")
    for one in plan.left_out:
        note(f"left out {one.name}: {one.why}")
    for text in plan.notes:
        note(f"note: {text}")
    if plan.fallbacks:
        first = plan.fallbacks[0]
        note(
            f"fallbacks: {len(plan.fallbacks)} of {len(plan.tensors)} tensors, whose rows are no whole blocks; the "
            f"first is {first.name}, {first.target} instead of {first.fallback_from}"
        )
    note(f"{plan.recipe}: {size(plan.file_bytes)}, {plan.bits_per_weight:.2f} bits per weight, in {done.seconds:.1f} s")
    note(f"verified: {done.verified.summary}" if done.verified else "not verified")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for each stage on a terminal's stderr, else a line for each."""
    seen: set[str] = set()
    with bars("TaskProgressColumn") as shown:

        def show(what: str, done: int, total: int) -> None:
            if not shown.draw(what, done, total) and what not in seen:
                seen.add(what)
                note(what)

        yield show
