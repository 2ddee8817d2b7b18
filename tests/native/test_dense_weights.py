"""What a decoder of our own is made of: numbers and weights that cannot be are told as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_reference import F32, Tiny
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from edgellm import _native

FAST = 100.0 ** -(np.arange(8) / 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layer": 0, "windows": (), "rotations": ()}, "size of 0"),
        ({"n_vocab": 1 << 40}, "size of"),
        ({"n_head": 5}, "multiple"),
        ({"head_dim": 24}, "heads of 24"),
        ({"head_dim": 272}, "heads of 272"),
        ({"windows": (0,)}, "each layer"),
        ({"rotations": (1, 1, 1, 1)}, "each layer"),
        ({"attention_scale": float("nan")}, "finite"),
        ({"logit_scale": 0.0}, "logit scale"),
        ({"final_softcap": -1.0}, "negative"),
        ({"activation": "relu"}, "relu"),
        ({"n_expert": 4}, "0 of 4 experts"),
        ({"n_expert_used": 2}, "2 of 0 experts"),
        ({"n_expert": 2, "n_expert_used": 3}, "3 of 2 experts"),
        ({"n_expert": 1 << 40, "n_expert_used": 1}, "experts"),
    ],
)
def test_numbers_that_cannot_be(change: dict[str, Any], words: str) -> None:
    tiny = Tiny()
    for name, value in change.items():
        setattr(tiny, name, value)
    with pytest.raises(ValueError, match=words):
        tiny.unset()


def test_threads_and_kernels_that_cannot_be() -> None:
    for wrong in ({"threads": 0}, {"micro_batch": 0}, {"kernels": "mmx"}):
        with pytest.raises(ValueError, match=r"at least one|mmx"):
            Tiny().unset(**wrong)  # type: ignore[arg-type]


def test_weights_that_do_not_fit() -> None:
    tiny = Tiny()
    data = tiny.files[0, "attn_q"].reshape(-1).data
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("blk.0.attn_p", (0, "attn_p", F32, 64, 64, data)),
        ("no such layer", (3, "attn_q", F32, 64, 64, data)),
        ("no such layer", (-2, "attn_q", F32, 64, 64, data)),
        ("no such matrix", (-1, "attn_q", F32, 64, 64, data)),
        ("type 99", (0, "attn_q", 99, 64, 64, data)),
        ("do not hold", (0, "attn_q", F32, 64, 65, data)),
        ("do not hold", (0, "attn_q", F32, 1 << 60, 64, data)),
        ("do not hold", (0, "attn_q", F32, 1, 1 << 62, data)),
        ("cannot be stored", (0, "attn_q", F32, 0, 64, data[:0])),
        ("cannot be stored", (0, "attn_q", int(GGMLQuantizationType.Q4_K), 64, 64, data)),
        ("order", (0, "attn_q", F32, 64, 64, data, np.full(64, 64, np.int64))),
        ("order", (0, "attn_q", F32, 64, 64, data, np.arange(63))),
    ]
    model = tiny.unset()
    for words, arguments in wrong:
        with pytest.raises(ValueError, match=words):
            model.set_matrix(*arguments)
    for words, layer, role, values in (
        ("no such norm", 0, "attn_q", np.ones(64)),
        ("no such norm", -1, "attn_norm", np.ones(64)),
        ("no such bias", -1, "token_embd.bias", np.ones(70)),
        ("no such bias", -1, "position_embd.bias", np.ones(70)),
        ("no such layer", 3, "attn_norm", np.ones(64)),
        ("no numbers", 0, "attn_norm", np.ones(0)),
        ("not all numbers", 0, "attn_norm", np.full(64, np.inf)),
    ):
        with pytest.raises(ValueError, match=words):
            model.set_vector(layer, role, values.astype(np.float32))
    for words, kind, frequencies in (
        ("from 1", 0, FAST), ("finite", 1, FAST * np.nan), ("finite", 1, FAST[:0]), ("of a head", 1, np.ones(9)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            model.set_rotation(kind, frequencies)


def test_a_scale_that_is_not_finite_is_named() -> None:
    tiny = Tiny(type=int(GGMLQuantizationType.Q8_0))
    rows = tiny.files[1, "ffn_up"].copy()
    rows[40, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up"):
        tiny.unset(threads=3).set_matrix(1, "ffn_up", tiny.type, 96, 64, rows.reshape(-1).data)


@pytest.mark.parametrize("order", [None, np.arange(96)[::-1].copy()], ids=["together", "row by row"])
def test_a_file_that_is_cut_or_cannot_be_read_is_an_error(tmp_path: Path, order: NDArray[np.int64] | None) -> None:
    tiny = Tiny()
    path, size = tmp_path / "rows", tiny.files[1, "ffn_up"].size
    path.write_bytes(bytes(7 + size - 1))
    model = tiny.unset(threads=2)
    with (
        open(path, "rb") as file,
        pytest.raises(ValueError, match=rf"blk\.1\.ffn_up: the file ends at byte {6 + size}"),
    ):
        model.set_matrix(1, "ffn_up", F32, 96, 64, (file.fileno(), 7, size), order)
    with open(path, "ab") as file, pytest.raises(ValueError, match=r"blk\.1\.ffn_up: the file cannot be read: "):
        model.set_matrix(1, "ffn_up", F32, 96, 64, (file.fileno(), 0, size), order)


@pytest.mark.parametrize(
    ("key", "size", "words"),
    [
        ((2, "ffn_down"), None, r"blk\.2\.ffn_down: .*missing"),
        ((-1, "token_embd"), None, "token_embd: .*missing"),
        ((-1, "output_norm"), None, "output_norm: .*missing"),
        ((1, "attn_k"), (16, 64), r"blk\.1\.attn_k: the shape is \(16, 64\), expected \(32, 64\)"),
        ((1, "attn_norm"), (32,), r"blk\.1\.attn_norm: 32 numbers"),
        ((0, "attn_q_norm"), (32,), r"blk\.0\.attn_q_norm: 32 numbers"),
        ((0, "attn_v.bias"), (16,), r"blk\.0\.attn_v: a bias of 16"),
        ((0, "attn_norm.bias"), (16,), r"blk\.0\.attn_norm: a bias of 16 numbers for 64"),
        ((0, "attn_q_norm.bias"), (16,), r"blk\.0\.attn_q_norm: a bias of 16 numbers for 0"),
        ((-1, "position_embd"), (9, 32), r"position_embd: the shape is \(9, 32\), expected \(9, 64\)"),
    ],
)
def test_what_is_missing_or_has_another_shape(key: tuple[int, str], size: tuple[int, ...] | None, words: str) -> None:
    tiny = Tiny()
    if size is None:
        tiny.files.pop(key, None)
        tiny.vectors.pop(key, None)
    elif len(size) == 2:
        tiny.matrices[key] = np.ones(size, np.float32)
        tiny.files[key] = tiny.matrices[key].view(np.uint8)
    else:
        tiny.vectors[key] = np.ones(size, np.float32)
    with pytest.raises(ValueError, match=words):
        tiny.native()


def test_experts_that_do_not_fit() -> None:
    tiny = Tiny(n_expert=3, n_expert_used=2)
    model = tiny.unset()
    data = tiny.files[0, "ffn_up_exps"].reshape(-1).data
    for words, role, rows in (
        ("no such matrix", "ffn_up", 288),
        ("287 rows of 3 experts", "ffn_up_exps", 287),
        ("do not hold", "ffn_up_exps", 192),
    ):
        with pytest.raises(ValueError, match=words):
            model.set_matrix(0, role, F32, rows, 64, data[: 287 * 64 * 4] if rows == 287 else data)
    for role in ("ffn_up_exps.bias", "ffn_up.bias"):
        with pytest.raises(ValueError, match="no such bias"):
            model.set_vector(0, role, np.ones(96, np.float32))
    with pytest.raises(ValueError, match="no such matrix"):
        Tiny().unset().set_matrix(0, "ffn_up_exps", F32, 96, 64, data[: 96 * 64 * 4])
    for key, words in (
        ((1, "ffn_gate_inp"), r"blk\.1\.ffn_gate_inp: .*missing"),
        ((2, "ffn_down_exps"), r"blk\.2\.ffn_down_exps: .*missing"),
    ):
        lacking = Tiny(n_expert=3, n_expert_used=2)
        del lacking.files[key]
        with pytest.raises(ValueError, match=words):
            lacking.native()


def test_scores_that_are_no_numbers_choose_any_experts() -> None:
    tiny = Tiny(n_expert=5, n_expert_used=3)
    tiny.files[0, "ffn_up_exps"].view(np.float32)[:] = 3e38  # which no product of a router survives
    model = tiny.native()
    found = model.forward([_native.KvTable(tiny.pages())], [list(range(40))], ["all"])
    assert found.shape == (40, 70)
    assert not np.isfinite(found).any()


def test_norms_after_what_is_computed_in_parallel() -> None:
    with pytest.raises(ValueError, match="in parallel"):
        Tiny(parallel_residual=True, norms=("attn_norm", "post_ffw_norm")).native()


def test_a_rotation_that_is_missing() -> None:
    with pytest.raises(ValueError, match="rotation 2"):
        Tiny(rotations=(1, 2, 0)).native()
