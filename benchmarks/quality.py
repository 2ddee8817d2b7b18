"""What the arithmetic of an engine costs: its logits beside those of the same weights as floats.

    python benchmarks/quality.py MODEL.gguf... [--backends native llamacpp] [--text FILE] [--chunks 6] [--base FILE]

Every model is converted to a file of F32 weights that stand for the same numbers (with --base, that file is taken), and
this runs in ONNX Runtime, in float32, which is none of the engines that are compared. What differs is then what a
backend does: activations rounded to 8 bits, keys and values of 16, sums in another order. Rules and figures are those
of docs/evaluation.md: softmax in float64, contexts of 512 tokens. Without --text it is CPython's help texts
(pydoc_data.topics), the same for the same version of Python.

Exit code 1 where the first backend has a larger mean KL divergence than the second, by more than twice the standard
error of both, or a perplexity that is more than 0.3 % from the base's, which 1,500 predictions know to about 0.2 %.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import edgellm
from edgellm.converters.evaluate import Evaluation, evaluate

CTX = 512
PERPLEXITY = 0.003  # share of the base's perplexity that the first backend may be off


def help_texts() -> str:
    """Of CPython's statements and types."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def as_floats(model: str, folder: Path) -> Path:
    """The same numbers as an ONNX folder of F32 weights."""
    made = folder / "f32.gguf", folder / "f32"
    for source, target, options in ((model, made[0], ["--quant", "f32"]), (str(made[0]), made[1], ["--to", "onnx"])):
        command = [sys.executable, "-m", "edgellm", "convert", source, "-o", str(target), "--no-verify", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    made[0].unlink()
    return made[1]


def measure(model: str, base: Path, backends: list[str], text: str, chunks: int) -> dict[str, Evaluation]:
    """By backend."""
    found = {}
    with edgellm.load(base, ctx=CTX) as floats:
        for backend in backends:
            options: dict[str, Any] = {"backend": backend, "gpu_layers": 0}
            with edgellm.load(model, ctx=CTX, **options) as opened:
                found[backend] = evaluate(opened, text, base=floats, chunks=chunks)
    return found


def shortcoming(found: dict[str, Evaluation]) -> str | None:
    """What of the first backend is worse than the second's, or than it may be."""
    ours, *others = found.values()
    assert ours.mean_kl is not None
    assert ours.base_perplexity is not None
    assert ours.mean_kl_error is not None
    for other in others[:1]:
        assert other.mean_kl is not None
        assert other.mean_kl_error is not None
        if ours.mean_kl > other.mean_kl + 2 * math.hypot(ours.mean_kl_error, other.mean_kl_error):
            return f"mean KL {ours.mean_kl:.6f} is above {other.mean_kl:.6f}"
    off = ours.perplexity / ours.base_perplexity - 1
    return f"perplexity is {100 * off:+.2f} % off" if abs(off) > PERPLEXITY else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--backends", nargs="+", default=["native", "llamacpp"])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--base", type=Path, help="what is run as floats, of the one model")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8") if options.text else help_texts()
    report: dict[str, Any] = {}
    short = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            base = options.base or as_floats(model, Path(scratch))
            found = measure(model, base, options.backends, text, options.chunks)
        report[model] = {backend: one.to_dict() for backend, one in found.items()}
        if why := shortcoming(found):
            short[model] = why
        if not options.json:
            print(f"{model}: {next(iter(found.values())).tokens} predictions")
            for backend, one in found.items():
                assert one.base_perplexity is not None
                off = 100 * (one.perplexity / one.base_perplexity - 1)
                kl = f"mean KL {one.mean_kl:.6f} ± {one.mean_kl_error:.6f} (99.9 %: {one.p999_kl:.4f})"
                print(f"    {backend:10} {kl}  perplexity {one.perplexity:.4f} ({off:+.3f} %)", end="")
                print(f"  same top token {100 * (one.top1_agreement or 0):.2f} %")
    if options.json:
        print(json.dumps({"models": report, "short": short}, indent=1))
    for model, why in short.items():
        print(f"{model}: {options.backends[0]}: {why}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
