"""edgellm's own attention inside of ONNX Runtime, against ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm import _native
from edgellm.backends.onnx import kernels, library
from edgellm.backends.onnx.graph import Kept
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Graph, Initializer, Node, Value
from edgellm.formats.onnx_writer import write_onnx

library.load_library()
pytestmark = pytest.mark.skipif(not _native.attends_in_onnx(), reason="this processor has none of the kernels")

F32 = NDArray[np.float32]
CAPACITY = 384


@dataclass(frozen=True)
class Shape:
    """One layer of attention."""

    heads: int
    kv_heads: int
    size: int
    rotary: int = 0
    window: int = -1
    scale: float = 0.0
    packed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return ("query",) if self.packed else ("query", "key", "value")

    def width(self, name: str) -> int:
        heads = {"query": self.heads, "key": self.kv_heads, "value": self.kv_heads}[name]
        return (self.heads + 2 * self.kv_heads if self.packed else heads) * self.size

    def graph(self) -> Graph:
        given = [name if name in self.names else "" for name in ("query", "key", "value")]
        rotation = ["cos", "sin"] if self.rotary else []
        attributes: dict[str, Any] = {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "local_window_size": self.window,
            "do_rotary": int(bool(self.rotary)),
        }
        node = Node(
            "GroupQueryAttention",
            (*given, "past_key", "past_value", "last", "total", *rotation),
            ("out", "present_key", "present_value"),
            "com.microsoft",
            "attention",
            attributes,
        )
        cache = ("b", self.kv_heads, "capacity", self.size)
        values = [Value(name, "FLOAT", ("b", "s", self.width(name))) for name in self.names]
        values += [Value(f"past_{name}", "FLOAT", cache) for name in ("key", "value")]
        values += [Value("last", "INT32", ("b",)), Value("total", "INT32", ())]
        out = [Value("out", "FLOAT", ("b", "s", self.heads * self.size))]
        out += [
            Value(f"present_{name}", "FLOAT", ("b", self.kv_heads, "total_capacity", self.size))
            for name in ("key", "value")
        ]
        return Graph("test", tuple(values), tuple(out), (node,), tuple(self._rotation()))

    def _rotation(self) -> list[Initializer]:
        if not self.rotary:
            return []
        angles = np.outer(np.arange(CAPACITY), 10000.0 ** (-np.arange(0, self.rotary, 2) / self.rotary))
        both = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        return [Initializer(name, "FLOAT", each.shape, lambda each=each: iter([each])) for name, each in both.items()]  # type: ignore[misc]


class Layer:
    """A layer in two sessions, of ours and of ONNX Runtime."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self._path = folder / "attention.onnx"
        write_onnx(self._path, shape.graph())
        with ONNXFile.open(self._path) as file:
            [node] = file.graph.nodes
            self._ours = file.rewritten(replace(file.graph, nodes=(kernels.attend(node),)), folder)
        self.ours, self.theirs = self.session(self._ours), self.session(str(self._path))

    def session(self, model: str | bytes, threads: int = 2) -> Any:
        options = library.load_library().SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = library.FATAL
        kernels.register(options, self._path.parent)
        return library.load_library().InferenceSession(model, options, providers=[library.CPU])

    def alone(self) -> Any:
        """A session of ours with one thread."""
        return self.session(self._ours, 1)


def _tokens(shape: Shape, batch: int, tokens: int, seed: int = 0) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 1, (batch, tokens, shape.width(name))).astype(np.float32) for name in shape.names}


def _cache(shape: Shape, batch: int, past: list[int]) -> dict[str, F32]:
    """Keys and values of so many tokens; behind them what nobody may read."""
    rng = np.random.default_rng(1)
    found = {}
    for name in ("past_key", "past_value"):
        found[name] = rng.normal(0, 1, (batch, shape.kv_heads, CAPACITY, shape.size)).astype(np.float32)
        for b, length in enumerate(past):
            found[name][b, :, length:] = np.nan if name == "past_value" else 1e30
    return found


def _run(session: Any, tokens: Mapping[str, F32], cache: Mapping[str, F32], past: list[int]) -> list[F32]:
    """out, present_key, present_value: the cache is bound as both, and changed."""
    new = tokens["query"].shape[1]
    binding = session.io_binding()
    last = np.array([length + new - 1 for length in past], np.int32)
    for name, value in {**tokens, **cache, "last": last, "total": np.array(last.max() + 1, np.int32)}.items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.__array_interface__["data"][0])
    kept = {f"present_{name}": cache[f"past_{name}"] for name in ("key", "value")}
    out = np.empty((*tokens["query"].shape[:2], session.get_outputs()[0].shape[-1]), np.float32)
    for name, value in {"out": out, **kept}.items():
        binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.__array_interface__["data"][0])
    session.run_with_iobinding(binding)
    return [out, *kept.values()]


SHAPES = [
    Shape(9, 3, 64, rotary=64, packed=True),
    Shape(4, 1, 256, rotary=256, window=40, scale=0.0625),
    Shape(8, 8, 32),
    Shape(6, 1, 96, rotary=32, scale=0.2),  # rotated in part, as in Phi; six heads share their keys
    Shape(2, 2, 128, rotary=128, window=16, packed=True),
    Shape(10, 2, 160, rotary=160),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_single_tokens_are_attended_to_in_floats(shape: Shape, tmp_path: Path) -> None:
    layer = Layer(shape, tmp_path)
    for past in ([0], [5], [127], [128], [300], [40, 0, 371, 129]):
        tokens = _tokens(shape, len(past), 1)
        ours = _run(layer.ours, tokens, _cache(shape, len(past), past), past)
        theirs = _run(layer.theirs, tokens, _cache(shape, len(past), past), past)
        for mine, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_several_tokens_are_attended_to(shape: Shape, tmp_path: Path) -> None:
    rounding = 0.02 if _native.bfloat16_kernels() else 2e-5
    layer = Layer(shape, tmp_path)
    for new, past in ((2, 0), (16, 0), (33, 0), (200, 0), (2, 61), (65, 129), (100, 284)):
        tokens = _tokens(shape, 1, new)
        ours = _run(layer.ours, tokens, _cache(shape, 1, [past]), [past])
        theirs = _run(layer.theirs, tokens, _cache(shape, 1, [past]), [past])
        np.testing.assert_allclose(ours[0], theirs[0], rtol=rounding, atol=rounding)
        assert np.abs(ours[0] - theirs[0]).mean() < rounding / 6
        for mine, expected in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)


def test_texts_of_different_length_side_by_side(tmp_path: Path) -> None:
    shape = SHAPES[0]
    layer = Layer(shape, tmp_path)
    past = [10, 0, 129]
    tokens = _tokens(shape, 3, 20)
    together = _run(layer.ours, tokens, _cache(shape, 3, past), past)
    for b, length in enumerate(past):
        cache = {name: np.ascontiguousarray(each[b : b + 1]) for name, each in _cache(shape, 3, past).items()}
        alone = _run(layer.ours, {name: each[b : b + 1] for name, each in tokens.items()}, cache, [length])
        assert (alone[0] == together[0][b : b + 1]).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_token_has_the_same_bits_in_whichever_run(shape: Shape, tmp_path: Path) -> None:
    layer = Layer(shape, tmp_path)
    total = 150
    tokens = _tokens(shape, 1, total)
    whole = _run(layer.ours, tokens, _cache(shape, 1, [0]), [0])
    alone = _run(layer.alone(), tokens, _cache(shape, 1, [0]), [0])
    assert (alone[0] == whole[0]).all()
    for cuts in ((0, 2, 35, 150), (0, 64, 100, 131, 150)):
        cache = _cache(shape, 1, [0])
        for start, stop in pairwise(cuts):
            part = {name: np.ascontiguousarray(each[:, start:stop]) for name, each in tokens.items()}
            out, *_ = _run(layer.ours, part, cache, [start])
            assert (out == whole[0][:, start:stop]).all()


def test_a_cache_in_another_place_is_copied(tmp_path: Path) -> None:
    shape = SHAPES[2]
    layer = Layer(shape, tmp_path)
    tokens, cache = _tokens(shape, 1, 3), _cache(shape, 1, [7])
    feed = {**tokens, **cache, "last": np.array([9], np.int32), "total": np.array(10, np.int32)}
    out, keys, values = layer.ours.run(None, feed)
    expected = _run(layer.ours, tokens, {name: each.copy() for name, each in cache.items()}, [7])
    for mine, other in zip((out, keys[:, :, :10], values[:, :, :10]), expected, strict=True):
        assert (mine == other[:, :, :10] if other.ndim == 4 else mine == other).all()
    assert np.isnan(cache["past_value"][:, :, 7:]).all()  # what was given is as it was


@pytest.mark.parametrize("last", [-1, 1, CAPACITY, 2**31 - 1, -(2**31)])
def test_positions_outside_of_the_cache_are_refused(last: int, tmp_path: Path) -> None:
    shape = SHAPES[0]
    layer = Layer(shape, tmp_path)
    feed = {**_tokens(shape, 1, 3), **_cache(shape, 1, [0])}
    with pytest.raises(Exception, match="a position is outside of the cache"):
        layer.ours.run(None, {**feed, "last": np.array([last], np.int32), "total": np.array(3, np.int32)})


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shape = SHAPES[2]
    layer = Layer(shape, tmp_path)
    feed = {**_tokens(shape, 1, 3), **_cache(shape, 1, [0])}
    feed |= {"last": np.array([2], np.int32), "total": np.array(3, np.int32)}  # type: ignore[dict-item]
    wrong = {
        "key": np.zeros((1, 2, 256), np.float32),
        "past_key": np.zeros((1, 8, 5, 32), np.float32),
        "last": np.array([2, 2], np.int32),
    }
    for name, value in wrong.items():
        with pytest.raises(Exception, match="GroupQueryAttention"):
            layer.ours.run(None, {**feed, name: value})


def _with_products(shape: Shape, level: int = 4, **attributes: Any) -> Graph:
    """A graph of a product and attention."""
    layer = shape.graph()
    codes, scales = np.zeros((16, 2, 16), np.uint8), np.ones((16, 2), np.float32)
    weights = (
        Initializer("B", "UINT8", codes.shape, lambda: iter([codes])),
        Initializer("S", "FLOAT", scales.shape, lambda: iter([scales])),
    )
    numbers = {"K": 64, "N": 16, "bits": 4, "block_size": 32, "accuracy_level": level}
    product = Node("MatMulNBits", ("x", "B", "S"), ("y",), "com.microsoft", "product", numbers)
    node = layer.nodes[0]
    inputs = attributes.pop("inputs", node.inputs)
    changed = Node(node.op, inputs, node.outputs, node.domain, node.name, {**node.attributes, **attributes})
    return Graph(
        "test",
        (Value("x", "FLOAT", ("a", "b", 64)), *layer.inputs),
        (Value("y", "FLOAT", ("a", "b", 16)), *layer.outputs),
        (product, changed),
        (*weights, *layer.initializers),
    )


def test_which_attention_is_ours() -> None:
    def ours(graph: Graph, dtype: str = "FLOAT") -> bool:
        size = next(value.shape[-1] for value in graph.inputs if value.name == "past_key")
        assert isinstance(size, int)
        kept = [Kept(f"past_{name}", f"present_{name}", dtype, 1, size) for name in ("key", "value")]
        nodes = kernels.ours(graph, 2, None, kept).nodes
        return any(node.domain == kernels.OURS and node.op == kernels.ATTENTION for node in nodes)

    shape = SHAPES[0]
    assert ours(_with_products(shape))
    assert not ours(_with_products(shape), "INT8")
    assert not ours(_with_products(shape, level=0))  # an exact model stays exact
    alone = shape.graph()
    assert kernels.ours(alone, 2, None) is alone
    assert not ours(_with_products(Shape(8, 8, 48)))
    names = shape.graph().nodes[0].inputs
    for other in (
        {"softcap": 30.0},
        {"rotary_interleaved": 1},
        {"smooth_softmax": 1},
        {"scale": -1.0},
        {"local_window_size": 0},
        {"what_comes_later": 1},
        {"inputs": (*names, "positions")},
        {"inputs": (*names, "", "", "sink")},
    ):
        assert not ours(_with_products(shape, **other))  # type: ignore[arg-type]
    assert ours(_with_products(shape, softcap=0.0, smooth_softmax=0, inputs=(*names, "", "", "")))
