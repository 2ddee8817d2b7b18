"""The decoder of our own: against numpy, to the bit however it is cut, and what it does when it cannot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_reference import F32, Tiny
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from edgellm import _native

Rows = NDArray[np.float32]
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 70, 75)]
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
FAST = 100.0 ** -(np.arange(8) / 8)
BIASES = {f"attn_{part}.bias": n for part, n in (("q", 64), ("k", 32), ("v", 32))}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "plain": {},
    "an output of its own": {"tied": False},
    "heads that do not fill the embedding": {"n_head": 6, "head_dim": 32},
    "one head of keys": {"n_head_kv": 1},
    "as many heads of keys as of queries": {"n_head_kv": 4},
    "biases of q, k and v": {"extra": BIASES},
    "biases of all": {"extra": {**BIASES, "attn_output.bias": 64, "ffn_gate.bias": 96, "ffn_down.bias": 64}},
    "norms of heads": {"extra": {"attn_q_norm": 16, "attn_k_norm": 16}},
    "norms of all heads, after blocks": {
        "norms": ("post_attention_norm", "post_ffw_norm"),
        "extra": {"attn_q_norm": 64, "attn_k_norm": 32},
        "residual_scale": 0.7,
    },
    "norms before and after, caps, gelu": {
        "norms": NORMS, "attention_softcap": 2.0, "final_softcap": 3.0, "activation": "gelu_tanh",
        "embedding_scale": 8.0,
    },
    "windows": {"windows": (5, 0, 33)},
    "two rotations and none": {"rotations": (1, 0, 2), "rotary": {1: (FAST, 1.0), 2: (FAST[::2] / 3, 1.3)}},
    "scales": {"embedding_scale": 3.0, "residual_scale": 0.3, "logit_scale": 4.0, "attention_scale": 0.1},
    "odd sizes": {"n_embd": 50, "n_ff": 77, "n_vocab": 71},
    "norms with biases": {"extra": {f"{role}.bias": 64 for role in ("attn_norm", "ffn_norm")}},
    "no gate": {"gate": False, "activation": "gelu_tanh", "extra": {"ffn_up.bias": 96}},
    "learned positions": {"positions": 75, "rotations": (0, 0, 0), "rotary": {}, "embedding_scale": 2.0},
    "in parallel": {"parallel_residual": True, "residual_scale": 0.6},
    "experts in parallel": {"parallel_residual": True, "n_expert": 4, "n_expert_used": 2},
    "experts without gates": {"gate": False, "n_expert": 4, "n_expert_used": 2},
    "experts": {"n_expert": 8, "n_expert_used": 3},
    "all experts": {"n_expert": 3, "n_expert_used": 3, "residual_scale": 0.4},
    "more experts than rows": {"n_expert": 130, "n_expert_used": 2, "n_ff": 32, "activation": "gelu_tanh"},
    "experts of odd sizes, norms after": {"n_embd": 50, "n_ff": 77, "n_expert": 5, "n_expert_used": 2, "norms": NORMS},
}  # fmt: skip


def feed(model: _native.DenseModel, table: _native.KvTable, tokens: list[int], sizes: list[int]) -> Rows:
    """All logits, of passes of these sizes, the last of which goes on to the end."""
    found, at = [], 0
    for size in [*sizes, len(tokens) - sum(sizes)]:
        found.append(model.forward([table], [tokens[at : at + size]], ["all"]).copy())
        at += size
    return np.concatenate(found)


@pytest.mark.parametrize("case", DIFFERENCES)
def test_what_families_differ_in(case: str) -> None:
    tiny = Tiny(**DIFFERENCES[case])
    found = feed(tiny.native(), _native.KvTable(tiny.pages()), TOKENS, [40, 1, 3])
    expected = tiny.logits(TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("experts", [0, 2])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "F16"])
def test_quantized_weights(kind: str, experts: int) -> None:
    wide: dict[str, Any] = {"n_embd": 256, "n_ff": 512, "head_dim": 64, "attention_scale": 0.05, "tied": False}
    wide |= {"n_expert": experts, "n_expert_used": experts}  # of a few, nearly the same scores would take others
    tiny = Tiny(type=int(GGMLQuantizationType[kind]), **wide)
    found = feed(tiny.native(), _native.KvTable(tiny.pages("int16")), TOKENS, [40, 1, 3])
    expected = tiny.logits(TOKENS)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error < (0.002 if kind == "F16" else 0.1), error  # activations of 8 bits


@pytest.mark.parametrize("place", ["memory", "file"])
def test_fused_tensors_and_orders_are_rows_of_a_file(place: str, tmp_path: Path) -> None:
    tiny = Tiny()
    q, k, v = (tiny.files[0, f"attn_{part}"] for part in "qkv")
    fused = np.concatenate([q, k, v]).reshape(-1)
    expected = feed(tiny.native(), _native.KvTable(tiny.pages()), TOKENS, [])
    model = tiny.unset()
    order = np.random.default_rng(1).permutation(96)
    with open(tmp_path / "weights", "w+b", buffering=0) as file:

        def lies(data: NDArray[np.uint8]) -> Any:
            """The bytes, or where they are in the file."""
            if place == "memory":
                return data.data
            at = file.seek(0, os.SEEK_END)
            file.write(data.data)
            return file.fileno(), at, len(data)

        for (layer, role), rows in tiny.files.items():
            count, columns = tiny.matrices[layer, role].shape
            data, ordered = rows.reshape(-1), None
            if role == "ffn_up":
                shuffled = np.empty_like(rows)
                shuffled[order] = rows
                data, ordered = shuffled.reshape(-1), order
            elif (layer, role) == (0, "attn_k"):
                data = fused[q.size : q.size + k.size]
            model.set_matrix(layer, role, F32, count, columns, lies(data), ordered)
    for (layer, role), values in tiny.vectors.items():
        model.set_vector(layer, role, values)
    model.set_rotation(1, FAST)
    model.finish()
    assert np.array_equal(feed(model, _native.KvTable(tiny.pages()), TOKENS, []), expected)


OF_Q4_0: dict[str, Any] = {"type": int(GGMLQuantizationType.Q4_0), "n_embd": 256, "head_dim": 64}
MIXED = [
    Tiny(**OF_Q4_0, n_ff=512, norms=NORMS, windows=(0, 20, 0), tied=False, final_softcap=5.0),
    Tiny(**OF_Q4_0, n_ff=160, n_expert=7, n_expert_used=3),
    Tiny(n_expert=7, n_expert_used=3, norms=NORMS),
    Tiny(**OF_Q4_0, n_ff=512, gate=False, positions=75, parallel_residual=True, extra={"attn_norm.bias": 256}),
]
KINDS = ["dense", "experts", "experts of floats", "in parallel"]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("tiny", MIXED, ids=KINDS)
def test_bits_do_not_depend_on_cutting_or_threads(tiny: Tiny, threads: int) -> None:
    expected = feed(tiny.native(threads=1), _native.KvTable(tiny.pages("int16")), TOKENS, [])
    for micro_batch, sizes in ((512, [1] * 74), (512, [2, 30, 13, 5]), (7, []), (512, [64])):
        model = tiny.native(threads, micro_batch)
        assert np.array_equal(feed(model, _native.KvTable(tiny.pages("int16")), TOKENS, sizes), expected), sizes


@pytest.mark.parametrize("tiny", MIXED, ids=KINDS)
def test_bits_do_not_depend_on_other_sequences(tiny: Tiny) -> None:
    model, pages = tiny.native(threads=3), tiny.pages("int16", most=200)
    texts = [TOKENS[i : i + n] for i, n in ((0, 40), (3, 1), (7, 2), (9, 66), (20, 33))]
    alone = [feed(model, _native.KvTable(pages), text, []) for text in texts]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        tables = [_native.KvTable(pages) for _ in order]
        found = model.forward(tables, [texts[i] for i in order], ["all"] * 5)
        assert np.array_equal(found, np.concatenate([alone[i] for i in order]))
        more = model.forward(tables, [[1], [2], [3], [4], [5]], ["last"] * 5).copy()
        for place, i in enumerate(order):
            table = _native.KvTable(pages)
            model.forward([table], [texts[i]], ["none"])
            assert np.array_equal(model.forward([table], [[place + 1]], ["last"]), more[place : place + 1])


def test_the_rows_that_are_wanted() -> None:
    tiny = Tiny()
    model, pages = tiny.native(micro_batch=6), tiny.pages()
    full = feed(model, _native.KvTable(pages), TOKENS[:20], [])
    tables = [_native.KvTable(pages) for _ in range(4)]
    found = model.forward(tables, [TOKENS[:20]] * 4, ["last", 9, "none", 0])
    assert np.array_equal(found, np.concatenate([full[-1:], full[-9:]]))
    assert not found.flags.writeable
    assert model.forward(tables[:1], [[1]], ["none"]).shape == (0, 70)
    assert [table.length for table in tables] == [21, 20, 20, 20]


def test_rows_outlive_their_model() -> None:
    tiny = Tiny()
    model = tiny.native()
    one = model.forward([_native.KvTable(tiny.pages())], [TOKENS], ["last"])
    many = model.forward([_native.KvTable(tiny.pages())], [TOKENS], ["all"])
    model.forward([_native.KvTable(tiny.pages())], [TOKENS[:9]], ["last"])
    del model
    assert np.isfinite(one).all()
    assert np.isfinite(many).all()


def test_an_interrupted_pass_leaves_everything_as_it_was() -> None:
    tiny = Tiny()
    model, pages, flag = tiny.native(micro_batch=16), tiny.pages(), _native.AbortFlag()
    table = _native.KvTable(pages)
    model.forward([table], [TOKENS[:20]], ["none"], flag)
    used = pages.used
    flag.set()
    with pytest.raises(_native.PassInterrupted):
        model.forward([table], [TOKENS[20:]], ["last"], flag)
    assert (table.length, pages.used) == (20, used)
    flag.clear()
    last = model.forward([table], [TOKENS[20:]], ["last"], flag)
    assert np.array_equal(last, feed(model, _native.KvTable(pages), TOKENS, [])[-1:])


def test_without_pages_nothing_is_computed() -> None:
    tiny = Tiny()
    model, pages = tiny.native(), tiny.pages(most=4)
    tables = [_native.KvTable(pages) for _ in range(2)]
    model.forward(tables, [TOKENS[:20], TOKENS[:33]], ["none", "none"])
    with pytest.raises(_native.KvFull):
        model.forward(tables, [TOKENS[:30], TOKENS[:40]], ["last", "last"])
    assert [table.length for table in tables] == [20, 33]
    assert pages.used == 3
    model.forward(tables, [TOKENS[:44], TOKENS[:31]], ["none", "none"])
    assert pages.used == 4


def test_calls_that_cannot_be() -> None:
    tiny = Tiny()
    model, pages = tiny.native(), tiny.pages()
    table, closed = _native.KvTable(pages), _native.KvTable(pages)
    closed.close()
    foreign = _native.KvTable(_native.KvPages(2, 2, 16, "f32", 4))
    calls: list[tuple[str, list[_native.KvTable], list[list[int]], list[str | int]]] = [
        ("token 70", [table], [[1, 70]], ["last"]),
        ("token -1", [table], [[-1]], ["last"]),
        ("without new tokens", [table], [[]], ["last"]),
        ("twice", [table, table], [[1], [2]], ["last", "last"]),
        ("one of each", [table], [[1], [2]], ["last"]),
        ("one of each", [table], [[1]], []),
        ("more rows", [table], [[1]], [2]),
        ("no rows", [table], [[1]], [-1]),
        ("'some'", [table], [[1]], ["some"]),
        ("closed", [closed], [[1]], ["last"]),
        ("another model", [foreign], [[1]], ["last"]),
    ]
    for words, tables, tokens, rows in calls:
        with pytest.raises(ValueError, match=words):
            model.forward(tables, tokens, rows)
    assert (table.length, pages.used) == (0, 0)
    assert model.forward([], [], []).shape == (0, 70)
    learned = Tiny(positions=75)
    with pytest.raises(ValueError, match="more tokens than the 75 positions"):
        learned.native().forward([_native.KvTable(learned.pages())], [[1] * 76], ["last"])
    with pytest.raises(ValueError, match="not finished"):
        tiny.unset().forward([table], [[1]], ["last"])
    with pytest.raises(ValueError, match="finished"):
        model.set_vector(0, "attn_norm", np.ones(64, np.float32))


def test_models_of_two_threads_take_turns() -> None:
    expected, found = [], {}
    models = [Tiny(seed=seed) for seed in (1, 2)]
    for tiny in models:
        expected.append(feed(tiny.native(), _native.KvTable(tiny.pages()), TOKENS, []))

    def run(which: int) -> None:
        tiny = models[which]
        model = tiny.native(threads=2 + which)
        found[which] = [feed(model, _native.KvTable(tiny.pages()), TOKENS, [10] * 7) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        assert all(np.array_equal(rows, expected[which]) for rows in found[which])


def test_a_sequence_in_a_pass_is_nobody_elses() -> None:
    tiny = Tiny()
    pages = _native.KvPages(tiny.n_layer, tiny.n_head_kv, tiny.head_dim, "int16", 2000)
    model, table, abort = tiny.native(), _native.KvTable(pages), _native.AbortFlag()
    ended: list[BaseException] = []

    def run() -> None:
        while not ended:
            try:
                model.forward([table], [TOKENS * 800], ["last"], abort)
            except _native.PassInterrupted as error:
                ended.append(error)
            except RuntimeError:  # the other thread was first
                continue

    calls: list[Callable[[], object]] = [
        lambda: table.save(0, 0),  # until the pass has begun
        lambda: model.forward([table], [[1]], ["last"]),
        lambda: table.load([bytes(pages.page_bytes // 32)], [1]),
        lambda: table.fork(0),
        lambda: table.reserve(1),
        lambda: table.truncate(0),
        table.close,
    ]
    thread = threading.Thread(target=run)

    def repeat(call: Callable[[], object]) -> None:
        while thread.is_alive():
            call()

    thread.start()
    try:
        for call in calls:
            with pytest.raises(RuntimeError, match="another thread uses"):
                repeat(call)
    finally:
        abort.set()
        thread.join()
    assert len(ended) == 1
    table.close()
    assert pages.used == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    tiny = Tiny()
    model, pages = tiny.native(threads=3), tiny.pages()
    expected = feed(model, _native.KvTable(pages), TOKENS, [])
    child = os.fork()
    if child == 0:
        same = np.array_equal(feed(model, _native.KvTable(pages), TOKENS, [7, 1]), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(feed(model, _native.KvTable(pages), TOKENS, [9]), expected)
