"""Tiny random models for tests: real architectures, two layers, vocabularies of a few hundred tokens.

`tiny("llama").write(path)`; change `.metadata` or `.tensors` before writing to make a model that is wrong in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import write_gguf


@dataclass
class Tiny:
    """metadata as `write_gguf` takes it; tensors: name -> (shape, type, stored bytes or array)."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], GGMLType, Any]]

    def write(self, path: Path) -> Path:
        write_gguf(path, self.metadata, [(name, *rest) for name, rest in self.tensors.items()])
        return path


def byte_characters() -> list[str]:
    """The 256 characters that byte-level BPE writes for the bytes 0 to 255 (GPT-2's alphabet)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


def bpe_vocabulary() -> dict[str, Any]:
    """Byte-level BPE: 3 control tokens, 256 byte characters, a few merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "t h", "Ġ t", "e r"]
    tokens = ["<|end|>", "<|bos|>", "<|pad|>", *byte_characters(), *(merge.replace(" ", "") for merge in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3, 3] + [1] * (len(tokens) - 3), np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def spm_vocabulary() -> dict[str, Any]:
    """SentencePiece: unknown, bos, eos, 256 byte tokens, printable ASCII and a few longer pieces."""
    pieces = ["▁", *map(chr, range(33, 127)), "he", "ll", "hell", "hello", "▁w", "or", "ld", "▁world", "▁the", "er"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def quantize(values: NDArray[np.float32], kind: GGMLType) -> NDArray[Any]:
    """Stored bytes of a weight: F32, F16, or what the `gguf` package can quantize; random blocks for the others."""
    if kind is GGMLType.F32:
        return values
    if kind is GGMLType.F16:
        return values.astype(np.float16)
    import gguf

    try:
        return gguf.quantize(values, gguf.GGMLQuantizationType(kind))
    except (NotImplementedError, ValueError):
        size = kind.nbytes(values.shape)
        return np.random.default_rng(size).integers(0, 64, size, np.uint8)


def tiny(
    arch: str = "llama",
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    weights: GGMLType = GGMLType.F32,
    seed: int = 0,
) -> Tiny:
    """A random model of `arch`: llama, mixtral (llama with experts), qwen2, qwen3, qwen3moe, granite, smollm3, olmo2,
    phi3, gemma, gemma2, gemma3, mamba (recurrent), lfm2 (its first layer is a convolution, the others attend).
    The Gemmas have a SentencePiece vocabulary, the others byte-level BPE.
    """
    rng = np.random.default_rng(seed)
    family = "llama" if arch == "mixtral" else arch
    gemma, moe = arch.startswith("gemma"), arch in ("mixtral", "qwen3moe")
    if arch in ("qwen2", "olmo2", "phi3"):
        kv_heads = heads if arch == "phi3" else kv_heads
    head = hidden // heads
    ff, experts = 2 * hidden, 4
    q, k = heads * head, kv_heads * head
    vocabulary = spm_vocabulary() if gemma else bpe_vocabulary()
    metadata: dict[str, Any] = {
        "general.architecture": family,
        "general.name": "tiny",
        f"{family}.block_count": layers,
        f"{family}.context_length": 512,
        f"{family}.embedding_length": hidden,
        f"{family}.feed_forward_length": ff,
        f"{family}.attention.head_count": heads,
        f"{family}.attention.head_count_kv": kv_heads,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10000.0,
    }
    if arch == "llama":
        metadata["llama.rope.dimension_count"] = head
    if moe:
        metadata |= {f"{family}.expert_count": experts, f"{family}.expert_used_count": 2}
    if arch == "qwen3moe":
        metadata["qwen3moe.expert_feed_forward_length"] = ff
    if arch == "granite":
        metadata |= {"granite.logit_scale": 8.0, "granite.residual_scale": 0.2, "granite.embedding_scale": 12.0}
    if arch in ("gemma2", "gemma3"):
        metadata[f"{arch}.attention.sliding_window"] = 16
    if arch == "mamba":
        inner, state, rank, kernel = 2 * hidden, 8, 4, 4
        metadata |= {"mamba.ssm.conv_kernel": kernel, "mamba.ssm.inner_size": inner, "mamba.ssm.state_size": state}
        metadata |= {"mamba.ssm.time_step_rank": rank, "mamba.attention.head_count": 0}
        metadata |= {"mamba.attention.head_count_kv": 0, "mamba.feed_forward_length": 0}
    if arch == "lfm2":
        metadata["lfm2.shortconv.l_cache"] = 3
        metadata["lfm2.attention.head_count_kv"] = [0] + [kv_heads] * (layers - 1)
    metadata |= vocabulary
    rows = len(vocabulary["tokenizer.ggml.tokens"])

    norm = "token_embd_norm" if arch == "lfm2" else "output_norm"
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, hidden), f"{norm}.weight": (hidden,)}
    if arch in ("llama", "olmo2", "qwen3"):
        shapes["output.weight"] = (rows, hidden)
    for i in range(layers):
        layer: dict[str, tuple[int, ...]] = {"attn_output.weight": (hidden, q)}
        if arch == "phi3":
            layer |= {"attn_qkv.weight": (q + 2 * k, hidden), "ffn_up.weight": (2 * ff, hidden)}
            layer["ffn_down.weight"] = (hidden, ff)
        else:
            layer |= {"attn_q.weight": (q, hidden), "attn_k.weight": (k, hidden), "attn_v.weight": (k, hidden)}
            if moe:
                layer |= {"ffn_gate_inp.weight": (experts, hidden), "ffn_gate_exps.weight": (experts, ff, hidden)}
                layer |= {"ffn_up_exps.weight": (experts, ff, hidden), "ffn_down_exps.weight": (experts, hidden, ff)}
            else:
                layer |= {"ffn_gate.weight": (ff, hidden), "ffn_up.weight": (ff, hidden)}
                layer["ffn_down.weight"] = (hidden, ff)
        if arch != "olmo2":
            layer |= {"attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,)}
        if arch in ("olmo2", "gemma2", "gemma3"):
            layer |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
        if arch in ("qwen3", "qwen3moe", "gemma3"):
            layer |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        if arch == "olmo2":
            layer |= {"attn_q_norm.weight": (q,), "attn_k_norm.weight": (k,)}
        if arch == "qwen2":
            layer |= {"attn_q.bias": (q,), "attn_k.bias": (k,), "attn_v.bias": (k,)}
        if arch == "lfm2" and i == 0:
            layer = {role: shape for role, shape in layer.items() if not role.startswith("attn_") or "norm" in role}
            layer |= {"shortconv.conv.weight": (hidden, 3), "shortconv.in_proj.weight": (3 * hidden, hidden)}
            layer["shortconv.out_proj.weight"] = (hidden, hidden)
        elif arch == "lfm2":
            layer |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        if arch == "mamba":
            layer = {"attn_norm.weight": (hidden,), "ssm_in.weight": (2 * inner, hidden)}
            layer |= {"ssm_conv1d.weight": (inner, kernel), "ssm_conv1d.bias": (inner,)}
            layer |= {"ssm_x.weight": (rank + 2 * state, inner), "ssm_dt.weight": (inner, rank)}
            layer |= {"ssm_dt.bias": (inner,), "ssm_a": (inner, state), "ssm_d": (inner,)}
            layer["ssm_out.weight"] = (hidden, inner)
        shapes |= {f"blk.{i}.{role}": shape for role, shape in layer.items()}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(hidden**-0.5)
        if name.endswith("ssm_a"):
            values = -np.exp(values)  # a state that decays
        small = len(shape) == 1 or shape[-1] % weights.block_size != 0 or "gate_inp" in name
        kind = GGMLType.F32 if small else weights
        tensors[name] = (shape, kind, quantize(values, kind))
    return Tiny(metadata, tensors)
