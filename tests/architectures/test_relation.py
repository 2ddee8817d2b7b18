"""Relations on random shapes: rows land where the order says, in any chunks, and come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arch_models import Array, arrays, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.architectures import Part, Relation, to_gguf, to_hf
from edgellm.errors import InvalidModelFile

F32 = NDArray[np.float32]


@st.composite
def relations(draw: Any) -> tuple[Relation, dict[str, F32]]:
    """Rows cut into parts differently on both sides; vectors now and then."""
    vector = draw(st.booleans())
    columns = 1 if vector else draw(st.integers(1, 5))
    sides = []
    cuts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    total = sum(cuts)
    other = draw(st.sampled_from([[total], cuts[::-1], [1] * total]))
    transposed = draw(st.booleans()) and not vector
    for side, heights in (("hf", cuts), ("gguf", other)):
        flipped = transposed and side == "hf"
        shapes = [(n,) if vector else (columns, n) if flipped else (n, columns) for n in heights]
        sides.append(tuple(Part(f"{side}{i}", shape) for i, shape in enumerate(shapes)))
    order = draw(st.none() | st.permutations(range(total)).map(lambda p: np.array(p, np.int64)))
    shift = draw(st.sampled_from([0.0, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = {part.name: rng.integers(-99, 99, part.shape).astype(np.float32) for part in sides[0]}
    return Relation(sides[0], sides[1], order, shift, transposed), values


def stacked(parts: tuple[Part, ...], values: dict[str, F32], transposed: bool) -> F32:
    rows = [values[part.name].reshape(-1, 1) if len(part.shape) == 1 else values[part.name] for part in parts]
    return np.concatenate([one.T if transposed else one for one in rows])


@settings(max_examples=200)
@given(relations(), st.integers(0, 99))
def test_relation_and_its_inverse(case: tuple[Relation, dict[str, F32]], seed: int) -> None:
    relation, values = case
    found = to_gguf(relation, arrays(values))
    assert [part for part, _ in found] == list(relation.gguf)
    there = {part.name: whole(tensor) for part, tensor in found}
    rows = stacked(relation.hf, values, relation.transposed)
    expected = (rows if relation.order is None else rows[relation.order]) + np.float32(relation.shift)
    np.testing.assert_array_equal(stacked(relation.gguf, there, False), expected)
    for part, tensor in found:
        assert tensor.shape == part.shape
        assert tensor.stored == "F32"
        flat = there[part.name].reshape(-1, part.shape[-1])
        which = np.random.default_rng(seed).integers(0, len(flat), 5)
        np.testing.assert_array_equal(tensor.rows(which), flat[which])
        np.testing.assert_array_equal(tensor.rows(slice(1, 3)), flat[1:3])
    back = {part.name: whole(tensor) for part, tensor in to_hf(relation, arrays(there))}
    assert sorted(back) == sorted(values)
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value)


class Counting(Array):
    """An array that notes how many rows were read."""

    read = 0

    def rows(self, which: slice | NDArray[np.int64]) -> F32:
        found = super().rows(which)
        Counting.read += len(found)
        return found


def test_a_chunk_reads_only_its_rows() -> None:
    relation = Relation((Part("a", (4, 8, 3)), Part("b", (32, 3))), (Part("c", (64, 3)),), np.arange(64)[::-1].copy())
    source = {"a": Counting(np.ones((4, 8, 3), np.float32)), "b": Counting(np.zeros((32, 3), np.float32))}
    (_, tensor), *_ = to_gguf(relation, source)
    assert tensor.rows(slice(30, 34)).tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert Counting.read == 4


def test_sources_that_do_not_fit() -> None:
    relation = Relation((Part("a", (4, 3)),), (Part("b", (4, 3)),))
    with pytest.raises(InvalidModelFile, match="'a' is missing"):
        to_gguf(relation, {})
    with pytest.raises(InvalidModelFile, match=r"'b' has the shape \(3, 4\)"):
        to_hf(relation, {"b": Array(np.zeros((3, 4), np.float32))})


def test_mixed_sources_are_stored_as_the_widest() -> None:
    class Half(Array):
        stored = "F16"

    relation = Relation((Part("a", (1, 2)), Part("b", (1, 2))), (Part("c", (2, 2)),))
    values = np.zeros((1, 2), np.float32)
    assert to_gguf(relation, {"a": Half(values), "b": Half(values)})[0][1].stored == "F16"
    assert to_gguf(relation, {"a": Half(values), "b": Array(values)})[0][1].stored == "F32"
