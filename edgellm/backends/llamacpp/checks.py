"""check_header: is this file known to be safe to load in this process?

llama.cpp ends its whole process (an assertion, an exception nobody catches, a wild read) on many headers that are well
formed but make no sense. Known is what it was seen to load and run without harm: a family of `edgellm.architectures`,
whose table says which keys and which tensors of which shape there are, numbers in the ranges written here, and a
vocabulary that its tokenizer can hold. Whatever is outside is not refused: it is tried in a child process first
(`proof.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_strings import StringArray

if TYPE_CHECKING:
    from edgellm.architectures import Architecture, Hyper

Range = tuple[str, float, float]  # stored type, smallest and largest allowed value

# Types with a CPU matrix product; one-dimensional tensors and rope factors are F32.
WEIGHT_TYPES = frozenset(GGMLType) - {
    GGMLType.Q8_1, GGMLType.Q8_K, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64,
    GGMLType.NVFP4, GGMLType.Q1_0, GGMLType.Q2_0,
}  # fmt: skip
_ADDED = frozenset({"token_types.weight"})  # a row of it is added as it is, which works with F32 only

EDITION = 2  # goes up when this file or a table gets stricter, so that remembered answers are not used

_COUNT, _EXPERTS, _FLAG = ("u32", 1, 1 << 27), ("u32", 1, 1024), ("bool", 0, 1)
_SCALE, _THETA = ("f32", 9e-7, 1e6), ("f32", 1, 1.1e12)  # limits leave room for the rounding of f32
_EPSILON, _CAP = ("f32", 9e-13, 1.1e-2), ("f32", 9e-4, 1e6)
RANGES: Mapping[str, Range] = {  # of keys below the architecture's name; a full name goes before
    "block_count": ("u32", 1, 512),
    "context_length": _COUNT,
    "embedding_length": ("u32", 32, 1 << 16),
    "feed_forward_length": ("u32", 32, 1 << 20),
    "vocab_size": _COUNT,
    "attention.head_count": ("u32", 1, 1024),
    "attention.head_count_kv": ("u32", 1, 1024),
    "attention.key_length": ("u32", 16, 512),
    "attention.value_length": ("u32", 16, 512),
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.causal": _FLAG,
    "attention.scale": _SCALE,
    "attention.temperature_scale": ("f32", 0, 1e1),
    "attention.sliding_window": ("u32", 1, 1 << 20),
    "attention.sliding_window_pattern": ("u32", 2, 64),
    "phi3.attention.sliding_window": ("u32", 0, 1 << 20),  # which llama.cpp does not use
    "rope.dimension_count": ("u32", 2, 512),
    "rope.freq_base": _THETA,
    "rope.freq_base_swa": _THETA,
    "rope.scaling.factor": ("f32", 9e-3, 1e4),
    "rope.scaling.original_context_length": _COUNT,
    "rope.scaling.attn_factor": ("f32", 9e-3, 1e2),
    "rope.scaling.yarn_log_multiplier": ("f32", 0, 1e1),
    "rope.scaling.yarn_attn_factor": ("f32", 9e-3, 1e2),
    "rope.scaling.yarn_ext_factor": ("f32", 1, 1),
    "rope.scaling.yarn_beta_fast": ("f32", 1.1, 1e3),
    "rope.scaling.yarn_beta_slow": ("f32", 1, 1),
    "rope.scaling.finetuned": _FLAG,
    "attn_logit_softcapping": _CAP,
    "final_logit_softcapping": _CAP,
    "logit_scale": _SCALE,
    "residual_scale": _SCALE,
    "embedding_scale": _SCALE,
    "use_parallel_residual": _FLAG,
    "expert_count": ("u32", 2, 1024),
    "expert_used_count": _EXPERTS,
    "expert_feed_forward_length": ("u32", 32, 1 << 20),
    "pooling_type": ("u32", 0, 4),
}

_TOKEN_IDS = re.compile(r"tokenizer\.ggml\.(bos|eos|eot|eom|unknown|seperator|padding|cls|mask|fim_\w\w\w)_token_id")
_VOCAB_KEYS = {
    "model": "str", "pre": "str", "tokens": "str[]", "token_type": "i32[]", "scores": "f32[]", "merges": "str[]",
    "add_bos_token": "bool", "add_eos_token": "bool", "add_space_prefix": "bool", "add_sep_token": "bool",
    "remove_extra_whitespaces": "bool", "token_type_count": "u32", "normalizer.lowercase": "bool",
    "normalizer.strip_accents": "bool",
}  # fmt: skip
_PRE_TOKENIZERS = frozenset({
    "default", "llama3", "llama-v3", "llama-bpe", "gpt-2", "qwen2", "deepseek-r1-qwen", "smollm", "tekken", "olmo",
    "dbrx", "phi-2", "gpt-4o", "refact", "starcoder", "stablelm2", "smaug-bpe", "command-r", "falcon", "falcon3", "mpt",
    "deepseek-llm", "deepseek-coder", "glm4", "chatglm-bpe", "exaone4",
})  # fmt: skip
_MAX_TOKENS, _MAX_VOCAB_BYTES = 1 << 19, 1 << 23
_BYTE_TOKENS = frozenset(b"<0x%02X>" % byte for byte in range(256))


def check_header(file: GGUFFile) -> list[str]:
    """The reasons (some of them) why this file is not known to be safe to load in this process; none means safe.

    Raises InvalidModelFile for a file that is no language model at all.
    """
    reasons, hyper = check_model(file)
    if hyper is not None and not reasons:
        reasons = _check_vocabulary(file, hyper)  # the slowest, so last
    return [reason[:200] for reason in reasons[:8]]


def check_model(file: GGUFFile) -> tuple[list[str], Hyper | None]:
    """The same for all but the vocabulary, and the file's numbers as far as they can be read.

    Raises InvalidModelFile for a file that is no language model at all.
    """
    # imported here: most files that are opened were opened before, and are known
    from edgellm.architectures import ARCHITECTURES, from_metadata

    if not file.tensors or not file.get("general.architecture", str, ""):
        what = "no general.architecture" if file.tensors else "no tensors"
        raise InvalidModelFile(f"{file.path}: has {what}; it is not a language model: fetch or convert it again")
    name = file.metadata["general.architecture"]
    if all(known.gguf != name for known in ARCHITECTURES):
        return [f"architecture {name[:64]!r} has no list of safe values"], None
    reasons = [f"alignment {file.alignment} is below 32"] if file.alignment < 32 else []
    reasons += _check_values(file, name)
    if reasons:
        return reasons, None
    try:
        architecture, hyper = from_metadata(file)
    except (InvalidModelFile, Unsupported) as error:
        return [str(error)], None
    return _check_numbers(file, architecture, hyper) or _check_tensors(file, architecture, hyper), hyper


def _check_values(file: GGUFFile, name: str) -> list[str]:
    """The architecture's own keys, each of the right type and inside its range; which there may be, the table says."""
    reasons = []
    for full in file.metadata:
        key = full.removeprefix(f"{name}.")
        kind, found = file.kind(full), RANGES.get(full) or RANGES.get(key)
        if full.startswith("general.tensor_extra"):
            reasons.append(f"unusual key {full}")
        elif key == full:
            continue
        elif key == "rope.scaling.type":
            if kind != "str" or file.metadata[full] not in ("none", "linear", "yarn", "longrope"):
                reasons.append(f"{full} is not none, linear, yarn or longrope")
        elif key == "attention.sliding_window_pattern" and kind == "bool[]":
            if len(file.metadata[full]) != file.get(f"{name}.block_count", int, 0):
                reasons.append(f"{full} is not a value for each layer")
        elif found is None:
            reasons.append(f"unusual key {full}")
        else:
            wanted, low, high = found
            value = file.metadata[full] if kind == wanted else None
            if value is None or not low <= value <= high:
                what = kind if value is None else f"{value:g}"
                reasons.append(f"{full} is {what}, not {wanted} from {low:g} to {high:g}")
    return reasons


def _check_numbers(file: GGUFFile, architecture: Architecture, hyper: Hyper) -> list[str]:
    """What the numbers must be to each other."""
    said = {key.removeprefix(f"{hyper.gguf}."): file.metadata[key] for key in file.metadata}
    embed, heads, head = hyper.n_embd, hyper.n_head, hyper.head_dim
    rotated = hyper.rope.dim if hyper.rope else head
    scaling, used = said.get("rope.scaling.type", "none"), said.get("expert_used_count", 0)
    rules = {
        f"embedding_length {embed} is not a multiple of 32": embed % 32 == 0,
        f"embedding_length {embed} is not a multiple of head_count {heads}": (
            "attention.key_length" in said or embed % heads == 0
        ),
        f"head size {head} is not a multiple of 8": 16 <= head <= 512 and head % 8 == 0,
        "key_length and value_length differ": said.get("attention.value_length", embed // heads) == head,
        f"{rotated} rotated dimensions do not fit a head of {head}": (
            rotated == head or (architecture.partial and rotated <= head)
        ),
        f"rope.scaling.type is {scaling}": scaling in ("none", *(architecture.scalings - {"llama3"})),
        f"expert_used_count {used} of {hyper.n_expert} experts": used <= hyper.n_expert,
    }
    return [reason for reason, holds in rules.items() if not holds]


def _check_tensors(file: GGUFFile, architecture: Architecture, hyper: Hyper) -> list[str]:
    """Every tensor that must be there is, with its shape and a type the engine computes with; no other one is."""
    expected = architecture.tensors(hyper, file.tensors)
    if missing := [name for name in expected if name not in file.tensors]:
        return [f"tensor {missing[0]} is missing"]
    if unknown := [name for name in file.tensors if name not in expected]:
        return [f"unusual tensor {unknown[0]}"]
    for name, wanted in expected.items():
        info = file.tensors[name]
        if info.shape != wanted:
            return [f"tensor {name} has the shape {info.shape}, not {wanted}"]
        plain = len(wanted) == 1 or name in _ADDED
        if info.type not in WEIGHT_TYPES or (plain and info.type is not GGMLType.F32):
            return [f"tensor {name} is stored as {info.type.name}"]
    return []


def _check_vocabulary(file: GGUFFile, hyper: Hyper) -> list[str]:
    """What llama.cpp's tokenizers need: unique UTF-8 tokens, one per embedding row, types, and scores or merges."""
    prefix, rows, claimed = "tokenizer.ggml.", hyper.n_vocab, file.get(f"{hyper.gguf}.vocab_size", int, 0)
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
    usual = ("llama", "gpt2") if hyper.causal else ("bert", "gpt2")
    if model not in usual or (model == "gpt2" and pre not in _PRE_TOKENIZERS):
        return [f"unusual tokenizer {model!r} with pre-tokenizer {pre!r}"]
    if file.get(prefix + "token_type_count", int, 0) != hyper.n_token_types:
        return [f"{prefix}token_type_count is not {hyper.n_token_types}"]
    if words is None or len(words) != rows or claimed not in (0, rows) or not 256 <= rows <= _MAX_TOKENS:
        return [f"{0 if words is None else len(words)} tokens for {rows} rows of embeddings"]
    if len(file.get(prefix + "scores", np.ndarray, types)) != rows:
        return ["token scores are not one for each token"]
    if len(types) != rows or types.min() < 1 or types.max() > 6:
        return ["token types are missing or unknown"]
    tokens = list(words) if words.nbytes <= _MAX_VOCAB_BYTES else []
    distinct = frozenset(tokens)
    if len(distinct) != rows or b"" in distinct or not _is_text(tokens):
        return ["tokens are too long, empty, repeated or not UTF-8"]
    if model == "bert":
        return ["WordPiece has no byte tokens"] if 6 in types else []
    if model == "gpt2":
        merges = file.get(prefix + "merges", StringArray, None)
        well = 6 not in types and merges is not None and _are_merges(merges)
        return [] if well else ["byte tokens or merges are wrong"]
    scores = file.get(prefix + "scores", np.ndarray, empty)
    if not len(scores) or not np.isfinite(scores).all():
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
