"""What the engine is given of a file: which rows are which matrix, in which order, and what rotates them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from arch_models import CONFIGS, checkpoint, convert
from numpy.typing import NDArray

from edgellm.architectures import Hyper, Rope, from_config, from_metadata
from edgellm.architectures.rope import llama3_factors
from edgellm.backends.native.rotation import is_long, rotations
from edgellm.backends.native.weights import MODEL, placed
from edgellm.errors import InvalidModelFile
from edgellm.formats.gguf import GGUFFile

FAMILIES = ["llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "granite", "olmo2"]
FAMILIES += ["ministral3", "olmo3"]
EXPERTS = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
PLAIN = 10000.0 ** (-np.arange(8) / 8)  # of a head of 16


@pytest.mark.parametrize("name", [*FAMILIES, *EXPERTS])
def test_every_tensor_is_placed_as_the_checkpoint_has_it(name: str, tmp_path: Path) -> None:
    """The rows of q and k are those of Hugging Face, whose models rotate halves, as the engine does."""
    tensors = checkpoint(CONFIGS[name])
    with GGUFFile.open(convert(CONFIGS[name], tensors, tmp_path / "tiny.gguf")) as file:
        architecture, hyper = from_metadata(file)
        found: dict[tuple[int, str], NDArray[np.float32]] = {}
        for place in placed(file, architecture, hyper):
            shape = file.tensors[place.tensor].shape
            whole = file.data(place.tensor).view(np.float32)
            if len(shape) > 1:
                whole = whole.reshape(-1, shape[-1])
            rows = whole[place.start : place.stop]
            found[place.layer, place.role] = rows if place.order is None else rows[place.order]
    prefix = "model.layers.1.self_attn."
    q, kv = hyper.n_head * hyper.head_dim, hyper.n_head_kv * hyper.head_dim
    if name == "phi3":
        fused, wide = tensors[prefix + "qkv_proj.weight"], tensors["model.layers.1.mlp.gate_up_proj.weight"]
        expected = {"attn_q": fused[:q], "attn_k": fused[q : q + kv], "attn_v": fused[q + kv :]}
        expected |= {"ffn_gate": wide[: hyper.n_ff], "ffn_up": wide[hyper.n_ff :]}
    else:
        expected = {f"attn_{part}": tensors[f"{prefix}{part}_proj.weight"] for part in "qkv"}
        if name in EXPERTS:
            module, *names = EXPERTS[name]
            expected["ffn_gate_inp"] = tensors[f"model.layers.1.{module}.gate.weight"]
            for part, own in zip(("gate", "up", "down"), names, strict=True):
                each = [tensors[f"model.layers.1.{module}.experts.{e}.{own}.weight"] for e in range(4)]
                expected[f"ffn_{part}_exps"] = np.concatenate(each)
        else:
            expected |= {f"ffn_{part}": tensors[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up")}
        if prefix + "q_proj.bias" in tensors:
            expected |= {f"attn_{part}.bias": tensors[f"{prefix}{part}_proj.bias"] for part in "qkv"}
    for role, values in expected.items():
        np.testing.assert_array_equal(found[1, role], values, err_msg=role)
    assert (MODEL, "token_embd") in found
    assert ((MODEL, "output") in found) == (not hyper.tied)


@pytest.mark.parametrize("name", ["ernie4_5", "glm4", "cohere2"])
def test_neighbours_are_put_apart(name: str, tmp_path: Path) -> None:
    """The rows of q and k in which Hugging Face rotates neighbours: first elements of pairs, second ones, the rest."""
    tensors = checkpoint(CONFIGS[name])
    with GGUFFile.open(convert(CONFIGS[name], tensors, tmp_path / "tiny.gguf")) as file:
        architecture, hyper = from_metadata(file)
        places = list(placed(file, architecture, hyper))
        orders = {place.role: place.order for place in places if place.layer == 1}
        norms = [place.tensor for place in places if place.layer == 1 and place.role == "ffn_norm"]
    assert hyper.rope is not None
    head, rotated = hyper.head_dim, hyper.rope.dim
    wanted = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, head)]
    for part, heads in (("q", 4), ("k", 2)):
        for role in {f"attn_{part}", f"attn_{part}.bias"} & orders.keys():
            order = orders[role]
            assert order is not None
            assert order.tolist() == [h * head + i for h in range(heads) for i in wanted]
    assert orders["attn_v"] is None
    assert ("attn_q.bias" in orders) == (name == "glm4")
    assert norms == [f"blk.1.{'attn' if name == 'cohere2' else 'ffn'}_norm.weight"]


def _hyper(rope: Rope, **changes: object) -> Hyper:
    return replace(from_config(CONFIGS["llama"])[1], n_layer=4, rope=rope, **changes)  # type: ignore[arg-type]


def test_each_layer_has_the_rotation_of_its_family() -> None:
    which, [one] = rotations(_hyper(Rope(10000.0, 16)), 100)
    assert which == [1, 1, 1, 1]
    assert one.magnitude == 1.0
    np.testing.assert_allclose(one.frequencies, PLAIN, rtol=1e-12)
    assert rotations(_hyper(Rope(10000.0, 16, every=4)), 100)[0] == [1, 1, 1, 0]
    seen = {"window": 16, "windowed": (True, True, False, True)}
    assert rotations(_hyper(Rope(10000.0, 16, only_windowed=True), **seen), 100)[0] == [1, 1, 0, 1]
    assert rotations(_hyper(Rope(10000.0, 16, only_windowed=True)), 100)[0] == [1, 1, 1, 1]
    windowed = _hyper(Rope(1e6, 16, 10000.0, "linear", 8.0), window=16, windowed=(True, True, False, True))
    which, [local, wide] = rotations(windowed, 100)
    assert which == [1, 1, 2, 1]
    np.testing.assert_allclose(local.frequencies, PLAIN, rtol=1e-12)  # which is not stretched
    np.testing.assert_allclose(wide.frequencies, 1e6 ** (-np.arange(8) / 8) / 8, rtol=1e-12)


def test_partial_and_stretched_frequencies() -> None:
    _, [partial] = rotations(_hyper(Rope(10000.0, 8)), 100)
    np.testing.assert_allclose(partial.frequencies, PLAIN[::2], rtol=1e-12)
    llama3 = Rope(10000.0, 16, scaling="llama3", factor=8.0, original=64)
    _, [found] = rotations(_hyper(llama3), 100)
    np.testing.assert_allclose(found.frequencies, PLAIN / llama3_factors(llama3), rtol=1e-12)
    # YaRN: of 64 positions the first pair turns more than once, the later ones less, and all are stretched a little
    _, [yarn] = rotations(_hyper(Rope(10000.0, 16, scaling="yarn", factor=4.0, original=64, magnitude=1.2)), 100)
    shares = yarn.frequencies / PLAIN
    assert yarn.magnitude == 1.2
    assert shares[0] == 1.0
    np.testing.assert_allclose(shares[1:4], [1 - 0.75 / 3, 1 - 1.5 / 3, 0.25], rtol=1e-12)
    np.testing.assert_allclose(shares[3:], 0.25, rtol=1e-12)


@pytest.mark.parametrize(("n_ctx", "long"), [(64, False), (65, True)])
def test_longrope_goes_by_the_context_it_is_opened_with(n_ctx: int, long: bool) -> None:
    rope = Rope(
        10000.0, 16, scaling="longrope", factor=4.0, original=64, magnitude=1.1, short=(2.0,) * 8, long=(8.0,) * 8
    )
    _, [found] = rotations(_hyper(rope), n_ctx)
    assert is_long(_hyper(rope), n_ctx) == long
    np.testing.assert_allclose(found.frequencies, PLAIN / (8.0 if long else 2.0), rtol=1e-12)
    assert found.magnitude == 1.1


def test_frequencies_that_are_no_numbers_are_an_error() -> None:
    rope = Rope(10000.0, 16, scaling="longrope", original=64, short=(0.0,) * 8, long=(1.0,) * 8)
    with pytest.raises(InvalidModelFile, match="frequencies"):
        rotations(_hyper(rope), 10)
