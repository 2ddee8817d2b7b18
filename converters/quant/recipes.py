"""Which type each tensor gets for a target such as q4_k_m: the choices of llama.cpp's `llama_model_quantize`.

A target names a default type; output and embedding, attention values, feed-forward outputs and a few more get more
bits, some in some layers only; rows that the type cannot hold fall back to another. Source: `src/llama-quant.cpp` of
llama.cpp (tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback). Everything here is pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType as T

QUANTIZATION_VERSION = 2  # general.quantization_version

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choices depend on. n_expert is 0 without experts; n_layer counts every block of the file."""

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0
    has_imatrix: bool = False

    @property
    def n_gqa(self) -> int:
        """Query heads that share a key head."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """What llama.cpp takes for a 70B model: 80 layers, in the llama family with grouped heads."""
        family = self.architecture in ("qwen2", "olmo") or (
            self.architecture == "llama" and self.n_head != self.n_head_kv
        )
        return self.n_layer == 80 and family


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of a tensor. fallback_from: the type that its rows did not fit, if any.

    needs_importance: stored like this without an importance matrix, the tensor would be useless.
    """

    name: str
    shape: Shape
    type: T
    fallback_from: T | None = None
    needs_importance: bool = False

    @property
    def nbytes(self) -> int:
        """Stored bytes, without padding."""
        return self.type.nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class Target:
    """file_type: `general.file_type`; base: the type where no rule says otherwise."""

    name: str
    file_type: int
    base: T


TARGETS = {
    target.name: target
    for target in (
        Target("f32", 0, T.F32),
        Target("f16", 1, T.F16),
        Target("bf16", 32, T.BF16),
        Target("q8_0", 7, T.Q8_0),
        Target("q4_0", 2, T.Q4_0),
        Target("q4_1", 3, T.Q4_1),
        Target("q5_0", 8, T.Q5_0),
        Target("q5_1", 9, T.Q5_1),
        Target("q2_k", 10, T.Q2_K),
        Target("q2_k_s", 21, T.Q2_K),
        Target("q3_k_s", 11, T.Q3_K),
        Target("q3_k_m", 12, T.Q3_K),
        Target("q3_k_l", 13, T.Q3_K),
        Target("q4_k_s", 14, T.Q4_K),
        Target("q4_k_m", 15, T.Q4_K),
        Target("q5_k_s", 16, T.Q5_K),
        Target("q5_k_m", 17, T.Q5_K),
        Target("q6_k", 18, T.Q6_K),
        Target("iq4_nl", 25, T.IQ4_NL),
        Target("iq4_xs", 30, T.IQ4_XS),
    )
}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}

FALLBACKS = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
    T.IQ4_XS: T.IQ4_NL,
}

# parts of the names of two-dimensional weights that are too small, or too delicate, to be quantized
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight|\.position_embd"
)
_KEPT_WHOLE = {"position_embd.weight", "token_types.weight", "cls.weight", "cls.output.weight"}
_EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}
# the role of a weight, by the first part that its name holds
_ROLES = {
    "attn_qkv.weight": "v",
    "attn_kv_b.weight": "v",
    "attn_v.weight": "v",
    "attn_k.weight": "k",
    "attn_q.weight": "q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}
_BLOCK = re.compile(r"blk\.(\d+)\.")


def target_of(name: str) -> Target:
    """The target of a name in any case; `q4_k` means `q4_k_m`. Raises InvalidParameter for unknown ones."""
    wanted = name.lower()
    try:
        return TARGETS[ALIASES.get(wanted, wanted)]
    except KeyError:
        raise InvalidParameter(f"quantization {name!r} is not offered; choose one of {', '.join(TARGETS)}") from None


def choose(target: str, tensors: Sequence[tuple[str, Shape]], facts: Facts) -> list[Choice]:
    """The type of every tensor (GGUF name, shape in numpy order), in the order given.

    Raises InvalidParameter for an unknown target, and for one that is useless without an importance matrix.
    """
    chosen = target_of(target)
    counting = _TypeChooser(chosen, tensors, facts)
    choices = {}
    for name, shape in sorted(tensors, key=lambda tensor: (_layer(tensor[0]), tensor[0])):  # as llama.cpp counts them
        choices[name] = counting.choice(name, shape)
    needing = [choice.name for choice in choices.values() if choice.needs_importance]
    if needing and not facts.has_imatrix:
        raise InvalidParameter(
            f"{chosen.name} needs an importance matrix (for {needing[0]} and {len(needing) - 1} more tensors): "
            "calibrate, or choose q2_k"
        )
    return [choices[name] for name, _ in tensors]


def quantizable(name: str, shape: Shape) -> bool:
    """Whether llama.cpp stores this tensor in the type of a target at all; it stays F32 otherwise."""
    kept = _KEPT.search(name) is not None or name in _KEPT_WHOLE
    return math.prod(shape[:-1]) > 1 and name.endswith("weight") and not kept


def role_of(name: str) -> str:
    """ "output", "embedding", "v", "k", "q", "attn_output", "ffn_up", "ffn_gate", "ffn_down" or "other"."""
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "embedding"
    return next((role for part, role in _ROLES.items() if part in name), "other")


def fit_rows(wanted: T, columns: int) -> T:
    """The type, or what llama.cpp stores instead when rows of `columns` are not whole blocks of it."""
    if columns % wanted.block_size == 0:
        return wanted
    instead = FALLBACKS.get(wanted, wanted)
    return instead if columns % instead.block_size == 0 else T.F16


def _layer(name: str) -> int:
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class _TypeChooser:
    """Walks over the tensors in llama.cpp's order: some rules count what came before."""

    def __init__(self, target: Target, tensors: Sequence[tuple[str, Shape]], facts: Facts) -> None:
        self.target, self.facts = target, facts
        self.n_v = sum(role_of(name) == "v" for name, _ in tensors)
        self.i_v = self.i_down = 0
        self.tied = all(name != "output.weight" for name, _ in tensors)

    def choice(self, name: str, shape: Shape) -> Choice:
        base, columns = self.target.base, shape[-1]
        if not quantizable(name, shape):
            return Choice(name, shape, T.F32)
        if base.block_size == 1:
            return Choice(name, shape, base)
        role = role_of(name)
        if role == "output" or (role == "embedding" and self.tied):
            wanted = T.Q8_0 if base is T.Q8_0 or self.facts.architecture == "falcon" else T.Q6_K
            stored = fit_rows(T.Q8_0 if columns % base.block_size else wanted, columns)
        else:
            wanted = self._wanted(name, role)
            stored = fit_rows(wanted, columns)
        needs = self.target.name == "q2_k_s" and stored is T.Q2_K and role != "embedding"
        return Choice(name, shape, stored, wanted if stored is not wanted else None, needs)

    def _wanted(self, name: str, role: str) -> T:
        if role == "v":
            self.i_v += 1
            return self._attention_value(self.i_v - 1)
        if role == "ffn_down":
            self.i_down += 1
            return self._ffn_down(_layer(name) if self.facts.n_expert > 1 else self.i_down - 1)
        if role == "k" and self.facts.n_expert == 8:
            return T.Q8_0
        if role == "attn_output":
            return self._attention_output()
        return self.target.base

    def _attention_value(self, i: int) -> T:
        target, grouped = self.target.name, self.facts.n_gqa >= 4
        if self.facts.n_expert == 8:
            return T.Q8_0
        kind = self.target.base
        if target == "q2_k":
            kind = T.Q4_K if grouped else T.Q3_K
        elif target == "q2_k_s" and grouped:
            kind = T.Q4_K
        elif target == "q3_k_m":
            kind = T.Q5_K if i < 2 else T.Q4_K
        elif target == "q3_k_l" or (target in ("iq4_nl", "iq4_xs") and grouped):
            kind = T.Q5_K
        elif target in ("q4_k_m", "q5_k_m") and _more_bits(i, self.n_v):
            kind = T.Q6_K
        elif target == "q4_k_s" and i < 4:
            kind = T.Q5_K
        return T.Q5_K if self.facts.is_70b and kind in (T.Q3_K, T.Q4_K) else kind

    def _ffn_down(self, i: int) -> T:
        target, n = self.target.name, self.facts.n_layer
        falcon, first = self.facts.architecture == "falcon", i < self.facts.n_layer // 8
        more = _more_bits(i, n)
        if target == "q2_k":
            return T.Q3_K
        if target == "q2_k_s" and first:
            return T.Q4_K
        if target == "q3_k_m":
            if i < n // 16:
                return T.Q5_K
            return T.Q4_K if not falcon or more else T.Q3_K
        if target == "q3_k_l":
            return T.Q4_K if falcon else T.Q5_K
        if target == "q4_k_m" and falcon:
            return T.Q6_K if i < n // 16 else T.Q5_K if more else T.Q4_K
        if target in ("q4_k_m", "q5_k_m") and more:
            return T.Q6_K
        if target in ("iq4_nl", "iq4_xs") and first and not self.facts.has_imatrix:
            return T.Q5_K
        if target == "q4_k_s" and first and not falcon:
            return T.Q5_K
        if target in ("q4_0", "q5_0") and first and self.facts.has_imatrix:
            return T.Q4_1 if target == "q4_0" else T.Q5_1
        return self.target.base

    def _attention_output(self) -> T:
        target = self.target.name
        if self.facts.architecture == "falcon":
            return T.Q4_K if target == "q3_k_l" else self.target.base
        if self.facts.n_expert == 8:
            eight = ("q2_k", "q3_k_s", "q3_k_m", "iq4_nl", "q4_k_s", "q4_k_m", "iq4_xs")
            return T.Q5_K if target in eight else self.target.base
        return {"q2_k": T.Q3_K, "q3_k_m": T.Q4_K, "q3_k_l": T.Q5_K}.get(target, self.target.base)
