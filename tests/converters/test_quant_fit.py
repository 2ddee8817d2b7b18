"""Mixes under a size, and mixes for fast kernels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.converters.quant.fit import QUALITY, SENSITIVITY, choose_under, data_bytes, fast_on_cpu
from edgellm.converters.quant.recipes import Choice, Facts, choose, quantizable, role_of
from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType

LAYERS = 12
FACTS = Facts("llama", LAYERS, 8, 4)
SHAPES = {
    "attn_norm.weight": (512,),
    "attn_q.weight": (512, 512),
    "attn_k.weight": (256, 512),
    "attn_v.weight": (256, 512),
    "attn_output.weight": (512, 512),
    "ffn_gate.weight": (1024, 512),
    "ffn_up.weight": (1024, 512),
    "ffn_down.weight": (512, 1024),
}


def model(columns: int = 512) -> list[tuple[str, tuple[int, ...]]]:
    layers = [
        (f"blk.{i}.{name}", (*shape[:-1], shape[-1] * columns // 512))
        for i in range(LAYERS)
        for name, shape in SHAPES.items()
    ]
    return [("token_embd.weight", (4096, columns)), ("output.weight", (4096, columns)), *layers]


def bits(choice: Choice) -> float:
    return 8 * choice.type.block_bytes / choice.type.block_size


SMALLEST = data_bytes(choose("q2_k", model(), FACTS))
LARGEST = data_bytes(choose("f16", model(), FACTS))


@given(st.integers(SMALLEST, LARGEST + 1_000_000), st.sampled_from([512, 544]))
@settings(max_examples=40)
def test_the_mix_fits_and_is_no_worse_than_the_recipe(budget: int, columns: int) -> None:
    tensors = model(columns)
    if budget < data_bytes(choose("q2_k", tensors, FACTS)):
        return
    fit = choose_under(budget, tensors, FACTS)
    assert fit.nbytes == data_bytes(fit.choices) <= budget
    assert [choice.name for choice in fit.choices] == [name for name, _ in tensors]
    recipe = choose(fit.target, tensors, FACTS)
    assert all(bits(ours) >= bits(theirs) for ours, theirs in zip(fit.choices, recipe, strict=True))
    assert all(c.type is GGMLType.F32 for c in fit.choices if not quantizable(c.name, c.shape))
    assert all(c.shape[-1] % c.type.block_size == 0 for c in fit.choices)
    better = ("f16", *QUALITY)[: ("f16", *QUALITY).index(fit.target)]
    assert all(data_bytes(choose(target, tensors, FACTS)) > budget for target in better)


def test_nothing_that_would_fit_is_left_out() -> None:
    """Of what remains, no tensor could be raised from Q4_K to Q5_K, the smallest step here."""
    budget = data_bytes(choose("q4_k_m", model(), FACTS)) + 400_000
    fit = choose_under(budget, model(), FACTS)
    assert fit.target == "q4_k_m"
    step = GGMLType.Q5_K.nbytes((256, 512)) - GGMLType.Q4_K.nbytes((256, 512))
    small = [c for c in fit.choices if c.type is GGMLType.Q4_K and role_of(c.name) in ("k", "v")]
    assert budget - fit.nbytes < step or not small


def test_the_most_sensitive_tensors_are_raised_first() -> None:
    recipe = choose("q4_k_m", model(), FACTS)
    step = GGMLType.Q8_0.nbytes((4096, 512)) - GGMLType.Q6_K.nbytes((4096, 512))
    fit = choose_under(data_bytes(recipe) + step, model(), FACTS)
    raised = [new.name for new, old in zip(fit.choices, recipe, strict=True) if new.type is not old.type]
    assert raised == ["output.weight"]
    assert SENSITIVITY[0] == "output"


def test_a_large_budget_keeps_everything() -> None:
    fit = choose_under(1 << 40, model(), FACTS, lossless="bf16")
    assert fit.target == "bf16"
    assert fit.choices == choose("bf16", model(), FACTS)


def test_a_budget_too_small_says_how_much_is_needed() -> None:
    with pytest.raises(InvalidParameter, match=rf"0.1 MB are too few .* q2_k, .* needs {SMALLEST / 1e6:.1f} MB"):
        choose_under(100_000, model(), FACTS)


@pytest.mark.parametrize(("target", "columns"), [("q4_1", 512), ("q5_0", 512), ("q5_1", 544), ("q4_k_m", 544)])
def test_slow_types_are_replaced(target: str, columns: int) -> None:
    before = choose(target, model(columns), FACTS)
    after = fast_on_cpu(before)
    slow = {GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1}
    assert slow & {choice.type for choice in before}
    assert not slow & {choice.type for choice in after}
    assert all(choice.shape[-1] % choice.type.block_size == 0 for choice in after)
    untouched = [(a, b) for a, b in zip(after, before, strict=True) if b.type not in slow]
    assert all(a == b for a, b in untouched)
    assert [choice.fallback_from for choice in after] == [choice.fallback_from for choice in before]
