"""Tiny random models for tests: real architectures, two layers, vocabularies of a few hundred tokens.

`tiny("llama").write(path)`; change `.metadata` or `.tensors` before writing to make a model that is wrong in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import ARCHITECTURES, Architecture, Hyper, Rope
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


def wordpiece_vocabulary() -> dict[str, Any]:
    """WordPiece: the special tokens, and words of one character."""
    special = ["[UNK]", "[CLS]", "[PAD]", "[SEP]", "[MASK]"]
    tokens = special + ["▁" + chr(0x4E00 + i) for i in range(271 - len(special))]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3] * len(special) + [1] * (len(tokens) - len(special)), np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.cls_token_id": 1,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
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


Shapes = dict[str, tuple[int, ...]]
VOCABULARIES = dict.fromkeys(("gemma", "gemma2", "gemma3"), spm_vocabulary) | dict.fromkeys(
    ("bert", "nomic-bert"), wordpiece_vocabulary
)


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
    """A random model of `arch`: a family of `edgellm.architectures`, by GGUF's name or transformers', or mamba
    (recurrent), or lfm2 (its first layer is a convolution, the others attend).

    Key-values that llama.cpp can do without are left out. The Gemmas have a SentencePiece vocabulary, BERT WordPiece,
    the others byte-level BPE.
    """
    rng = np.random.default_rng(seed)
    others = {"mamba": _mamba, "lfm2": _lfm2}
    if arch in others:
        name, vocabulary = arch, bpe_vocabulary()
        numbers, shapes = others[arch](len(vocabulary["tokenizer.ggml.tokens"]), hidden, layers, heads, kv_heads)
    else:
        family = next(one for one in ARCHITECTURES if arch in (one.gguf, one.model_type))
        name, vocabulary = family.gguf, VOCABULARIES.get(family.gguf, bpe_vocabulary)()
        hyper = _hyper(family, len(vocabulary["tokenizer.ggml.tokens"]), hidden, layers, heads, kv_heads)
        numbers, shapes = family.metadata(hyper), family.tensors(hyper, ())
        for key in ("attention.key_length", "attention.value_length", "vocab_size"):
            numbers.pop(f"{name}.{key}", None)
    tensors = {}
    for tensor, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(hidden**-0.5)
        if tensor.endswith("ssm_a"):
            values = -np.exp(values)  # a state that decays
        small = len(shape) == 1 or shape[-1] % weights.block_size != 0 or "gate_inp" in tensor or "types" in tensor
        kind = GGMLType.F32 if small else weights
        tensors[tensor] = (shape, kind, quantize(values, kind))
    return Tiny({"general.architecture": name, "general.name": "tiny", **numbers, **vocabulary}, tensors)


def _hyper(family: Architecture, rows: int, hidden: int, layers: int, heads: int, kv_heads: int) -> Hyper:
    """The numbers of a family: of those that only some families have, the ones for which the table has a key."""
    more: dict[str, Any] = {"window": 16, "n_expert": 4, "n_expert_used": 2, "n_ff_expert": 2 * hidden}
    more |= {"logit_scale": 8.0, "residual_scale": 0.2, "embedding_scale": 12.0, "n_token_types": 2}
    own = {key.field for key in family.keys} | ({"n_ff_expert"} if family.model_type == "mixtral" else set())
    grouped = any(key.field == "n_head_kv" and key.config for key in family.keys)
    return Hyper(
        gguf=family.gguf,
        model_type=family.model_type,
        n_layer=layers,
        n_embd=hidden,
        n_ff=2 * hidden,
        n_head=heads,
        n_head_kv=kv_heads if grouped else heads,
        head_dim=hidden // heads,
        n_vocab=rows,
        n_ctx_train=512,
        norm_eps=1e-5,
        rope=Rope(10000.0, hidden // heads) if family.scalings else None,
        tied=family.expect.get("tie_word_embeddings", (family.tied,))[0],
        **{**family.constants, **{field: value for field, value in more.items() if field in own}},
    )


def _usual(name: str, hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    numbers = {
        "block_count": layers,
        "context_length": 512,
        "embedding_length": hidden,
        "feed_forward_length": 2 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    return {f"{name}.{key}": value for key, value in numbers.items()}


def _mamba(rows: int, hidden: int, layers: int, heads: int, kv_heads: int) -> tuple[dict[str, Any], Shapes]:
    inner, state, rank, kernel = 2 * hidden, 8, 4, 4
    numbers = _usual("mamba", hidden, layers, 0, 0) | {"mamba.feed_forward_length": 0, "mamba.ssm.state_size": state}
    numbers |= {"mamba.ssm.conv_kernel": kernel, "mamba.ssm.inner_size": inner, "mamba.ssm.time_step_rank": rank}
    shapes: Shapes = {"token_embd.weight": (rows, hidden), "output_norm.weight": (hidden,)}
    layer: Shapes = {"attn_norm.weight": (hidden,), "ssm_in.weight": (2 * inner, hidden)}
    layer |= {"ssm_conv1d.weight": (inner, kernel), "ssm_conv1d.bias": (inner,)}
    layer |= {"ssm_x.weight": (rank + 2 * state, inner), "ssm_dt.weight": (inner, rank)}
    layer |= {"ssm_dt.bias": (inner,), "ssm_a": (inner, state), "ssm_d": (inner,), "ssm_out.weight": (hidden, inner)}
    shapes |= {f"blk.{i}.{role}": shape for i in range(layers) for role, shape in layer.items()}
    return numbers, shapes


def _lfm2(rows: int, hidden: int, layers: int, heads: int, kv_heads: int) -> tuple[dict[str, Any], Shapes]:
    numbers = _usual("lfm2", hidden, layers, heads, kv_heads) | {"lfm2.shortconv.l_cache": 3}
    numbers["lfm2.attention.head_count_kv"] = [0] + [kv_heads] * (layers - 1)
    head, ff = hidden // heads, 2 * hidden
    shapes: Shapes = {"token_embd.weight": (rows, hidden), "token_embd_norm.weight": (hidden,)}
    both: Shapes = {"attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,), "ffn_gate.weight": (ff, hidden)}
    both |= {"ffn_up.weight": (ff, hidden), "ffn_down.weight": (hidden, ff)}
    first: Shapes = {"shortconv.conv.weight": (hidden, 3), "shortconv.in_proj.weight": (3 * hidden, hidden)}
    first |= {"shortconv.out_proj.weight": (hidden, hidden)}
    rest: Shapes = {"attn_q.weight": (hidden, hidden), "attn_output.weight": (hidden, hidden)}
    rest |= {f"attn_{part}.weight": (kv_heads * head, hidden) for part in "kv"}
    rest |= {f"attn_{part}_norm.weight": (head,) for part in "qk"}
    for i in range(layers):
        shapes |= {f"blk.{i}.{role}": shape for role, shape in {**both, **(rest if i else first)}.items()}
    return numbers, shapes
