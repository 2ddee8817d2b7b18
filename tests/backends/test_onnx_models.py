"""What the ONNX engine knows of a model before it runs, and which models it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import tiny_onnx
from onnx import helper
from tiny_onnx import KV_HEADS, LAYERS, N_VOCAB, Maker

from edgellm.backends import inspect, open_backend
from edgellm.errors import InvalidModelFile, ModelLoadError, ModelNotFound, Unsupported, UnsupportedArchitecture
from edgellm.params import LoadParams
from edgellm.tokenizers.ends import ENDS, GAPS


def test_info_is_read_from_graph_and_folder(folders: dict[str, Path]) -> None:
    info = inspect(folders["shared"])
    assert (info.format, info.architecture, info.n_layer, info.n_vocab) == ("onnx", "llama", 2, N_VOCAB)
    assert (info.n_ctx_train, info.n_embd, info.n_head, info.n_ff) == (4096, 64, 4, 96)
    assert info.kv_bytes_per_token == 2 * LAYERS * KV_HEADS * 16 * 4
    assert info.stop_ids == {0}
    assert info.bos_id == 1
    assert info.chat_template is not None
    assert set(info.tensor_types) == {"F32", "INT8/32"}
    assert info.tensor_types["INT8/32"] == N_VOCAB * 64 + 4 * N_VOCAB * 2
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 2 * 64 * 96 + 2 * 64
    assert info.n_params == 2 * N_VOCAB * 64 + 2 * layer + 64
    assert info.file_bytes == (folders["shared"] / "onnx" / "model.onnx").stat().st_size
    assert inspect(folders["shared"] / "onnx" / "model.onnx").fingerprint == info.fingerprint
    assert inspect(folders["plain"]).fingerprint != info.fingerprint
    encoder = inspect(folders["encoder"])
    assert (encoder.can_embed, encoder.can_truncate, info.can_embed) == (True, False, False)


def test_what_ends_an_answer_is_what_llama_cpp_ends_it_by(folders: dict[str, Path], tmp_path: Path) -> None:
    from tiny_models import tiny
    from tokens_oracle import llama_tokenizer

    folder = shutil.copytree(folders["shared"], tmp_path / "ends")
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    model = tiny("llama")
    lone = (
        *ENDS,
        *(text for texts in GAPS.values() for text in texts),
        "<|im_start|>",
        "<|pad|>",
        "<|file|>",
        "<|fim_middle|>",
        "<|plamo:eos|>",
    )
    cases = [("<|end|>", "<|bos|>", text) for text in lone if text != "<|end|>"]
    cases += [("<|return|>", "<|end|>", "<|call|>"), ("<|call|>", "<|end|>", "<|flush|>")]
    cases += [("<|calls|>", "<|end|>", "<|flush|>"), ("<|return|>", "<|end|>", "<|flush|>")]
    cases += [("<|tool_response>", "</s>", "<turn|>"), ("<|plamo:eos|>", "</s>", "<eos>"), ("<eos>", "</s>", "<bos>")]
    for texts in cases:
        changed = tokenizer
        for old, new in zip(("<|end|>", "<|bos|>", "<|pad|>"), texts, strict=True):
            changed = changed.replace(f'"{old}"', f'"new {new}"')
        (folder / "tokenizer.json").write_text(changed.replace('"new ', '"'), encoding="utf-8")
        model.metadata["tokenizer.ggml.tokens"][:3] = texts
        with llama_tokenizer(model.write(tmp_path / "ends.gguf")) as oracle:
            expected = {token for token in range(3) if oracle._lib.llama_vocab_is_eog(oracle._vocab, token)}
        assert inspect(folder).stop_ids == expected, texts


def test_what_a_converted_file_stores_is_counted_once(tmp_path: Path) -> None:
    """Halves of 8 bits, corrections and scales are no weights."""
    from tiny_models import tiny

    from edgellm.converters import ConvertParams, convert
    from edgellm.formats.ggml_types import GGMLType

    source = tiny("llama", hidden=128, weights=GGMLType.Q8_0).write(tmp_path / "tiny.gguf")
    for exact in (False, True):
        folder = convert(source, tmp_path / f"onnx{exact}", ConvertParams(to="onnx", exact=exact, verify=False)).path
        info = inspect(folder)
        assert info.n_params == inspect(source).n_params
        assert info.name == inspect(source).name
        assert (info.quantization, set(info.tensor_types)) == ("INT8/32", {"INT8/32", "F32"})
    file = next((folder / "onnx").glob("*.onnx"))
    model = onnx.load(file, load_external_data=False)
    entry = next(entry for entry in model.metadata_props if entry.key == "edgellm.tensors")
    for damaged in ("{", "[]", '{"a": {}}', entry.value.replace('"shape": [', '"shape": [-', 1)):
        entry.value = damaged
        onnx.save(model, file)
        with pytest.raises(InvalidModelFile, match="convert it again"):
            inspect(folder)


def test_another_type_of_cache_is_an_error(folders: dict[str, Path]) -> None:
    open_backend(folders["shared"], LoadParams(kv_type="f32")).close()
    with pytest.raises(Unsupported, match="f32"):
        open_backend(folders["shared"], LoadParams(kv_type="q8_0"))
    with pytest.raises(Unsupported, match="flash_attention"):
        open_backend(folders["shared"], LoadParams(flash_attention=True))


def test_which_file_is_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["shared"], tmp_path / "several")
    shutil.copy(folder / "onnx" / "model.onnx", folder / "onnx" / "model_q4.onnx")
    with pytest.raises(Unsupported, match=r"onnx/model\.onnx, onnx/model_q4\.onnx"):
        open_backend(folder, LoadParams())
    open_backend(folder / "onnx" / "model_q4.onnx", LoadParams()).close()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers.js_config": {"dtype": "q4"}}))
    assert inspect(folder).architecture == "llama"
    genai = {"model": {"decoder": {"filename": "onnx/missing.onnx"}}}
    (folder / "genai_config.json").write_text(json.dumps(genai))
    with pytest.raises(ModelNotFound, match="missing"):
        open_backend(folder, LoadParams())
    genai["model"]["decoder"]["filename"] = "../shared/onnx/model.onnx"
    (folder / "genai_config.json").write_text(json.dumps(genai))
    with pytest.raises(InvalidModelFile):
        open_backend(folder, LoadParams())
    with pytest.raises(Unsupported, match="without a"):
        open_backend(tmp_path, LoadParams())


def change(model: onnx.ModelProto, folders: dict[str, Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(folders["shared"], tmp_path / "changed")
    onnx.save(model, folder / "onnx" / "model.onnx")
    return folder


def test_unknown_operators_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_onnx.decoder()
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type, node.domain = "Sigmund", "com.microsoft"
    with pytest.raises(UnsupportedArchitecture, match="Sigmund"):
        open_backend(change(model, folders, tmp_path), LoadParams())


def test_inputs_that_nobody_can_feed_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_onnx.decoder()
    model.graph.input.append(helper.make_tensor_value_info("pixel_values", 1, [1, 3]))
    with pytest.raises(UnsupportedArchitecture, match="pixel_values"):
        open_backend(change(model, folders, tmp_path), LoadParams())


def test_a_graph_without_a_cache_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    maker = Maker()
    maker.input("input_ids", onnx.TensorProto.INT64, ["batch", "sequence"])
    maker.node("Gather", maker.noise("embed", N_VOCAB, N_VOCAB), "input_ids", to="logits")
    maker.output("logits", onnx.TensorProto.FLOAT, ["batch", "sequence", N_VOCAB])
    with pytest.raises(UnsupportedArchitecture, match="cache"):
        open_backend(change(maker.model(), folders, tmp_path), LoadParams())


def test_huge_shapes_allocate_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_onnx.decoder()
    for value in [*model.graph.input, *model.graph.output]:
        if "key" in value.name or "value" in value.name:
            value.type.tensor_type.shape.dim[1].dim_value = 2**40
    with pytest.raises(InvalidModelFile, match="cannot be"):
        open_backend(change(model, folders, tmp_path), LoadParams())


@pytest.mark.parametrize("heads", [0, 2**62])  # ONNX Runtime reads 32 bits, and divides by them
def test_numbers_that_would_end_the_process_are_refused(folders: dict[str, Path], tmp_path: Path, heads: int) -> None:
    model = tiny_onnx.decoder()
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    next(attribute for attribute in node.attribute if attribute.name == "kv_num_heads").i = heads
    with pytest.raises(InvalidModelFile, match="kv_num_heads"):
        open_backend(change(model, folders, tmp_path), LoadParams())


def test_wrong_shapes_in_a_graph_fail_with_the_engines_words(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_onnx.decoder()
    weight = next(weight for weight in model.graph.initializer if weight.name == "q0")
    del weight.dims[:]
    weight.dims.extend([32, 128])
    with pytest.raises(ModelLoadError, match="ONNX Runtime refused"):
        open_backend(change(model, folders, tmp_path), LoadParams())


def test_a_truncated_file_never_reaches_the_engine(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["shared"], tmp_path / "cut")
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InvalidModelFile):
        open_backend(folder, LoadParams())
