"""check_header: is this file known to be safe to load in this process?

llama.cpp ends its whole process (an assertion, an exception nobody catches, a wild read) on many headers that are well
formed but make no sense. What is written here as data is what it was seen to load and run without harm: per
architecture the keys with their ranges, every tensor with the shape that follows from them, and a vocabulary that its
tokenizer can hold. Whatever is outside is not refused: it is tried in a child process first (`proof.py`).

Names and shapes: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `src/models/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_strings import StringArray

Key = tuple[str, float, float]  # stored type, smallest and largest allowed value
Shapes = Mapping[str, str]  # tensor role -> names of its dimensions, rows first

# Types with a CPU matrix product; one-dimensional tensors and rope factors are F32.
WEIGHT_TYPES = frozenset(GGMLType) - {
    GGMLType.Q8_1, GGMLType.Q8_K, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64,
    GGMLType.NVFP4, GGMLType.Q1_0, GGMLType.Q2_0,
}  # fmt: skip

EDITION = 1  # goes up when this file gets stricter, so that remembered answers are not used

_COUNT = ("u32", 1, 1 << 27)
_SCALE = ("f32", 9e-7, 1e6)  # limits leave room for the rounding of f32
_REQUIRED: Mapping[str, Key] = {
    "block_count": ("u32", 1, 512),
    "context_length": _COUNT,
    "embedding_length": ("u32", 32, 1 << 16),
    "feed_forward_length": ("u32", 32, 1 << 20),
    "attention.head_count": ("u32", 1, 1024),
    "attention.layer_norm_rms_epsilon": ("f32", 9e-13, 1.1e-2),
}
_OPTIONAL: Mapping[str, Key] = {
    "attention.head_count_kv": ("u32", 1, 1024),
    "attention.key_length": ("u32", 16, 512),
    "attention.value_length": ("u32", 16, 512),
    "rope.dimension_count": ("u32", 2, 512),
    "rope.freq_base": ("f32", 1, 1.1e12),
    "rope.scaling.factor": ("f32", 9e-3, 1e4),
    "rope.scaling.original_context_length": _COUNT,
    "rope.scaling.attn_factor": ("f32", 9e-3, 1e2),
    "rope.scaling.finetuned": ("bool", 0, 1),
    "vocab_size": _COUNT,
}
_SWA: Mapping[str, Key] = {
    "attention.sliding_window": ("u32", 1, 1 << 20),
    "attention.sliding_window_pattern": ("u32", 2, 64),
    "rope.freq_base_swa": ("f32", 1, 1.1e12),
    "attn_logit_softcapping": ("f32", 9e-4, 1e6),
    "final_logit_softcapping": ("f32", 9e-4, 1e6),
}
_EXPERTS: Mapping[str, Key] = {
    "expert_count": ("u32", 2, 1024),
    "expert_used_count": ("u32", 1, 1024),
    "expert_feed_forward_length": ("u32", 32, 1 << 20),
}
_GRANITE: Mapping[str, Key] = {
    "logit_scale": _SCALE, "residual_scale": _SCALE, "embedding_scale": _SCALE, "attention.scale": _SCALE,
}  # fmt: skip

# Dimensions: E embedding, V vocabulary, Q query heads × head size H, K key heads × H, F feed-forward, N experts,
# X feed-forward of one expert, R half of the rotated part of a head; "A+B" is a sum.
_QKV: Shapes = {"attn_q.weight": "Q E", "attn_k.weight": "K E", "attn_v.weight": "K E", "attn_output.weight": "E Q"}
_BIAS: Shapes = {"attn_q.bias": "Q", "attn_k.bias": "K", "attn_v.bias": "K"}
_PRE: Shapes = {"attn_norm.weight": "E", "ffn_norm.weight": "E"}
_POST: Shapes = {"post_attention_norm.weight": "E", "post_ffw_norm.weight": "E"}
_HEAD_NORM: Shapes = {"attn_q_norm.weight": "H", "attn_k_norm.weight": "H"}
_FFN: Shapes = {"ffn_gate.weight": "F E", "ffn_up.weight": "F E", "ffn_down.weight": "E F"}
_MOE: Shapes = {
    "ffn_gate_inp.weight": "N E", "ffn_gate_exps.weight": "N X E", "ffn_up_exps.weight": "N X E",
    "ffn_down_exps.weight": "N E X",
}  # fmt: skip
_LLAMA_BIAS: Shapes = {
    **_BIAS, "attn_output.bias": "E", "ffn_gate.bias": "F", "ffn_up.bias": "F", "ffn_down.bias": "E",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What a known architecture may look like.

    layer: tensors of every layer; extra: those that all layers have or none; globals: optional tensors outside the
    layers. square: query heads fill the embedding exactly. partial: fewer dimensions than the head may be rotated.
    """

    layer: Shapes
    extra: Shapes = field(default_factory=dict)
    globals: Shapes = field(default_factory=dict)
    required: Mapping[str, Key] = field(default_factory=dict)
    optional: Mapping[str, Key] = field(default_factory=dict)
    square: bool = False
    partial: bool = False


_OUTPUT: Shapes = {"output.weight": "V E"}
_ROPE: Shapes = {"rope_freqs.weight": "R"}
_LONGROPE: Shapes = {"rope_factors_long.weight": "R", "rope_factors_short.weight": "R"}
_LLAMA = Architecture({**_PRE, **_QKV, **_FFN}, _LLAMA_BIAS, {**_OUTPUT, **_ROPE})
_EXPERTS_USED = {key: _EXPERTS[key] for key in ("expert_count", "expert_used_count")}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "llama with experts": Architecture(
        {**_PRE, **_QKV, **_MOE}, _BIAS, {**_OUTPUT, **_ROPE}, required=_EXPERTS_USED
    ),
    "granite": Architecture(_LLAMA.layer, _LLAMA_BIAS, _LLAMA.globals, {"logit_scale": _SCALE}, _GRANITE),
    "smollm3": Architecture(_LLAMA.layer, _BIAS, _OUTPUT),
    "qwen2": Architecture(_LLAMA.layer, _BIAS, _OUTPUT, square=True),
    "qwen3": Architecture({**_LLAMA.layer, **_HEAD_NORM}, _BIAS, _OUTPUT),
    "qwen3moe": Architecture({**_PRE, **_QKV, **_MOE, **_HEAD_NORM}, _BIAS, _OUTPUT, required=_EXPERTS),
    "gemma": Architecture(_LLAMA.layer),
    "gemma2": Architecture({**_LLAMA.layer, **_POST}, optional=_SWA),
    "gemma3": Architecture({**_LLAMA.layer, **_POST, **_HEAD_NORM}, {}, _OUTPUT, optional=_SWA),
    "phi3": Architecture(
        {**_PRE, "attn_qkv.weight": "Q+K+K E", "attn_output.weight": "E Q", "ffn_up.weight": "F+F E",
         "ffn_down.weight": "E F"},
        {}, {**_OUTPUT, **_LONGROPE}, optional={"attention.sliding_window": ("u32", 0, 1 << 20)},
        square=True, partial=True,
    ),
    "olmo2": Architecture(
        {**_QKV, **_FFN, **_POST, "attn_q_norm.weight": "Q", "attn_k_norm.weight": "K", "output.weight": "V E"},
        square=True,
    ),
}  # fmt: skip

_TOKEN_IDS = re.compile(r"tokenizer\.ggml\.(bos|eos|eot|eom|unknown|seperator|padding|cls|mask|fim_\w\w\w)_token_id")
_VOCAB_KEYS = {
    "model": "str", "pre": "str", "tokens": "str[]", "token_type": "i32[]", "scores": "f32[]", "merges": "str[]",
    "add_bos_token": "bool", "add_eos_token": "bool", "add_space_prefix": "bool", "add_sep_token": "bool",
    "remove_extra_whitespaces": "bool",
}  # fmt: skip
_PRE_TOKENIZERS = frozenset({
    "default", "llama3", "llama-v3", "llama-bpe", "gpt-2", "qwen2", "deepseek-r1-qwen", "smollm", "tekken", "olmo",
    "dbrx", "phi-2", "gpt-4o", "refact", "starcoder", "stablelm2", "smaug-bpe", "command-r", "falcon", "falcon3", "mpt",
    "deepseek-llm", "deepseek-coder",
})  # fmt: skip
_MAX_TOKENS, _MAX_VOCAB_BYTES = 1 << 19, 1 << 23
_BYTE_TOKENS = frozenset(b"<0x%02X>" % byte for byte in range(256))


def check_header(file: GGUFFile) -> list[str]:
    """The reasons (some of them) why this file is not known to be safe to load in this process; none means safe.

    Raises InvalidModelFile for a file that is no language model at all.
    """
    if not file.tensors or not file.get("general.architecture", str, ""):
        what = "no general.architecture" if file.tensors else "no tensors"
        raise InvalidModelFile(f"{file.path}: has {what}; it is not a language model: fetch or convert it again")
    name = file.metadata["general.architecture"]
    known = ARCHITECTURES.get(f"{name} with experts" if f"{name}.expert_count" in file.metadata else name)
    known = known or ARCHITECTURES.get(name)
    if known is None:
        return [f"architecture {name[:64]!r} has no list of safe values"]
    reasons = [f"alignment {file.alignment} is below 32"] if file.alignment < 32 else []
    values, wrong = _values(file, name, known)
    reasons += wrong
    if not reasons:
        dims, wrong = _dimensions(values, known)
        reasons += wrong
    if not reasons:
        reasons += _check_tensors(file, known, dims, int(values["block_count"]))
    if not reasons:  # the slowest, so last
        reasons += _check_vocabulary(file, dims["V"], int(values.get("vocab_size", 0)))
    return [reason[:200] for reason in reasons[:8]]


def _values(file: GGUFFile, name: str, known: Architecture) -> tuple[dict[str, float], list[str]]:
    """The architecture's own keys, each of the right type and inside its range."""
    required = {**_REQUIRED, **known.required}
    allowed = {**_OPTIONAL, **required, **known.optional}
    values: dict[str, float] = {}
    reasons = [f"{name}.{key} is missing" for key in required if f"{name}.{key}" not in file.metadata]
    for full in file.metadata:
        key = full.removeprefix(f"{name}.")
        if full.startswith("general.tensor_extra"):
            reasons.append(f"unusual key {full}")
        if key == full:
            continue
        if key == "rope.scaling.type":
            if file.kind(full) != "str" or file.metadata[full] not in ("none", "linear", "yarn"):
                reasons.append(f"{full} is not none, linear or yarn")
        elif key not in allowed:
            reasons.append(f"unusual key {full}")
        else:
            kind, low, high = allowed[key]
            value = file.metadata[full] if file.kind(full) == kind else None
            if value is None or not low <= value <= high:
                found = file.kind(full) if value is None else f"{value:g}"
                reasons.append(f"{full} is {found}, not {kind} from {low:g} to {high:g}")
            else:
                values[key] = value
    return values, reasons


def _dimensions(values: Mapping[str, float], known: Architecture) -> tuple[dict[str, int], list[str]]:
    """The sizes that the tensors must have; V is filled from the embedding later on."""
    number = {key: int(value) for key, value in values.items()}
    embed, heads = number["embedding_length"], number["attention.head_count"]
    kv_heads = number.get("attention.head_count_kv", heads)
    head = number.get("attention.key_length", embed // heads)
    rotated = number.get("rope.dimension_count", head)
    experts, used = number.get("expert_count", 0), number.get("expert_used_count", 0)
    rules = {
        f"head_count {heads} is not a multiple of head_count_kv {kv_heads}": heads % kv_heads == 0,
        f"embedding_length {embed} is not a multiple of 32": embed % 32 == 0,
        f"embedding_length {embed} is not a multiple of head_count {heads}": (
            "attention.key_length" in number or embed % heads == 0
        ),
        f"head size {head} is not a multiple of 16": 16 <= head <= 512 and head % 16 == 0,
        "key_length and value_length differ": number.get("attention.value_length", embed // heads) == head,
        f"{heads} heads of {head} do not fill the embedding": not known.square or heads * head == embed,
        f"{rotated} rotated dimensions do not fit a head of {head}": (
            rotated == head or (known.partial and rotated % 2 == 0 and rotated <= head)
        ),
        f"{used} of {experts} experts are used": used <= experts,
    }
    sizes = {
        "E": embed, "H": head, "Q": heads * head, "K": kv_heads * head, "R": rotated // 2, "V": 0,
        "F": number["feed_forward_length"], "N": experts,
        "X": number.get("expert_feed_forward_length", number["feed_forward_length"]),
    }  # fmt: skip
    return sizes, [reason for reason, holds in rules.items() if not holds]


def _check_tensors(file: GGUFFile, known: Architecture, dims: dict[str, int], layers: int) -> list[str]:
    """Every tensor that must be there is, with its shape and a type the engine computes with; no other one is."""
    if "token_embd.weight" not in file.tensors:
        return ["token_embd.weight is missing"]
    dims["V"] = file.tensors["token_embd.weight"].shape[0]
    in_layer = {role: shape for role, shape in known.layer.items() if role != "output.weight"}
    expected = {"token_embd.weight": "V E", "output_norm.weight": "E"}
    expected |= {role: shape for role, shape in known.layer.items() if role == "output.weight"}
    expected |= {role: shape for role, shape in known.globals.items() if role in file.tensors}
    in_layer |= {role: shape for role, shape in known.extra.items() if f"blk.0.{role}" in file.tensors}
    expected |= {f"blk.{i}.{role}": shape for i in range(layers) for role, shape in in_layer.items()}
    if missing := [name for name in expected if name not in file.tensors]:
        return [f"tensor {missing[0]} is missing"]
    if unknown := [name for name in file.tensors if name not in expected]:
        return [f"unusual tensor {unknown[0]}"]
    if len(_LONGROPE.keys() & expected.keys()) == 1:
        return ["only one of the two sets of rope factors is there"]
    for name, shape in expected.items():
        info = file.tensors[name]
        wanted = tuple(sum(dims[part] for part in size.split("+")) for size in shape.split())
        if info.shape != wanted:
            return [f"tensor {name} has the shape {info.shape}, not {wanted}"]
        if info.type not in WEIGHT_TYPES or (len(wanted) == 1 and info.type is not GGMLType.F32):
            return [f"tensor {name} is stored as {info.type.name}"]
    return []


def _check_vocabulary(file: GGUFFile, rows: int, claimed: int) -> list[str]:
    """What llama.cpp's tokenizers need: unique UTF-8 tokens, one per embedding row, types, and scores or merges."""
    prefix = "tokenizer.ggml."
    reasons = [
        f"unusual key {key}"
        for key in file.metadata
        if key.startswith(prefix)
        and (
            not (file.kind(key) == "u32" and file.metadata[key] < rows)
            if _TOKEN_IDS.fullmatch(key)
            else file.kind(key) != _VOCAB_KEYS.get(key.removeprefix(prefix))
        )
    ]
    if reasons:
        return reasons
    empty = np.empty(0)
    model, pre = file.get(prefix + "model", str, ""), file.get(prefix + "pre", str, "default")
    words = file.get(prefix + "tokens", StringArray, None)
    types = file.get(prefix + "token_type", np.ndarray, empty)
    if model not in ("llama", "gpt2") or (model == "gpt2" and pre not in _PRE_TOKENIZERS):
        return [f"unusual tokenizer {model!r} with pre-tokenizer {pre!r}"]
    if words is None or len(words) != rows or claimed not in (0, rows) or not 256 <= rows <= _MAX_TOKENS:
        return [f"{0 if words is None else len(words)} tokens for {rows} rows of embeddings"]
    if len(types) != rows or types.min() < 1 or types.max() > 6:
        return ["token types are missing or unknown"]
    tokens = list(words) if words.nbytes <= _MAX_VOCAB_BYTES else []
    distinct = frozenset(tokens)
    if len(distinct) != rows or b"" in distinct or not _is_text(tokens):
        return ["tokens are too long, empty, repeated or not UTF-8"]
    if model == "gpt2":
        merges = file.get(prefix + "merges", StringArray, None)
        well = 6 not in types and merges is not None and _are_merges(merges)
        return [] if well else ["byte tokens or merges are wrong"]
    scores = file.get(prefix + "scores", np.ndarray, empty)
    if len(scores) != rows or not np.isfinite(scores).all():
        return ["token scores are missing or not finite"]
    if not distinct >= _BYTE_TOKENS or not _BYTE_TOKENS.issuperset(tokens[i] for i in np.flatnonzero(types == 6)):
        return ["byte tokens are missing or malformed"]
    return []


def _is_text(pieces: list[bytes]) -> bool:
    """Each piece is UTF-8 without a zero byte. Zero bytes between them keep halves of a character apart."""
    joined = b"\0".join(pieces)
    try:
        joined.decode()
    except UnicodeDecodeError:
        return False
    return joined.count(b"\0") == len(pieces) - 1


def _are_merges(merges: StringArray) -> bool:
    """Each merge is two texts with one space between them."""
    if len(merges) > 2 * _MAX_TOKENS or merges.nbytes > 2 * _MAX_VOCAB_BYTES:
        return False
    pairs = list(merges)
    return all(pair.count(b" ") == 1 and pair[0] != 32 and pair[-1] != 32 for pair in pairs) and _is_text(pairs)
