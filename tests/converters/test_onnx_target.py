"""Checkpoints to ONNX folders and back: against llama.cpp's answers, the source's blocks, and the source itself."""

from __future__ import annotations

import json
import os
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from arch_models import CONFIGS, EMBEDDERS, LLAMA, atol
from bert_reference import Bert
from hf_models import ALIGNED, UNALIGNED, folder_of
from numpy.typing import NDArray
from tiny_models import quantize as as_gguf
from tiny_models import tiny

import edgellm
from edgellm.converters import ConvertParams, convert, plan, read
from edgellm.converters.onnx.graph.carrier import carrier_of
from edgellm.converters.onnx.source import ONNXFolder
from edgellm.converters.quant.ggml import quantize
from edgellm.converters.quant.imatrix import ImportanceMatrix, InputSums
from edgellm.errors import (
    ContextOverflow,
    InvalidParameter,
    Unsupported,
)
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor, chunks

TOKENS: list[int] = np.random.default_rng(3).integers(3, 271, 40).tolist()
KINDS = [kind for kind in GGMLType if carrier_of(kind)]
TIED = (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q6_K, GGMLType.Q5_K)  # of each kind of carrier one
VERIFIED = ("llama", "gemma3", "mixtral", "gpt2", "bert")  # in f32 too
F32 = ConvertParams(to="onnx", quant="f32", verify=False)
EXACT = ConvertParams(to="onnx", exact=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def computed(path: Path, tokens: list[int] = TOKENS) -> NDArray[np.float32]:
    """A decoder's logits (n, n_vocab); an encoder's vector (1, n_embd), of length 1."""
    whole = path.suffix == ".gguf"
    with edgellm.load(path, ctx=64, kv_type="f32" if whole else None, backend="llamacpp" if whole else "auto") as model:
        if model.info.can_generate:
            return np.concatenate(list(model.logits(tokens)))
        vector: NDArray[np.float32] = model.embed([tokens])
        vector /= np.linalg.norm(vector)
        return vector


def loss(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def whole(tensor: Tensor) -> NDArray[np.float32]:
    return np.concatenate([tensor.rows(part) for part in chunks(tensor)]).reshape(tensor.shape)


def values(path: Path) -> dict[str, NDArray[np.float32]]:
    with closing(read(path)) as source:
        return {name: whole(tensor) for name, tensor in source.tensors.items()}


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    with GGUFFile.open(path) as file:
        return {name: (info.type.name, file.data(name).tobytes()) for name, info in file.tensors.items()}


def data_of(folder: Path) -> bytes:
    [path] = folder.glob("onnx/*.onnx_data")
    return path.read_bytes()


def blocks(kind: GGMLType, array: NDArray[np.float32]) -> NDArray[Any]:
    if kind is GGMLType.MXFP4:  # which llama.cpp's quantizers are not asked for
        return as_gguf(array, kind)
    return np.concatenate([quantize(kind, rows) for rows in array.reshape(-1, *array.shape[-2:])])


def quantized(path: Path, architecture: str, kind: GGMLType, *, hidden: int = 256) -> Path:
    """A GGUF file of random weights in blocks of one type."""
    made = tiny(architecture, hidden=hidden, layers=1)
    for name, (shape, _, array) in made.tensors.items():
        if len(shape) > 1 and "gate_inp" not in name:
            made.tensors[name] = (shape, kind, blocks(kind, array))
    return made.write(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """f32 computes what llama.cpp does with the same weights, int4 nearly; both hold what was planned."""
    source = folder_of(tmp_path / "source", name)
    if name in EMBEDDERS:
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    there = convert(source, tmp_path / "f32.gguf", ConvertParams(quant="f32", verify=False))
    names = {one.name for one in there.plan.tensors if one.source != "computed"}
    expected = computed(there.path)
    tolerance = atol(CONFIGS[name])
    for quant in ("f32", "int4"):
        verified = quant == "int4" or name in VERIFIED
        done = convert(source, tmp_path / quant, ConvertParams(to="onnx", quant=quant, verify=verified))
        assert size_of(done.path) == done.plan.file_bytes
        assert {one.name for one in done.plan.tensors} == names
        with closing(ONNXFolder(done.path)) as written:
            assert {n: t.stored for n, t in written.tensors.items()} == {t.name: t.target for t in done.plan.tensors}
        if done.verified is not None:
            if quant == "f32":
                assert done.verified.grade == "lossless"
            elif name in EMBEDDERS:
                assert done.verified.grade is None
            else:
                assert done.verified.mean_kl is not None
                assert done.verified.mean_kl > 1e-5
            assert done.verified.ran.startswith("not run" if name in EMBEDDERS else "it runs")
        found = computed(done.path)
        if quant == "f32":
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        else:
            rounded = computed(convert(done.path, tmp_path / "rounded", F32).path)
            assert loss(found, rounded) < 0.2  # activations of 8 bits
            assert 1e-3 < loss(rounded, expected) < 0.8
            assert "8 bits" in done.plan.notes[-1]
            assert (tmp_path / "int4" / "onnx" / "model_q4.onnx").is_file()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_blocks_of_gguf_are_moved_over(kind: GGMLType, tmp_path: Path) -> None:
    """The same logits as with the weights in f32, whatever the type; with a tied embedding and biases too."""
    for architecture in ("llama", "qwen2") if kind in TIED else ("llama",):
        source = quantized(tmp_path / f"{architecture}.gguf", architecture, kind)
        done = convert(source, tmp_path / architecture, EXACT)
        assert size_of(done.path) == done.plan.file_bytes
        assert done.plan.exact
        assert done.verified is not None
        assert done.verified.grade == "lossless"
        carrier = carrier_of(kind)
        assert carrier is not None
        assert {one.source: one.target for one in done.plan.tensors} == {kind.name: carrier.name, "F32": "F32"}
        plain = convert(source, tmp_path / f"{architecture}-f32", F32)
        assert plain.plan.exact
        expected = computed(plain.path)
        np.testing.assert_allclose(computed(done.path), expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("architecture", "kind"), [("mixtral", GGMLType.Q4_K), ("qwen3moe", GGMLType.Q8_0)])
def test_experts(architecture: str, kind: GGMLType, tmp_path: Path) -> None:
    source = quantized(tmp_path / "source.gguf", architecture, kind, hidden=max(64, kind.block_size))
    done = convert(source, tmp_path / "exact", EXACT)
    assert done.verified is not None
    assert done.verified.grade == "lossless"
    plain = convert(source, tmp_path / "plain", F32).path
    np.testing.assert_allclose(computed(done.path), computed(plain), rtol=0, atol=1e-4)
    fast = convert(source, tmp_path / "fast", ConvertParams(to="onnx", verify=False)).path
    assert 0 < loss(computed(fast), computed(plain)) < 0.1


def test_a_mix_of_types(tmp_path: Path) -> None:
    """q4_k_m: Q4_K and Q6_K side by side, which cannot be one product."""
    folder = folder_of(tmp_path / "folder", ALIGNED)
    source = convert(folder, tmp_path / "source.gguf", ConvertParams(quant="q4_k_m", verify=False)).path
    done = convert(source, tmp_path / "exact", EXACT)
    assert {one.target for one in done.plan.tensors} == {"INT4/32+min", "INT8/16", "F32"}
    np.testing.assert_allclose(computed(done.path), computed(convert(source, tmp_path / "f32", F32).path), atol=1e-4)
    fast = convert(source, tmp_path / "fast", ConvertParams(to="onnx"))
    assert fast.verified is not None
    assert fast.verified.exact == fast.verified.tensors
    assert fast.verified.grade == "very good"  # measured, since products are rounded
    assert loss(computed(fast.path), computed(done.path)) < 0.05


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mixtral", "qwen3moe", "gemma3"])
@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0], ids=lambda kind: kind.name)
def test_gguf_comes_back(architecture: str, kind: GGMLType, tmp_path: Path) -> None:
    """Byte for byte, from graphs with and without 8 bits in two halves; biases and experts too."""
    source = quantized(tmp_path / "source.gguf", architecture, kind, hidden=64)
    for exact in (False, True):
        there = convert(source, tmp_path / f"there{exact}", ConvertParams(to="onnx", exact=exact, verify=False)).path
        back = convert(there, tmp_path / f"back{exact}.gguf", ConvertParams(verify=exact))
        assert back.plan.exact
        assert stored(back.path) == stored(source)
    if back.verified is not None:
        assert back.verified.grade == "lossless"
    with GGUFFile.open(source) as one, GGUFFile.open(back.path) as other:
        assert list(one.metadata["tokenizer.ggml.tokens"]) == list(other.metadata["tokenizer.ggml.tokens"])


def test_floats_come_back(tmp_path: Path) -> None:
    """Half floats keep their type, in both directions."""
    for dtype in ("F16", "BF16"):
        source = folder_of(tmp_path / dtype, "gemma3-pattern", dtype=dtype)
        there = convert(source, tmp_path / f"{dtype}-onnx", ConvertParams(to="onnx"))
        assert there.verified is not None
        assert there.verified.grade == "lossless"
        direct = convert(source, tmp_path / f"{dtype}-direct.gguf", ConvertParams(verify=False))
        back = convert(there.path, tmp_path / f"{dtype}-back.gguf", ConvertParams(verify=False))
        assert stored(back.path) == stored(direct.path)


def test_onnx_is_quantized_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", ALIGNED, dtype="F32")
    plain = convert(source, tmp_path / "plain", F32).path
    params = ConvertParams(to="onnx", quant="int4_64", verify=False)
    direct = convert(source, tmp_path / "direct", params)
    again = convert(plain, tmp_path / "again", ConvertParams(to="onnx", quant="int4_64"))
    assert data_of(again.path) == data_of(direct.path)
    assert again.plan.source_format == "onnx"
    assert again.verified is not None
    assert again.verified.mean_kl is not None  # both run, so both were asked
    smaller = convert(convert(source, tmp_path / "8", ConvertParams(to="onnx", quant="int8", verify=False)).path,
                      tmp_path / "4", ConvertParams(to="onnx", quant="int4", verify=False))  # fmt: skip
    assert {one.source for one in smaller.plan.tensors if not one.exact} == {"INT8/32"}
    assert loss(computed(smaller.path), computed(direct.path)) < 1


# Encoders


def test_a_real_encoder(minilm_folder: Path, tmp_path: Path) -> None:
    reference, texts = Bert(minilm_folder), ["The harbour lay quiet.", "Water expands when it freezes."]
    for quant, least in (("f32", 0.9999), ("int8", 0.99)):
        done = convert(minilm_folder, tmp_path / quant, ConvertParams(to="onnx", quant=quant, verify=False))
        with edgellm.load(done.path) as model:
            found = model.embed(texts)
            expected = np.array([reference.embed(model.encode(text)) for text in texts])
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
        assert cosines.min() >= least
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert not (tmp_path / "int8" / "genai_config.json").exists()


# Options


def test_exact_and_the_default(tmp_path: Path) -> None:
    """exact: no product rounds what it multiplies."""
    source = folder_of(tmp_path / "source", ALIGNED)
    levels, found = {}, {}
    for exact in (False, True):
        folder = convert(source, tmp_path / str(exact), ConvertParams(to="onnx", quant="int4", exact=exact)).path
        model = onnx.load(folder / "onnx" / "model_q4.onnx", load_external_data=False)
        products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
        attributes = [{a.name: a.i for a in node.attribute} for node in products]
        levels[exact] = {each["accuracy_level"] for each in attributes}
        assert {each["bits"] for each in attributes} == ({4} if exact else {4, 8})
        found[exact] = computed(folder)
    assert levels == {False: {4}, True: {0}}
    reference = computed(convert(tmp_path / "False", tmp_path / "f32", F32).path)
    np.testing.assert_allclose(found[True], reference, rtol=0, atol=1e-4)
    assert 1e-4 < loss(found[False], reference) < 0.1


def test_strict_refuses_fallbacks(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", UNALIGNED)
    planned = plan(source, ConvertParams(to="onnx", quant="int4_64"))
    assert "INT4/32+zp" in {one.target for one in planned.fallbacks}
    assert {one.shape[-1] for one in planned.fallbacks} == {288}
    with pytest.raises(Unsupported, match=r"rows of 288 .*instead of INT4/64"):
        plan(source, ConvertParams(to="onnx", quant="int4_64", strict=True))
    assert not plan(source, ConvertParams(to="onnx", quant="int4", strict=True)).fallbacks


def test_a_folder_fits(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", {**UNALIGNED, "num_hidden_layers": 2})
    original = values(convert(source, tmp_path / "f32.gguf", ConvertParams(quant="f32", verify=False)).path)
    full = plan(source, ConvertParams(to="onnx")).file_bytes
    smallest = plan(source, ConvertParams(to="onnx", quant="int4_128")).file_bytes
    sizes, errors = [], []
    for room in (smallest + 500, int(full * 0.5), int(full * 0.56), full):
        done = convert(source, tmp_path / str(room), ConvertParams(to="onnx", fit=room, verify=False))
        sizes.append(size_of(done.path))
        assert sizes[-1] <= room
        assert sizes[-1] == done.plan.file_bytes
        found = values(done.path)
        errors.append(sum(float(np.square(found[name] - array).sum()) for name, array in original.items()))
    assert sizes == sorted(sizes)
    assert all(one > other for one, other in pairwise(errors))
    assert done.plan.recipe == "keep"
    assert errors[-1] == 0
    for room in (1, int(full * 0.1), smallest - 20_000):
        with pytest.raises(InvalidParameter, match="too few"):
            plan(source, ConvertParams(to="onnx", fit=room))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox", "phi3-longrope-long"])
def test_room_for_fewer_tokens(name: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", name)
    full = convert(source, tmp_path / "full", F32)
    done = convert(source, tmp_path / "short", ConvertParams(to="onnx", quant="f32", max_context=48))
    assert done.plan.file_bytes < full.plan.file_bytes
    genai = json.loads((done.path / "genai_config.json").read_text())
    assert (genai["model"]["context_length"], genai["search"]["max_length"]) == (48, 48)
    with edgellm.load(done.path, ctx=1000) as model:
        assert model.info.n_ctx_train == model.n_ctx == 48
        with pytest.raises(ContextOverflow):
            model.generate([5] * 60, max_tokens=1)
    if "longrope" not in name:  # whose factors depend on the room
        np.testing.assert_array_equal(computed(done.path), computed(full.path))
    with pytest.raises(InvalidParameter, match="128"):
        plan(source, ConvertParams(to="onnx", max_context=129))


def test_int4_s_is_four_bits_throughout(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", {**LLAMA, "tie_word_embeddings": True})
    kinds = {}
    for quant in ("int4", "int4_s", "int4_s_16"):
        done = convert(source, tmp_path / quant, ConvertParams(to="onnx", quant=quant))
        assert done.verified is not None
        kinds[quant] = {one.target for one in done.plan.tensors if len(one.shape) == 2}
    assert kinds == {"int4": {"INT4/32+zp", "INT8/64"}, "int4_s": {"INT4/32"}, "int4_s_16": {"INT4/16"}}
    with pytest.raises(InvalidParameter, match="int4_s"):
        ConvertParams(to="onnx", quant="int8_s")


def test_an_encoder_keeps_its_positions(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="leave it out"):
        plan(folder_of(tmp_path / "source", "bert"), ConvertParams(to="onnx", max_context=64))


def importance(folder: Path, path: Path) -> dict[str, NDArray[np.float32]]:
    """Write a matrix in which some columns matter much more than others."""
    rng = np.random.default_rng(5)
    planned = plan(folder, ConvertParams(to="onnx"))
    matrices = {one.name: one.shape for one in planned.tensors if one.name.startswith("blk") and len(one.shape) == 2}
    inputs = {columns: (rng.standard_normal((1, columns)) ** 6).astype(np.float32) for columns in (256, 512)}
    sums = {name: inputs[shape[1]] for name, shape in matrices.items()}
    entries = {name: InputSums(values, np.ones(1, np.float32)) for name, values in sums.items()}
    ImportanceMatrix(entries, 3, 512, ("words.txt",)).write(path)
    return sums


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_importance(quant: str, tmp_path: Path) -> None:
    """It changes the weights, and lowers the error that it weighs."""
    source = folder_of(tmp_path / "source", ALIGNED)
    sums = importance(source, tmp_path / "imatrix.gguf")
    original = values(convert(source, tmp_path / "f32.gguf", ConvertParams(quant="f32", verify=False)).path)
    found = {}
    for given in (None, tmp_path / "imatrix.gguf"):
        params = ConvertParams(to="onnx", quant=quant, imatrix=given)
        found[given is not None] = values(convert(source, tmp_path / str(given is None), params).path)
    for name, array in original.items():
        errors = {key: np.square(found[key][name] - array) for key in found}
        if name in sums:
            assert not np.array_equal(found[True][name], found[False][name])
            weighted = {key: float((error * sums[name]).sum()) for key, error in errors.items()}
            assert weighted[True] < weighted[False], name
        else:
            np.testing.assert_array_equal(found[True][name], found[False][name], name)


def test_the_importance_of_another_model(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    found = {"blk.9.x.weight": "no entry for any tensor", "blk.0.attn_k.weight": "another model"}
    for i, (name, complaint) in enumerate(found.items()):
        path = tmp_path / f"{i}.gguf"
        ImportanceMatrix({name: InputSums(np.ones((1, 4), np.float32), np.ones(1, np.float32))}, 1, 512).write(path)
        with pytest.raises(InvalidParameter, match=complaint):
            convert(source, tmp_path / "model", ConvertParams(to="onnx", quant="int4", imatrix=path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.gguf", "1.gguf", "source"]


def test_calibrating(tmp_path: Path) -> None:
    """On a folder, on a GGUF file and on an ONNX folder; nothing of it stays."""
    text = tmp_path / "words.txt"
    text.write_text("hello world, the other world. " * 40, encoding="utf-8")
    folder = folder_of(tmp_path / "folder", ALIGNED)
    file = convert(folder, tmp_path / "file.gguf", ConvertParams(quant="f32", verify=False)).path
    graph = convert(folder, tmp_path / "graph", F32).path
    before = {path.name for path in tmp_path.iterdir()}
    params = ConvertParams(to="onnx", quant="int4", calibrate=text, verify=False)
    found, stages = [], list[str]()
    for source in (folder, file, graph):
        stages.clear()
        done = convert(source, tmp_path / "done", params, progress=lambda what, *_: stages.append(what))
        assert list(dict.fromkeys(stages))[-2:] == ["calibrating", "converting"]
        assert {path.name for path in tmp_path.iterdir()} == before | {"done"}
        assert size_of(done.path) == done.plan.file_bytes
        found.append(data_of(done.path))
        os.rename(done.path, tmp_path / f"done-{source.name}")
        before.add(f"done-{source.name}")
    plain = convert(folder, tmp_path / "plain", ConvertParams(to="onnx", quant="int4", verify=False))
    assert data_of(plain.path) not in found
    assert found[0] == found[2]  # both calibrate on a temporary q8_0 file of the same weights


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"quant": "q4_k_m"}, "int4"),
        ({"quant": "int4_48"}, "block size"),
        ({"quant": "int4", "fit": 10_000}, "leave out quant"),
        ({"fast_on_cpu": True}, "no meaning for ONNX"),
        ({"pre": "gpt-2"}, "no meaning for ONNX"),
        ({"max_context": 4}, "at least 16"),
        ({"imatrix": Path("a"), "calibrate": Path("b"), "quant": "int4"}, "leave out one"),
        ({"imatrix": Path("a")}, "changes nothing"),
        ({"to": "gguf", "exact": True}, "ONNX"),
        ({"to": "safetensors", "max_context": 64}, "ONNX"),
        ({"to": "gguf", "quant": "int4"}, "int4"),
    ],
)
def test_options_that_contradict_each_other(params: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidParameter, match=complaint):
        ConvertParams(**{"to": "onnx", **params})


# The small files


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_other_programs_read(name: str, tmp_path: Path) -> None:
    """genai_config.json and transformers.js_config, from a folder and from a GGUF file."""
    folder = folder_of(tmp_path / "folder", name)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "do_sample": True}))
    file = convert(folder, tmp_path / "file.gguf", ConvertParams(verify=False)).path
    dtypes = {"int4": "q4", "int8": "int8", "f32": "fp32"}
    for source, quant in ((folder, "int4"), (file, "int8"), (folder, "f32")):
        done = convert(source, tmp_path / quant, ConvertParams(to="onnx", quant=quant, verify=False))
        config = json.loads((done.path / "config.json").read_text())
        graph = {"int4": "model_q4.onnx", "int8": "model_int8.onnx", "f32": "model.onnx"}[quant]
        assert config["transformers.js_config"] == {"dtype": dtypes[quant], "use_external_data_format": {graph: 1}}
        assert (done.path / "onnx" / f"{graph}_data").is_file()
        original = CONFIGS[name]
        size = original["hidden_size"], original["num_hidden_layers"], original["num_key_value_heads"]
        assert (config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"]) == size
        genai = json.loads((done.path / "genai_config.json").read_text())
        model, decoder = genai["model"], genai["model"]["decoder"]
        assert model["type"] == original["model_type"]
        assert (model["bos_token_id"], model["pad_token_id"]) == (1, 2)
        assert model["eos_token_id"] == [0, 2]
        assert (model["context_length"], model["vocab_size"]) == (128, 271)
        assert (decoder["hidden_size"], decoder["num_hidden_layers"], decoder["num_key_value_heads"]) == size
        assert decoder["num_attention_heads"] == 4
        assert decoder["head_size"] == original.get("head_dim", 16)
        assert decoder["filename"] == f"onnx/{graph}"
        assert (done.path / decoder["filename"]).is_file()
        inputs = onnx.load(done.path / "onnx" / graph, load_external_data=False).graph.input
        names = {each.name for each in inputs}
        given = decoder["inputs"]
        layers = range(original["num_hidden_layers"])
        cache = {given[key] % i for key in ("past_key_names", "past_value_names") for i in layers}
        assert names == {given["input_ids"], given["attention_mask"], "num_logits_to_keep"} | cache
        assert genai["search"]["past_present_share_buffer"] is True
        assert (done.path / "tokenizer.json").is_file()


def test_converting_twice_gives_the_same_files(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", "qwen3")
    files = []
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        folder = convert(source, tmp_path / parent / "model", ConvertParams(to="onnx", quant="int4", verify=False)).path
        files.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert files[0] == files[1]


def test_a_folder_with_both_kinds_of_weights(tmp_path: Path) -> None:
    """The checkpoint is what is converted; the graph in it when it is named."""
    source = folder_of(tmp_path / "source")
    graph = convert(source, tmp_path / "graph", ConvertParams(to="onnx", quant="int4", verify=False)).path
    os.rename(graph / "onnx", source / "onnx")
    assert plan(source).source_format == "huggingface"
    assert plan(source / "onnx" / "model_q4.onnx").source_format == "onnx"
    assert plan(source / "onnx" / "model_q4.onnx", ConvertParams(to="onnx", quant="f32")).file_bytes > 100_000
