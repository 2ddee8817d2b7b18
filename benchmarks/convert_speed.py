"""Converting a checkpoint to q4_k_m: wall time and peak resident memory, beside llama.cpp's two steps.

    python benchmarks/convert_speed.py FOLDER --tokenizer FOLDER [--layers 16] [--quant q4_k_m] [--rounds 3]
        [--llama-cpp DIR] [--verify] [--json]

FOLDER gets a random llama checkpoint of the shape of Llama 3.2 1B in bf16, with the tokenizer files of another folder
(2.1 GB with SmolLM2's, unless it is there already), and the converted files. Each conversion runs in a process of its
own, edgellm and llama.cpp in turn; the memory is that of the process and its children together, sampled every 20 ms
(resident set, pages of mapped files included). With `--llama-cpp DIR` (a source tree with build/bin),
DIR/convert_hf_to_gguf.py followed by llama-quantize is the other side; the ratio is that of the medians, and the
bytes of all tensors are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edgellm.formats.gguf import GGUFFile
from edgellm.formats.safetensors import write_safetensors

HIDDEN, FF, HEADS, KV_HEADS = 2048, 8192, 32, 8
PERIOD = 0.02  # seconds between two looks at the memory
CHILD = """
import sys
from edgellm.converters import ConvertParams, convert
done = convert(sys.argv[1], sys.argv[2], ConvertParams(quant=sys.argv[3], verify=sys.argv[4] == "yes", force=True))
print(done.verified.summary if done.verified else "not verified")
"""


def make(folder: Path, layers: int, tokenizer: Path) -> None:
    """Write the checkpoint: config.json, model.safetensors, and the files of the tokenizer."""
    vocab = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    folder.mkdir(parents=True, exist_ok=True)
    head = HIDDEN // HEADS
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": HIDDEN,
        "intermediate_size": FF, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": head, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 1, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    kv = KV_HEADS * head
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm.weight": (HIDDEN,), at + "post_attention_layernorm.weight": (HIDDEN,)}
        shapes |= {at + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), at + "self_attn.o_proj.weight": (HIDDEN, HIDDEN)}
        shapes |= {at + f"self_attn.{role}_proj.weight": (kv, HIDDEN) for role in "kv"}
        shapes |= {at + f"mlp.{role}_proj.weight": (FF, HIDDEN) for role in ("gate", "up")}
        shapes[at + "mlp.down_proj.weight"] = (HIDDEN, FF)
    rng = np.random.default_rng(0)

    def rows(shape: tuple[int, ...]) -> Iterator[NDArray[np.uint16]]:
        total, step = int(np.prod(shape)), 1 << 22
        for start in range(0, total, step):
            values = rng.standard_normal(min(step, total - start), np.float32) * np.float32(HIDDEN**-0.5)
            yield (values.view(np.uint32) >> 16).astype(np.uint16)

    listed = [(name, "BF16", shape, lambda shape=shape: rows(shape)) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", listed, {"format": "pt"})


def measure(*commands: list[str]) -> dict[str, Any]:
    """Run commands one after the other: seconds, and the peak of the memory of each with its children, in bytes."""
    peak, words = 0, ""
    started = time.monotonic()
    for command in commands:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            watched = psutil.Process(running.pid)
            while running.poll() is None:
                with suppress(psutil.Error):
                    family = [watched, *watched.children(recursive=True)]
                    peak = max(peak, sum(process.memory_info().rss for process in family))
                time.sleep(PERIOD)
            assert running.stdout is not None
            words = running.stdout.read().strip()
        if running.returncode:
            raise SystemExit(f"{command[0]} {command[1]} failed:\n{words[-3000:]}")
    seconds = time.monotonic() - started
    return {"seconds": seconds, "peak_bytes": peak, "last_line": words.splitlines()[-1] if words else ""}


def same_tensors(ours: Path, theirs: Path) -> bool:
    with GGUFFile.open(ours) as one, GGUFFile.open(theirs) as other:
        return set(one.tensors) == set(other.tensors) and all(
            one.tensors[name].type is info.type and np.array_equal(one.data(name), other.data(name))
            for name, info in other.tensors.items()
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Hugging Face folder of a llama model")
    parser.add_argument("--quant", default="q4_k_m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR")
    parser.add_argument("--verify", action="store_true", help="verify too; loads the result, which counts as memory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    source = options.folder / f"llama-{options.layers}"
    if not (source / "model.safetensors").exists():
        make(source, options.layers, options.tokenizer)
    ours, theirs = options.folder / "edgellm.gguf", options.folder / "llama.cpp.gguf"
    plain = options.folder / "llama.cpp-bf16.gguf"
    verify = "yes" if options.verify else "no"
    sides = {"edgellm": [[sys.executable, "-c", CHILD, str(source), str(ours), options.quant, verify]]}
    if options.llama_cpp:
        converter, quantizer = (
            options.llama_cpp / "convert_hf_to_gguf.py",
            options.llama_cpp / "build/bin/llama-quantize",
        )
        sides["llama.cpp"] = [
            [sys.executable, str(converter), str(source), "--outtype", "bf16", "--outfile", str(plain)],
            [str(quantizer), str(plain), str(theirs), options.quant],
        ]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for i in range(options.rounds):
        for name in sides if i % 2 == 0 else reversed(sides):
            runs[name].append(measure(*sides[name]))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr)
    report: dict[str, Any] = {
        "source_bytes": (source / "model.safetensors").stat().st_size,
        "target_bytes": ours.stat().st_size,
        "runs": runs,
        "median_seconds": {name: statistics.median(run["seconds"] for run in listed) for name, listed in runs.items()},
        "peak_bytes": {name: max(run["peak_bytes"] for run in listed) for name, listed in runs.items()},
    }
    if options.llama_cpp:
        report["ratio"] = report["median_seconds"]["edgellm"] / report["median_seconds"]["llama.cpp"]
        report["same_tensors"] = same_tensors(ours, theirs)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, seconds in report["median_seconds"].items():
        print(f"{name}: {seconds:.1f} s (median of {options.rounds}), peak {report['peak_bytes'][name] / 1e6:.0f} MB")
    if options.llama_cpp:
        print(f"ratio {report['ratio']:.2f}; tensors {'equal' if report['same_tensors'] else 'DIFFER'}")


if __name__ == "__main__":
    main()
