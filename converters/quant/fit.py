"""Mixes that no recipe names: the best one under a size, and the one whose kernels are fast on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType as T

from .recipes import Choice, Facts, Shape, choose, role_of

# Best first, by the divergence from the full model that llama.cpp publishes for Llama 3 8B (tools/quantize/README.md).
QUALITY = ("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k")
# Where more bits help most: the recipes of llama.cpp spend theirs in this order too.
SENSITIVITY = ("output", "embedding", "v", "ffn_down", "attn_output", "k", "q", "ffn_gate", "ffn_up", "other")
# The next better type, up to where more bits stop to matter.
_BETTER = {
    T.Q2_K: T.Q3_K,
    T.Q3_K: T.Q4_K,
    T.IQ4_XS: T.Q4_K,
    T.Q4_K: T.Q5_K,
    T.Q5_K: T.Q6_K,
    T.Q6_K: T.Q8_0,
    T.Q4_0: T.Q5_0,
    T.IQ4_NL: T.Q5_0,
    T.Q4_1: T.Q5_0,
    T.Q5_0: T.Q5_1,
    T.Q5_1: T.Q8_0,
}
# Types without repacked kernels on x86, and the nearest that are no worse: for rows of whole 256-blocks, for others.
_FAST = {T.Q4_1: (T.Q4_K, T.IQ4_NL), T.Q5_0: (T.Q5_K, T.Q8_0), T.Q5_1: (T.Q5_K, T.Q8_0)}


@dataclass(frozen=True, slots=True)
class Fit:
    """target: the recipe that fits; choices: what became of it when the rest of the budget was spent."""

    target: str
    choices: list[Choice]
    nbytes: int


def data_bytes(choices: Sequence[Choice]) -> int:
    """Bytes of the tensors in a file, each padded to 32."""
    return sum(-(-choice.nbytes // 32) * 32 for choice in choices)


def choose_under(budget: int, tensors: Sequence[tuple[str, Shape]], facts: Facts, *, lossless: str = "f16") -> Fit:
    """The best mix whose tensors take at most `budget` bytes, as `data_bytes` counts them.

    The best recipe that fits, `lossless` (the source's own type) before all; what it leaves is spent on raising tensors
    by one type after another, the most sensitive first.

    Raises InvalidParameter when even the smallest recipe is too large.
    """
    recipes = []
    for target in (lossless, *QUALITY):
        choices = choose(target, tensors, facts)
        recipes.append(Fit(target, choices, data_bytes(choices)))
    fit = next((recipe for recipe in recipes if recipe.nbytes <= budget), None)
    if fit is None:
        smallest = min(recipes, key=lambda recipe: recipe.nbytes)
        raise InvalidParameter(
            f"{budget / 1e6:.1f} MB are too few for this model: {smallest.target}, its smallest form, needs "
            f"{smallest.nbytes / 1e6:.1f} MB"
        )
    if fit.target == lossless:
        return fit
    mix = _spend(budget - fit.nbytes, fit.choices)
    return Fit(fit.target, mix, data_bytes(mix))


def _spend(left: int, choices: Sequence[Choice]) -> list[Choice]:
    mix = list(choices)
    order = sorted(range(len(mix)), key=lambda index: SENSITIVITY.index(role_of(mix[index].name)))  # stable: by layer
    raised = True
    while raised:
        raised = False
        for index in order:
            before = mix[index]
            if before.type not in _BETTER:
                continue
            after = replace(before, type=_BETTER[before.type], needs_importance=False)
            more = data_bytes([after]) - data_bytes([before])
            if more <= left:
                mix[index], left, raised = after, left - more, True
    return mix


def fast_on_cpu(choices: Sequence[Choice]) -> list[Choice]:
    """The mix with Q4_1, Q5_0 and Q5_1, whose products are slow on x86, replaced by types that are no worse.

    Q5_0 and Q5_1 grow to Q8_0 where rows are not whole 256-blocks. fallback_from stays, for what was a fallback.
    """
    fast = []
    for choice in choices:
        if choice.type in _FAST:
            whole, other = _FAST[choice.type]
            choice = replace(choice, type=other if choice.shape[-1] % whole.block_size else whole)
        fast.append(choice)
    return fast
