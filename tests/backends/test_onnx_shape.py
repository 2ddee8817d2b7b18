"""A token has the same bits in every run that `cut` makes: tried on a bare GroupQueryAttention in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgellm.backends.onnx.shape import cut, l2_cache

onnxruntime = pytest.importorskip("onnxruntime")
Array = NDArray[np.float32]
CAPACITY = 352


class Attention:
    """One attention over random queries, keys and values (CAPACITY, heads * size)."""

    def __init__(self, heads: int, kv_heads: int, size: int, threads: int) -> None:
        self._values = {}
        inputs, chance = [], np.random.default_rng(size)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            self._values[name] = chance.normal(size=(1, CAPACITY, count * size)).astype(np.float32)
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", count * size]))
        cache: list[str | int | None] = ["b", kv_heads, "t", size]
        inputs += [helper.make_tensor_value_info(f"past_{part}", TensorProto.FLOAT, cache) for part in "kv"]
        inputs += [helper.make_tensor_value_info("last", TensorProto.INT32, ["b"])]
        inputs += [helper.make_tensor_value_info("total", TensorProto.INT32, [])]
        outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", "s", heads * size])]
        outputs += [helper.make_tensor_value_info(f"present_{part}", TensorProto.FLOAT, cache) for part in "kv"]
        node = helper.make_node(
            "GroupQueryAttention",
            [value.name for value in inputs],
            [value.name for value in outputs],
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=kv_heads,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph([node], "attention", inputs, outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._cache = {part: np.zeros((1, kv_heads, CAPACITY, size), np.float32) for part in "kv"}

    def run(self, start: int, stop: int) -> Array:
        """What comes out for positions start to stop, which follow those before: (stop - start, heads * size)."""
        binding = self._session.io_binding()
        for name, values in self._values.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(values[:, start:stop]))
        binding.bind_cpu_input("last", np.array([stop - 1], np.int32))
        binding.bind_cpu_input("total", np.array(stop, np.int32))
        binding.bind_output("out")
        for part, cells in self._cache.items():
            place: tuple[Any, ...] = ("cpu", 0, np.float32, cells.shape, cells.ctypes.data)
            binding.bind_input(f"past_{part}", *place)
            binding.bind_output(f"present_{part}", *place)
        self._session.run_with_iobinding(binding)
        found: Array = binding.get_outputs()[0].numpy()[0].copy()
        return found

    def cut(self, start: int, count: int, size: int) -> Array:
        """The same for `count` tokens, in the runs that `cut` makes."""
        rows = []
        for tokens, more in cut(start, count, {size}, l2_cache()):
            rows.append(self.run(start, start + tokens + more)[:tokens])
            start += tokens
        return np.concatenate(rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 16), (3, 1, 64), (2, 1, 128), (4, 1, 256), (2, 2, 512)])
def test_a_token_has_the_same_bits_in_every_run(heads: int, kv_heads: int, size: int, threads: int) -> None:
    attention = Attention(heads, kv_heads, size, threads)
    expected = attention.cut(0, CAPACITY - 1, size)
    for start in range(0, 340, 20 if size < 256 else 68):
        for count in (2, 8, 9, 17, 31, 32, 33, 64, 65, 66, 97, 129, 191, 257):
            stop = start + count
            if stop < CAPACITY:
                assert np.array_equal(attention.cut(start, count, size), expected[start:stop]), (start, stop)
    for ends in (65, 97, 129, 257, 289, 321, 322, 330):
        assert np.array_equal(attention.cut(0, ends, size), expected[:ends]), ends


def test_where_runs_end() -> None:
    mib = 1 << 20
    assert cut(0, 33, {16}, 2 * mib) == [(33, True)]
    assert cut(0, 34, {16}, 2 * mib) == [(34, False)]
    assert cut(0, 33, {64}, 2 * mib) == [(33, False)]
    assert cut(8, 129, {64}, 2 * mib) == [(129, True)]
    assert cut(7, 1, {16, 256}, None) == [(1, False)]
    assert cut(0, 512, {256}, 2 * mib) == [(64, False), (256, False), (192, False)]
    assert cut(60, 5, {256}, 2 * mib) == [(4, False), (1, True)]
    assert cut(0, 100, {64, 512}, 8 * mib) == [(32, False), (32, False), (36, False)]
    assert cut(0, 300, {256}, mib // 4) == [(300, False)]  # blocks of 32 keys
    for l2 in (None, 0):
        assert sum(tokens for tokens, _ in cut(4, 500, {256}, l2)) == 500
    assert cut(0, 500, {256}, 0) == [(500, False)]  # blocks of one
    assert cut(0, 49, {128}, None) == [(49, True)]
