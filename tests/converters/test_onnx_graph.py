"""The ONNX graph of every family against llama.cpp, and what its inputs, its storage and its errors are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, EMBEDDERS, LLAMA, Array, atol, checkpoint, convert, embeddings, logits
from numpy.typing import NDArray
from onnx_models import VARIANTS, ArrayWeights, Runner, opened, write

from edgellm.architectures import Rope, from_config
from edgellm.converters.onnx.graph import rotary
from edgellm.converters.onnx.graph.builder import GraphBuilder
from edgellm.converters.onnx.graph.carrier import Carrier
from edgellm.converters.onnx.graph.floats import FloatMatrix, Floats
from edgellm.converters.onnx.graph.matrix import Matrix
from edgellm.converters.onnx.graph.model import model_graph
from edgellm.converters.onnx.graph.quantized import QuantizedMatrix
from edgellm.converters.quant.ggml import quantize
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.onnx_graph import Graph
from edgellm.formats.onnx_writer import write_onnx

TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
CROSSING = ("phi3-longrope-long", "phi3-longrope-16")  # have other angles from 33 tokens on
DECODERS = [name for name in VARIANTS if name not in EMBEDDERS]


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_agrees_with_llama_cpp(name: str, tmp_path: Path) -> None:
    tensors, close = checkpoint(VARIANTS[name]), atol(VARIANTS[name])
    expected = logits(convert(VARIANTS[name], tensors, tmp_path / "tiny.gguf"), TOKENS)
    runner = Runner(tmp_path / "model.onnx", write(tmp_path / "model.onnx", VARIANTS[name], tensors))
    assert np.abs(expected).max() > 0.5
    once, _ = runner.run([TOKENS], [40], runner.empty())
    np.testing.assert_allclose(once[0], expected, rtol=0, atol=close)
    last, _ = runner.run([TOKENS], [40], runner.empty(), keep=1)
    assert last.shape == (1, 1, 271)
    np.testing.assert_allclose(last, once[:, -1:], rtol=0, atol=1e-4)

    # in pieces: a cache that grows, then one that is written into
    sizes = (34, 1, 5) if name in CROSSING else (5, 3, 26, 1, 5)
    stops = np.cumsum(sizes).tolist()
    growing, shared = runner.empty(), runner.empty(length=64)
    for size, stop in zip(sizes, stops, strict=True):
        piece = TOKENS[stop - size : stop]
        found, growing = runner.run([piece], [stop], growing)
        np.testing.assert_allclose(found, once[:, stop - size : stop], rtol=0, atol=1e-4)
        found = runner.run_shared([piece], [stop], shared)
        np.testing.assert_allclose(found, once[:, stop - size : stop], rtol=0, atol=1e-4)

    # 39 and 33 tokens side by side, then one more for each: causal, so both are parts of what was seen above
    slab = runner.empty(batch=2, length=64)
    runner.run_shared([TOKENS[:39], [*TOKENS[:33], *[0] * 6]], [39, 33], slab)
    found = runner.run_shared([TOKENS[39:], TOKENS[33:34]], [40, 34], slab)
    np.testing.assert_allclose(found[:, 0], once[0, [39, 33]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_encoder_agrees_with_llama_cpp(name: str, tmp_path: Path) -> None:
    tensors = checkpoint(CONFIGS[name])
    expected = embeddings(convert(CONFIGS[name], tensors, tmp_path / "tiny.gguf"), TOKENS)
    write(tmp_path / "model.onnx", CONFIGS[name], tensors)
    session = opened(tmp_path / "model.onnx")
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state"]
    ids = np.array([TOKENS, [*TOKENS[:25], *[5] * 15]], np.int64)
    mask = np.array([[1] * 40, [1] * 25 + [0] * 15], np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    if "type_vocab_size" in VARIANTS[name]:
        feeds["token_type_ids"] = np.zeros_like(ids)
    assert {value.name for value in session.get_inputs()} == set(feeds)
    (found,) = session.run(None, feeds)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=atol(CONFIGS[name]))
    alone = session.run(None, {key: value[1:, :25] for key, value in feeds.items()})[0]
    np.testing.assert_allclose(found[1, :25], alone[0], rtol=0, atol=1e-5)


def test_inputs_and_outputs_are_those_of_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", LLAMA, checkpoint(LLAMA))
    session = opened(tmp_path / "model.onnx")
    caches = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    assert [x.name for x in inputs] == ["input_ids", "attention_mask", *(f"past_key_values.{c}" for c in caches)]
    assert [x.name for x in outputs] == ["logits", *(f"present.{cache}" for cache in caches)]
    assert inputs[2].shape == ["batch_size", 2, "past_sequence_length", 16]
    assert outputs[1].shape == ["batch_size", 2, "total_sequence_length", 16]
    assert outputs[0].shape[2] == 271
    assert [x.name for x in session.get_overridable_initializers()] == ["num_logits_to_keep"]


def _graph(config: Mapping[str, Any], n_ctx: int | None = None, *, without: str = "") -> Graph:
    weights = ArrayWeights(config, checkpoint(dict(config)))
    weights.found.pop(without, None)
    return model_graph(weights.hyper, weights, n_ctx)


def _operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


def test_qkv_and_gate_up_are_one_product_where_possible() -> None:
    assert _operators(_graph(LLAMA))["FusedMatMul"] == 2 * 4 + 1
    assert _operators(_graph(CONFIGS["qwen3"]))["FusedMatMul"] == 2 * 6 + 1


def test_matrices_that_are_stored_differently_stay_apart(tmp_path: Path) -> None:
    weights = ArrayWeights(CONFIGS["qwen2"], checkpoint(CONFIGS["qwen2"]))
    found = []
    for stackable in (True, False):
        weights.stackable = lambda *names, answer=stackable: answer  # type: ignore[method-assign]
        write_onnx(tmp_path / "model.onnx", model_graph(weights.hyper, weights))
        runner = Runner(tmp_path / "model.onnx", weights.hyper)
        found.append(runner.run([TOKENS], [40], runner.empty())[0])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


class Blocks(Array):
    """A matrix that is stored in blocks."""

    type, exact = GGMLType.Q4_1, True

    def raw(self, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        return quantize(self.type, self.values)[which]

    def release(self) -> None:
        pass


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_may_be_quantized(name: str, tmp_path: Path) -> None:
    """A pass of one token leaves most of them without any."""
    weights = ArrayWeights(CONFIGS[name], checkpoint(CONFIGS[name]))
    matrix = weights.matrix

    def quantized(*names: str) -> Matrix:
        if "ffn" not in names[0]:
            return matrix(*names)
        tensors = [Blocks(weights.found[each]) for each in names]
        return QuantizedMatrix("+".join(names), tensors, Carrier(4, 32, correction=True), accuracy_level=0)

    weights.matrix = quantized  # type: ignore[method-assign]
    write_onnx(tmp_path / "model.onnx", model_graph(weights.hyper, weights))
    runner = Runner(tmp_path / "model.onnx", weights.hyper)
    once, _ = runner.run([TOKENS[:8]], [8], runner.empty())
    cache = runner.empty()
    for i, token in enumerate(TOKENS[:8]):
        found, cache = runner.run([[token]], [i + 1], cache)
        np.testing.assert_allclose(found[0, 0], once[0, i], rtol=0, atol=1e-4)


def test_a_tied_embedding_is_stored_once() -> None:
    tied, apart = _graph({**LLAMA, "tie_word_embeddings": True}), _graph(LLAMA)
    large = [[x.name for x in graph.initializers if x.shape == (271, 64)] for graph in (tied, apart)]
    assert large == [["token_embd.weight"], ["token_embd.weight", "output.weight"]]


@pytest.mark.parametrize("n_ctx", [40, 20000, None])
def test_the_tables_reach_as_far_as_the_context(n_ctx: int | None) -> None:
    (table,) = (x for x in _graph(LLAMA, n_ctx).initializers if x.name == "rotary.0.cos")
    assert table.shape == (n_ctx or 128, 8)
    values = np.concatenate(list(table.data()))
    assert values.shape == table.shape
    position = len(values) - 1
    angles = position * 10000.0 ** -(np.arange(8) / 8)
    np.testing.assert_allclose(values[-1], np.cos(angles), rtol=0, atol=3e-3)  # of float32 angles
    np.testing.assert_array_equal(values[0], 1.0)


def test_beyond_the_tables_is_an_error(tmp_path: Path) -> None:
    hyper = write(tmp_path / "model.onnx", LLAMA, checkpoint(LLAMA), n_ctx=39)
    runner = Runner(tmp_path / "model.onnx", hyper)
    runner.run([TOKENS[:39]], [39], runner.empty())
    with pytest.raises(Exception, match="cos_cache"):
        runner.run([TOKENS], [40], runner.empty())


def test_windowed_layers_may_share_a_base_not_the_angles() -> None:
    graph = _graph({**CONFIGS["gemma3"], "rope_theta": 10000.0})  # only the full layers are stretched, by 8
    tables = {x.name: np.concatenate(list(x.data())) for x in graph.initializers if x.name.endswith(".sin")}
    np.testing.assert_allclose([table[1, 0] for table in tables.values()], np.sin([1.0, 1 / 8]), rtol=1e-6)
    used = [node.inputs[8] for node in graph.nodes if node.op == "GroupQueryAttention"]
    local, full = tables
    assert used == [local] * 5 + [full, local]


def test_longrope_has_both_factors_only_for_long_contexts() -> None:
    rope = Rope(
        10000.0, 4, scaling="longrope", factor=2.0, original=3, magnitude=1.5, short=(1.0, 1.0), long=(2.0, 4.0)
    )
    assert rotary.rows(rope, 3) == 3
    assert rotary.rows(rope, 4) == 7
    sine = np.concatenate(list(rotary.tables(rope, 4, sine=True)))
    angles = [[0, 0], [1, 0.01], [2, 0.02], [0, 0], [0.5, 0.0025], [1, 0.005], [1.5, 0.0075]]
    np.testing.assert_allclose(sine, 1.5 * np.sin(angles), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "close"), [("F32", 1e-5), ("F16", 2e-2), ("BF16", 1e-1)])
def test_float_matrices(dtype: Floats, close: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts: list[NDArray[np.float32]] = [rng.standard_normal((n, 33)).astype(np.float32) for n in (5, 7)]
    whole, bias = np.concatenate(parts), rng.standard_normal(12).astype(np.float32)
    matrix = FloatMatrix("w", [Array(part) for part in parts], dtype)
    assert matrix.shape == (12, 33)
    graph = GraphBuilder("matrix")
    x, ids = graph.input("x", "FLOAT", ("batch", "n", 33)), graph.input("ids", "INT64", ("batch", "m"))
    matrix.multiply(graph, x)
    graph.node("Identity", matrix.multiply(graph, x, graph.array("bias", bias)), to="y")
    graph.node("Identity", matrix.gather(graph, ids), to="rows")
    graph.output("y", "FLOAT", ("batch", "n", 12))
    graph.output("rows", "FLOAT", ("batch", "m", 33))
    built = graph.build()
    (stored,) = (one for one in built.initializers if one.name == "w")
    assert stored.nbytes == whole.size * (4 if dtype == "F32" else 2)
    assert _operators(built)["Cast"] == (0 if dtype == "F32" else 2)  # once for both products, once for the rows
    write_onnx(tmp_path / "w.onnx", built)
    feeds = {"x": rng.standard_normal((2, 3, 33)).astype(np.float32), "ids": np.array([[11, 0]], np.int64)}
    y, rows = opened(tmp_path / "w.onnx").run(None, feeds)
    np.testing.assert_allclose(y, feeds["x"] @ whole.T + bias, rtol=0, atol=close)
    np.testing.assert_allclose(rows[0], whole[[11, 0]], rtol=0, atol=close)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = checkpoint(LLAMA)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    with pytest.raises(InvalidModelFile, match=r"blk\.1\.ffn_up\.weight.*NaN"):
        write(tmp_path / "model.onnx", LLAMA, tensors)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_f16_are_refused(tmp_path: Path) -> None:
    tensors = checkpoint(LLAMA)
    tensors["lm_head.weight"][0, 0] = 1e5
    with pytest.raises(InvalidModelFile, match=r"output\.weight.*does not fit F16"):
        write(tmp_path / "model.onnx", LLAMA, tensors, "F16")


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(Unsupported, match="heads of 20 elements"):
        _graph({**LLAMA, "hidden_size": 80})
    with pytest.raises(InvalidParameter, match="n_ctx = 0"):
        _graph(LLAMA, 0)
    with pytest.raises(InvalidParameter, match="n_ctx = 129; this model has learned 128 positions"):
        _graph(CONFIGS["gpt2"], 129)
    with pytest.raises(InvalidModelFile, match=r"of blk.0.attn_q.bias, .* only blk.0.attn_q.bias, blk.0.attn_v.bias"):
        _graph(CONFIGS["qwen2"], without="blk.0.attn_k.bias")


def test_the_same_model_gives_the_same_graph() -> None:
    one, other = _graph(CONFIGS["gemma3"]), _graph(CONFIGS["gemma3"])
    assert one.nodes == other.nodes
    assert [x.name for x in one.initializers] == [x.name for x in other.initializers]
    assert from_config(CONFIGS["gemma3"])[1].n_layer == _operators(one)["GroupQueryAttention"]
