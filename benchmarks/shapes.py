"""Models of a given shape with random weights: their speed is that of a real model, their text is not.

python benchmarks/shapes.py LIKE.gguf OUT.gguf [--quant q4_k_m] [--layers 16] [--hidden 2048] [--ff 8192]
    [--experts 32 --used 4]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quant.ggml import quantize
from edgellm.converters.quant.recipes import QUANTIZATION_VERSION, Facts, choose, target_of
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf

ROWS = 64  # random rows that a tensor repeats


def random_llama(
    like: Path,
    out: Path,
    *,
    quant: str = "q4_k_m",
    layers: int = 16,
    hidden: int = 2048,
    ff: int = 8192,
    experts: int = 0,
    used: int = 2,
) -> Path:
    """A llama of about 1.1 billion weights (at the defaults) with heads of 64, four to a key head; tokens of `like`.

    experts: how many networks of `ff` each layer has, of which a token goes through `used`; 0: one, as in a Llama.
    """
    heads, head = hidden // 64, 64
    kv = heads // 4 * head
    with GGUFFile.open(like) as file:
        metadata: dict[str, Any] = {
            key: list(value) if "tokens" in key or "merges" in key else value
            for key, value in file.metadata.items()
            if key.startswith("tokenizer.")
        }
        n_vocab = len(metadata["tokenizer.ggml.tokens"])
        prefix: dict[str, Any] = {
            "general.architecture": "llama",
            "general.name": f"random {quant}",
            "general.file_type": target_of(quant).file_type,
            "general.quantization_version": QUANTIZATION_VERSION,
            "llama.block_count": layers,
            "llama.context_length": 8192,
            "llama.embedding_length": hidden,
            "llama.feed_forward_length": ff,
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": heads // 4,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 10000.0,
            "llama.rope.dimension_count": head,
        }
        if experts:
            prefix |= {"llama.expert_count": experts, "llama.expert_used_count": used}
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, hidden), "output_norm.weight": (hidden,)}
        for i in range(layers):
            shapes |= {
                f"blk.{i}.attn_norm.weight": (hidden,),
                f"blk.{i}.attn_q.weight": (hidden, hidden),
                f"blk.{i}.attn_k.weight": (kv, hidden),
                f"blk.{i}.attn_v.weight": (kv, hidden),
                f"blk.{i}.attn_output.weight": (hidden, hidden),
                f"blk.{i}.ffn_norm.weight": (hidden,),
            }
            networks = {"gate": (ff, hidden), "up": (ff, hidden), "down": (hidden, ff)}
            if experts:
                shapes[f"blk.{i}.ffn_gate_inp.weight"] = (experts, hidden)
                shapes |= {f"blk.{i}.ffn_{part}_exps.weight": (experts, *shape) for part, shape in networks.items()}
            else:
                shapes |= {f"blk.{i}.ffn_{part}.weight": shape for part, shape in networks.items()}
        facts = Facts("llama", layers, heads, heads // 4, experts)
        made: dict[tuple[GGMLType, int], NDArray[np.uint8]] = {}
        rng = np.random.default_rng(0)

        def data(kind: GGMLType, shape: tuple[int, ...]) -> Iterator[Any]:
            if len(shape) == 1:
                yield np.ones(shape, np.float32)
                return
            key = kind, shape[-1]
            if key not in made:
                values = rng.standard_normal((ROWS, shape[-1])).astype(np.float32) * np.float32(shape[-1] ** -0.5)
                made[key] = quantize(kind, values)
            for at in range(0, math.prod(shape[:-1]), ROWS):
                yield made[key][: math.prod(shape[:-1]) - at]

        tensors = [
            (choice.name, choice.shape, choice.type, lambda c=choice: data(c.type, c.shape))
            for choice in choose(quant, list(shapes.items()), facts)
        ]
        write_gguf(out, prefix | metadata, tensors)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("like", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quant", default="q4_k_m")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--ff", type=int, default=8192)
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--used", type=int, default=2)
    options = vars(parser.parse_args())
    random_llama(options.pop("like"), options.pop("out"), **options)


if __name__ == "__main__":
    main()
