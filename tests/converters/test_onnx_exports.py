"""Foreign exports, committed as their tools wrote them, against what ONNX Runtime makes of them.

tests/fixtures/onnx/README.md says how they were made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from arch_models import CONFIGS, LLAMA, checkpoint, logits
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgellm.architectures import from_config, to_gguf
from edgellm.converters.onnx.blocks import BlockNames, Blocks
from edgellm.converters.onnx.graph.builder import GraphBuilder
from edgellm.converters.onnx.graph.carrier import carrier_of
from edgellm.converters.onnx.graph.floats import FloatMatrix
from edgellm.converters.onnx.graph.quantized import QuantizedMatrix
from edgellm.converters.onnx.source import ONNXFolder
from edgellm.converters.quant.ggml import dequantize, quantize
from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.joined import Joined
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_writer import write_onnx
from edgellm.formats.tensor import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures" / "onnx"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
TOKENS = [1, 17, 130, 255, 9, 44, 200, 3]
# how far logits may be apart; of Gemma, where the builder keeps two decimals of the embedding's factor and llama.cpp
# looks its activation up in a table of float16
APART = {
    "genai-int4": 1e-4,
    "genai-int4-zero-points": 1e-4,
    "genai-qwen2-tied": 1e-4,
    "genai-gemma2": 1e-2,
    "optimum": 1e-4,
}


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Any]:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(FIXTURES / name, tmp_path / name))

    return copy


def whole(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.rows(slice(None))


def as_gguf(folder: Path, path: Path) -> Path:
    """The folder as a GGUF file of F32 tensors."""
    with closing(ONNXFolder(folder)) as opened:
        made = opened.contents
        tensors = [(name, t.shape, GGMLType.F32, whole(t)) for name, t in made.tensors.items()]
        write_gguf(path, {**made.metadata, "general.file_type": 0}, tensors)
    return path


def onnx_logits(folder: Path) -> NDArray[np.float32]:
    """ONNX Runtime's, with float32 activations and a cache that grows: (n, n_vocab)."""
    [path] = folder.glob("*.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("accuracy_level", "sliding_window_cache"):
                attribute.i = 0
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    n = len(TOKENS)
    feeds: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, 1, 0, 16), np.float32)
    plain = {"input_ids": np.array([TOKENS]), "attention_mask": np.ones((1, n)), "position_ids": np.arange(n)[None]}
    names = {value.name for value in session.get_inputs()}
    feeds |= {name: values.astype(np.int64) for name, values in plain.items() if name in names}
    rows: NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return rows


@pytest.mark.parametrize("name", APART)
def test_llama_cpp_computes_what_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    expected = onnx_logits(FIXTURES / name)
    found = logits(as_gguf(FIXTURES / name, tmp_path / "model.gguf"), TOKENS, ctx=64)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=APART[name])


def test_weights_are_those_of_the_original() -> None:
    original = checkpoint({**CONFIGS["gemma2"], **SMALL, "head_dim": 16, "query_pre_attn_scalar": 16})
    with closing(ONNXFolder(FIXTURES / "genai-gemma2")) as folder:
        assert folder.tensors.keys() - original.keys() == {"lm_head.weight"}
        for name, values in original.items():
            found = whole(folder.tensors[name]).reshape(values.shape)
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-7 if "norm" in name else 0, err_msg=name)
        tied = whole(folder.tensors["lm_head.weight"])
        np.testing.assert_array_equal(tied, original["model.embed_tokens.weight"])


def test_int8_differs_by_its_rounded_activations_only(tmp_path: Path) -> None:
    expected = onnx_logits(FIXTURES / "optimum-int8")
    found = logits(as_gguf(FIXTURES / "optimum-int8", tmp_path / "model.gguf"), TOKENS, ctx=64)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.995


def test_int8_weights_are_those_of_dequantizelinear() -> None:
    path = FIXTURES / "optimum-int8" / "model_quantized.onnx"
    held = {t.name: t for t in onnx.load(path).graph.initializer}
    names = [name.removesuffix("_quantized") for name in held if name.endswith("_quantized")]
    with closing(ONNXFolder(path)) as folder:
        found = sorted(float(whole(t).astype(np.float64).sum()) for t in folder.tensors.values() if t.stored == "INT8")
        expected = []
        for name in names:
            parts = [f"{name}{ending}" for ending in ("_quantized", "_scale", "_zero_point")]
            node = helper.make_node("DequantizeLinear", parts, ["y"])
            out = run([node], [held[part] for part in parts])
            expected.append(float(out.astype(np.float64).sum()))
    assert len(names) > 10
    np.testing.assert_allclose(found, sorted(expected), atol=1e-9)


def run(nodes: list[Any], weights: list[Any], x: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """What ONNX Runtime gives for "y"."""
    inputs = [] if x is None else [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["y"], {} if x is None else {"x": x})[0]
    return found


# bits, block, zero points, columns, what the blocks are in GGUF
BLOCKS = [
    (4, 32, "none", 64, "Q4_0"),
    (4, 64, "none", 128, "Q4_0"),
    (4, 32, "packed", 96, "Q4_1"),
    (4, 32, "floats", 64, "Q4_1"),
    (4, 16, "none", 64, None),
    (4, 32, "none", 48, None),
    (8, 32, "none", 64, "Q8_0"),
    (8, 128, "none", 256, "Q8_0"),
    (8, 32, "packed", 64, None),
]


@pytest.mark.parametrize(("bits", "block", "zeros", "columns", "kind"), BLOCKS)
def test_blocks_are_what_matmulnbits_multiplies_with(
    tmp_path: Path, bits: int, block: int, zeros: str, columns: int, kind: str | None
) -> None:
    random = np.random.default_rng(bits * block)
    n, blocks = 5, -(-columns // block)
    arrays: dict[str, NDArray[Any]] = {
        "q": random.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8),
        "scale": random.normal(0, 0.1, (n, blocks)).astype(np.float16).astype(np.float32),
    }
    if zeros == "packed":
        arrays["zero"] = random.integers(0, 256, (n, -(-blocks * bits // 8))).astype(np.uint8)
    elif zeros == "floats":
        arrays["zero"] = random.normal(8, 2, (n, blocks)).astype(np.float32)
    weights = [numpy_helper.from_array(values, name) for name, values in arrays.items()]
    sizes = {"N": n, "K": columns, "bits": bits, "block_size": block, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], "/lm_head/MatMul", domain="com.microsoft", **sizes)
    expected = run([node], weights, np.eye(columns, dtype=np.float32)).T
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, columns])
    graph = helper.make_graph([node], "g", [entry], [output], weights)
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "m.onnx")
    with ONNXFile.open(tmp_path / "m.onnx") as file:
        names = BlockNames("q", "scale", "zero" if "zero" in arrays else None)
        tensor = Blocks(file, names, (n, columns), bits, block)
        np.testing.assert_allclose(whole(tensor), expected, atol=1e-5)
        np.testing.assert_array_equal(tensor.rows(np.array([3, 0])), whole(tensor)[[3, 0]])
        assert (tensor.type.name if tensor.type else None) == kind
        if tensor.type is None:
            assert not tensor.exact
            with pytest.raises(Unsupported, match="no GGUF blocks"):
                tensor.raw(slice(None))
            return
        oracle = gguf.GGMLQuantizationType[tensor.type.name]
        again = gguf.quants.dequantize(tensor.raw(slice(None)), oracle)
        assert tensor.exact == (zeros == "none")
        tolerance = 0.0 if tensor.exact else 2.0**-10 * float(np.abs(expected).max())
        np.testing.assert_allclose(again, whole(tensor), rtol=0, atol=tolerance)


def test_scales_beyond_float16_have_no_blocks(tmp_path: Path) -> None:
    q = np.zeros((1, 1, 16), np.uint8)
    weights = [numpy_helper.from_array(v, n) for n, v in {"q": q, "scale": np.array([[1e6]], np.float32)}.items()]
    graph = helper.make_graph([], "g", [], [], weights)
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "m.onnx")
    with ONNXFile.open(tmp_path / "m.onnx") as file:
        tensor = Blocks(file, BlockNames("q", "scale"), (1, 32), 4, 32)
        assert tensor.type is None
        assert whole(tensor).min() == -8e6


@pytest.mark.parametrize(
    ("name", "config"), [("genai-int4", {**LLAMA, **SMALL}), ("genai-qwen2-tied", {**CONFIGS["qwen2"], **SMALL})]
)
def test_a_folder_without_config_json_gives_the_same_hyper(name: str, config: dict[str, Any]) -> None:
    with closing(ONNXFolder(FIXTURES / name)) as folder:
        found = from_config(folder.config)[1]
        assert len(folder.notes) == 1
    assert found == from_config(config)[1]


def test_blocks_survive_the_split_of_fused_matrices() -> None:
    with closing(ONNXFolder(FIXTURES / "genai-int4")) as folder:
        tensor = folder.tensors["model.layers.1.self_attn.k_proj.weight"]
        assert isinstance(tensor, Joined)
        assert (tensor.shape, tensor.stored, tensor.type, tensor.exact) == ((16, 32), "INT4/32", GGMLType.Q4_0, True)
        np.testing.assert_array_equal(dequantize(GGMLType.Q4_0, tensor.raw(slice(None)), 32), whole(tensor))
        assert [item.name for item in folder.left_out] == ["cos_cache", "sin_cache"]
        assert len(folder.fingerprint) == 32
        assert folder.names == "huggingface"


class Quantized:
    """A matrix in GGUF blocks, in memory."""

    exact = True

    def __init__(self, kind: GGMLType, values: NDArray[np.float32]) -> None:
        self.shape, self.type, self.stored = values.shape, kind, kind.name
        self._raw = quantize(kind, values)

    def raw(self, which: Any) -> NDArray[np.uint8]:
        return self._raw[which]

    def rows(self, which: Any) -> NDArray[np.float32]:
        return dequantize(self.type, self._raw[which], self.shape[1])

    def release(self) -> None:
        pass


class Original:
    stored = "F32"

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.shape, self._values = values.shape, values.reshape(-1, values.shape[-1])

    def rows(self, which: Any) -> NDArray[np.float32]:
        return self._values[which]


def ours(folder: Path, kind: GGMLType | None, exact: bool) -> dict[str, Any]:
    """Write a folder as edgellm does, all matrices of one type (F32 for None); the GGUF tensors it was made from."""
    config = {**LLAMA, **SMALL}
    architecture, hyper = from_config(config)
    hf = checkpoint(config)
    made: dict[str, Any] = {}
    graph, listed = GraphBuilder("g"), {}
    x = graph.input("x", "FLOAT", (1, "k"))
    products = []
    for relation in architecture.relations(hyper, list(hf)):
        [(part, tensor)] = to_gguf(relation, {name: Original(v) for name, v in hf.items()})
        values = whole(tensor).reshape(tensor.shape)
        base, carrier = part.name, "F32"
        if values.ndim == 1:
            graph.array(base, values)
            made[part.name] = Original(values)
        elif kind is None:
            made[part.name] = Original(values)
            upright = values if relation.inverse is None else values[relation.inverse]
            products.append(FloatMatrix(base, [Original(upright)]).multiply(graph, x))
        else:
            made[part.name] = Quantized(kind, values)
            upright = made[part.name]
            if relation.inverse is not None:
                upright = Quantized(kind, values[relation.inverse])
            form = carrier_of(kind)
            assert form is not None
            matrix = QuantizedMatrix(base, [upright], form, accuracy_level=0 if exact else 4)
            products.append(matrix.multiply(graph, x))
            carrier = form.name
        listed[part.name] = {"carrier": carrier, "shape": values.shape, "parts": [[base, 0, values.shape[0]]]}
    graph.output(products[-1], "FLOAT", (1, "n"))
    (folder / "onnx").mkdir(parents=True)
    write_onnx(folder / "onnx" / "model.onnx", graph.build(), metadata={"edgellm.tensors": json.dumps(listed)})
    (folder / "config.json").write_text(json.dumps(config))
    return made


@pytest.mark.parametrize(
    ("kind", "exact"), [("Q4_0", False), ("Q4_1", False), ("Q8_0", False), ("Q8_0", True), (None, False)]
)
def test_our_own_layout_gives_the_gguf_tensors_back(tmp_path: Path, kind: str | None, exact: bool) -> None:
    made = ours(tmp_path / "m", GGMLType[kind] if kind else None, exact)
    with closing(ONNXFolder(tmp_path / "m")) as folder:
        assert folder.names == "gguf"
        assert folder.folder == tmp_path / "m"
        assert folder.tensors.keys() == made.keys()
        for name, tensor in folder.tensors.items():
            np.testing.assert_allclose(whole(tensor), made[name].rows(slice(None)), atol=2e-7, err_msg=name)
            if isinstance(made[name], Quantized):
                assert tensor.type is made[name].type
                assert tensor.exact, name
                np.testing.assert_array_equal(tensor.raw(slice(None)), made[name].raw(slice(None)), err_msg=name)


@pytest.mark.parametrize("entry", [3, {}, {"carrier": "F32", "parts": [["none", 0, 1]]}, "rows"])
def test_our_metadata_is_checked(tmp_path: Path, entry: Any) -> None:
    ours(tmp_path / "m", None, False)
    path = tmp_path / "m" / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    listed = json.loads(model.metadata_props[0].value)
    if entry == "rows":
        listed["output.weight"]["parts"][0][2] = 10**6
    else:
        listed["output.weight"] = entry
    model.metadata_props[0].value = json.dumps(listed)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelFile, match=r"output\.weight|none"):
        ONNXFolder(tmp_path / "m")


def test_what_is_not_understood_is_named(copied: Any) -> None:
    folder = copied("genai-int4")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    [node] = [node for node in model.graph.node if node.name == "/model/layers.1/mlp/up_proj/MatMul_Q4"]
    node.op_type = "MatMulSomehow"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Unsupported, match=r"MatMulSomehow '/model/layers.1/mlp/up_proj/MatMul_Q4'"):
        ONNXFolder(folder)


def test_a_nameless_weight_is_named(copied: Any) -> None:
    folder = copied("optimum")
    model = onnx.load(folder / "model.onnx")
    [node] = [node for node in model.graph.node if node.name == "/model/layers.1/mlp/up_proj/MatMul"]
    node.name = ""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Unsupported, match=f"{node.input[1]}.*neither its name"):
        ONNXFolder(folder)


def test_only_plain_models_do_without_config_json(copied: Any) -> None:
    folder = copied("genai-gemma2")
    (folder / "config.json").unlink()
    with pytest.raises(Unsupported, match=r"'gemma2'.*put the config\.json of the original"):
        ONNXFolder(folder)
    (folder / "genai_config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        ONNXFolder(folder)


def test_scaled_rotary_tables_need_config_json(copied: Any) -> None:
    folder = copied("genai-int4")
    path = folder / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "cos_cache":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.2), "cos_cache"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Unsupported, match="rotary embedding is scaled"):
        ONNXFolder(folder)


def test_another_configuration_is_refused(copied: Any) -> None:
    folder = copied("genai-int4")
    described = json.loads((folder / "genai_config.json").read_text())
    described["model"]["decoder"]["num_key_value_heads"] = 2
    (folder / "genai_config.json").write_text(json.dumps(described))
    with pytest.raises(InvalidModelFile, match=r"qkv_proj.*has 64 rows, the configuration says 32 \+ 32 \+ 32"):
        ONNXFolder(folder)


@pytest.mark.parametrize("kind", [[], {}, 3, None])
def test_a_type_that_is_no_text_is_refused(copied: Any, kind: Any) -> None:
    folder = copied("genai-int4")
    described = json.loads((folder / "genai_config.json").read_text())
    described["model"]["type"] = kind
    (folder / "genai_config.json").write_text(json.dumps(described))
    with pytest.raises(Unsupported, match="a model of type"):
        ONNXFolder(folder)


def test_one_of_several_graphs_must_be_chosen(copied: Any) -> None:
    folder = copied("optimum")
    (folder / "onnx").mkdir()
    shutil.copyfile(folder / "model.onnx", folder / "onnx" / "model.onnx")
    with pytest.raises(Unsupported, match=r"give one as the path: model\.onnx, onnx/model\.onnx"):
        ONNXFolder(folder)
    with closing(ONNXFolder(folder / "onnx" / "model.onnx")) as chosen:
        assert chosen.folder == folder
    with pytest.raises(ModelNotFound, match=r"no \.onnx file"):
        ONNXFolder(folder.parent)
