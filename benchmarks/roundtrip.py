"""A real GGUF file to a Hugging Face folder and back: are the logits equal?

    python benchmarks/roundtrip.py MODEL.gguf --text FILE [--positions 2000] [--context 500] [--json]

MODEL → safetensors f32 → transformers, and that folder → GGUF f32 → llama.cpp with an f32 KV cache, flash attention
off: the largest difference of a logit, and the KL divergence, over the positions, in contexts of `--context` tokens.
Beside it MODEL itself in llama.cpp, which differs by what its quantized kernels round (8-bit activations). Needs torch
and transformers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


class Compared:
    """Differences of one engine's logits from another's, a slice of positions at a time."""

    def __init__(self) -> None:
        self.largest, self.kl, self.same, self.count = 0.0, 0.0, 0, 0

    def add(self, base: NDArray[np.float32], other: NDArray[np.float32]) -> None:
        self.largest = max(self.largest, float(np.abs(base - other).max()))
        p, q = log_softmax(base), log_softmax(other)
        self.kl += float((np.exp(p) * (p - q)).sum())
        self.same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        self.count += len(base)

    def to_dict(self) -> dict[str, Any]:
        return {
            "largest_difference": self.largest,
            "mean_kl": self.kl / self.count,
            "same_top1": self.same,
            "positions": self.count,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--context", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import edgellm
    from edgellm.converters import ConvertParams, convert

    report: dict[str, Any] = {"model": str(options.model)}
    with tempfile.TemporaryDirectory() as where:
        folder, back = Path(where) / "hf", Path(where) / "back.gguf"
        convert(options.model, folder, ConvertParams(to="safetensors", quant="f32", verify=False))
        convert(folder, back, ConvertParams(quant="f32", verify=False))
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        text = options.text.read_text(encoding="utf-8")
        with edgellm.load(back, kv_type="f32", flash_attention=False) as f32, edgellm.load(options.model) as original:
            tokens = f32.encode(text)[: options.positions]
            report["same_tokens"] = AutoTokenizer.from_pretrained(folder)(text).input_ids[: len(tokens)] == tokens
            compared = {"f32 against transformers": Compared(), "original against transformers": Compared()}
            bos = [] if f32.info.bos_id is None or tokens[0] != f32.info.bos_id else tokens[:1]
            step = options.context - len(bos)
            for start in range(len(bos), len(tokens), step):
                part = bos + tokens[start : start + step]
                with torch.no_grad():
                    base = reference(torch.tensor([part])).logits[0].numpy()  # (len(part), n_vocab) float32
                for one, model in zip(compared.values(), (f32, original), strict=True):
                    at = 0
                    for rows in model.logits(part):
                        one.add(base[at : at + len(rows)], rows)
                        at += len(rows)
    report |= {name: one.to_dict() for name, one in compared.items()}
    print(json.dumps(report, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
