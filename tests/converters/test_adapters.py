"""Adapters merged at conversion, against the same computed with numpy: every family's weights, every target."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, checkpoint, whole
from hf_models import UNALIGNED, folder_of
from numpy.typing import NDArray
from peft_folders import Arrays, adapter_of, lora, merged
from tiny_models import tiny

from edgellm.architectures import from_config
from edgellm.converters import ConvertParams, convert, plan, read
from edgellm.converters.adapter.merged import Merged
from edgellm.errors import InvalidParameter, ModelNotFound, Unsupported
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.safetensors import write_safetensors

FAMILIES = ["llama", "llama-tied-biases", "qwen3", "mixtral", "qwen3moe", "gemma3", "phi3", "gpt2", "gpt_neox", "bert"]
CLOSE = 1e-5


def _modules(config: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """The matrices of a checkpoint that take vectors: tensor -> (module, whether it is stored transposed)."""
    architecture, hyper = from_config(config)
    found = {}
    for relation in architecture.relations(hyper, checkpoint(config)):
        for part in relation.hf:
            if len(part.shape) == 2 and not any(word in part.name for word in ("embed", "wte", "wpe")):
                found[part.name] = part.name.removesuffix(".weight"), relation.transposed
    return found


def _made(name: str, folder: Path, **options: Any) -> tuple[Path, Path, Arrays]:
    """A checkpoint, an adapter of all its matrices, and the tensors of both together."""
    config, dora = CONFIGS[name], bool(options.get("use_dora"))
    tensors, parts = checkpoint(config), Arrays()
    expected = dict(tensors)
    for tensor, (module, transposed) in _modules(config).items():
        shape = tensors[tensor].shape[::-1] if transposed else tensors[tensor].shape
        mine = lora(module, *shape, dora=dora)
        parts |= mine
        expected[tensor] = merged(tensors[tensor], mine, 2.5, transposed=transposed)
    base = folder_of(folder / "base", config, dtype="F32", tensors=tensors)
    return base, adapter_of(folder / "adapter", parts, **options), expected


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_a_family(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Under the checkpoint's names, and in GGUF, whose rows have an order of their own."""
    base, adapter, expected = _made(name, tmp_path, **options)
    with closing(read(base, adapters=[(adapter, 1.0)])) as model:
        assert set(model.tensors) == set(expected)
        for tensor, values in expected.items():
            np.testing.assert_allclose(whole(model.tensors[tensor]), values, rtol=0, atol=CLOSE, err_msg=tensor)
    again = folder_of(tmp_path / "again", CONFIGS[name], dtype="F32", tensors=expected)
    convert(base, tmp_path / "adapted.gguf", ConvertParams(quant="f32", adapters=[adapter], verify=False))
    convert(again, tmp_path / "expected.gguf", ConvertParams(quant="f32", verify=False))
    with GGUFFile.open(tmp_path / "adapted.gguf") as found, GGUFFile.open(tmp_path / "expected.gguf") as other:
        assert list(found.tensors) == list(other.tensors)
        for tensor in other.tensors:
            ours, theirs = (file.data(tensor).view(np.float32) for file in (found, other))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE, err_msg=tensor)


def _fused(name: str) -> tuple[Arrays, Arrays]:
    """Parameters of all experts as transformers names them, nested as PEFT nests them; and the merged tensors."""
    config = CONFIGS[name]
    tensors = checkpoint(config)
    names = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2")}.get(name, ("mlp", "gate_proj", "up_proj", "down_proj"))
    parts, expected = Arrays(), dict(tensors)
    for i in range(config["num_hidden_layers"]):
        own = f"model.layers.{i}.{names[0]}.experts"
        n, (ff, embd) = config.get("num_local_experts", 4), tensors[f"{own}.0.{names[1]}.weight"].shape
        for module, kinds, outputs, inputs in (
            (f"model.layers.{i}.mlp.experts.base_layer", names[1:3], 2 * ff, embd),
            (f"model.layers.{i}.mlp.experts", names[3:], embd, ff),
        ):
            made = lora(module, outputs, inputs, 4 * n)
            parts |= made
            a, b = made.values()
            for e in range(n):
                product = 2.5 * (b.reshape(outputs, 4, n)[:, :, e].astype(np.float64) @ a[4 * e : 4 * e + 4])
                for kind, delta in zip(kinds, np.split(product, len(kinds)), strict=True):
                    tensor = f"{own}.{e}.{kind}.weight"
                    expected[tensor] = (tensors[tensor] + delta).astype(np.float32)
    return parts, expected


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_one_parameter_for_all_experts(name: str, tmp_path: Path) -> None:
    """A checkpoint holds the experts one by one, as all published ones do, or as one parameter."""
    parts, expected = _fused(name)
    adapter = adapter_of(tmp_path / "adapter", parts, target_parameters=["mlp.experts.gate_up_proj"])
    base = folder_of(tmp_path / "base", name, dtype="F32")
    with closing(read(base, adapters=[(adapter, 1.0)])) as model:
        for tensor, values in expected.items():
            np.testing.assert_allclose(whole(model.tensors[tensor]), values, rtol=0, atol=CLOSE, err_msg=tensor)
        wanted = {key: whole(tensor) for key, tensor in model.weights.items()}
    fused = {}
    own = "block_sparse_moe" if name == "mixtral" else "mlp"
    kinds = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    tensors = checkpoint(CONFIGS[name])
    for i in range(2):
        every = {k: [tensors.pop(f"model.layers.{i}.{own}.experts.{e}.{k}.weight") for e in range(4)] for k in kinds}
        pairs = zip(every[kinds[0]], every[kinds[1]], strict=True)
        fused[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in pairs])
        fused[f"model.layers.{i}.mlp.experts.down_proj"] = np.stack(every[kinds[2]])
        fused[f"model.layers.{i}.mlp.gate.weight"] = tensors.pop(f"model.layers.{i}.{own}.gate.weight")
    folder_of(tmp_path / "fused", name, dtype="F32", tensors=tensors | fused)
    with closing(read(tmp_path / "fused", adapters=[(adapter, 1.0)])) as model:
        for key, values in wanted.items():
            np.testing.assert_array_equal(whole(model.weights[key]), values, err_msg=key)


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({"lora_alpha": 3}, 3 / 4),
        ({"use_rslora": True}, 10 / 2),
        ({"alpha_pattern": {"q_proj": 8}}, 2),
        ({"alpha_pattern": {"v_proj": 8}}, 10 / 4),
        ({"alpha_pattern": {r"layers\.0\.self_attn\..*": 8, "q_proj": 12}}, 2),
        ({"r": 16, "rank_pattern": {"q_proj": 4}}, 10 / 4),
        ({"fan_in_fan_out": True}, 10 / 4),  # of a Linear PEFT ignores it
    ],
)
def test_scaling(options: dict[str, Any], scaling: float, tmp_path: Path) -> None:
    tensor, module = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj"
    base, parts = folder_of(tmp_path / "base", dtype="F32"), lora(module, 64, 64)
    adapter = adapter_of(tmp_path / "adapter", parts, **options)
    for scale in (1.0, 0.5, -2.0):
        with closing(read(base, adapters=[(adapter, scale)])) as model:
            expected = merged(checkpoint(CONFIGS["llama"])[tensor], parts, scaling * scale)
            np.testing.assert_allclose(whole(model.tensors[tensor]), expected, rtol=0, atol=CLOSE)


def test_names_without_and_with_prefixes(tmp_path: Path) -> None:
    """A checkpoint of the model without its head has no prefix, the adapter of the whole has one; and the reverse."""
    tensors = {name.removeprefix("transformer."): values for name, values in checkpoint(CONFIGS["gpt2"]).items()}
    base = folder_of(tmp_path / "base", "gpt2", dtype="F32", tensors=tensors)
    parts = lora("transformer.h.1.attn.c_attn", 192, 64)
    adapter = adapter_of(tmp_path / "adapter", parts)
    with closing(read(base, adapters=[(adapter, 1.0)])) as model:
        expected = merged(tensors["h.1.attn.c_attn.weight"], parts, 2.5, transposed=True)
        np.testing.assert_allclose(whole(model.tensors["h.1.attn.c_attn.weight"]), expected, rtol=0, atol=CLOSE)
    short = adapter_of(tmp_path / "short", lora("layers.0.mlp.up_proj", 96, 64))
    with closing(read(folder_of(tmp_path / "llama"), adapters=[(short, 1.0)])) as model:
        assert model.tensors["model.layers.0.mlp.up_proj.weight"].stored == "BF16+adapter"


def test_the_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    """Libraries have called its modules in three ways, and checkpoints in two; tied by the nested configuration."""
    text = {**CONFIGS["gemma3-pattern"], "tie_word_embeddings": True}
    config = {"model_type": "gemma3", "text_config": text}
    tensors = {f"language_model.{name}": values for name, values in checkpoint(CONFIGS["gemma3-pattern"]).items()}
    base = folder_of(tmp_path / "base", config, dtype="F32", tensors=tensors)
    for prefix in ("model.language_model.", "language_model.model.", "model."):
        parts = lora(f"{prefix}layers.0.mlp.up_proj", 96, 64)
        adapter = adapter_of(tmp_path / prefix, parts | lora("lm_head", 271, 64))
        with closing(read(base, adapters=[(adapter, 1.0)])) as model:
            name = "language_model.model.layers.0.mlp.up_proj.weight"
            np.testing.assert_allclose(
                whole(model.tensors[name]), merged(tensors[name], parts, 2.5), rtol=0, atol=CLOSE
            )
            assert not model.description.hyper.tied
            assert model.config["text_config"]["tie_word_embeddings"] is False


def test_weights_of_eight_bits_are_added_to_as_scaled(tmp_path: Path) -> None:
    tensors, name = checkpoint(CONFIGS["llama"]), "model.layers.0.mlp.up_proj.weight"
    base = folder_of(tmp_path / "base", dtype="F32", tensors=tensors)
    codes = np.random.default_rng(2).integers(0, 120, (96, 64)).astype(np.uint8)
    listed = [(n, "F32", v.shape, v) for n, v in tensors.items() if n != name]
    listed += [
        (name, "F8_E4M3", (96, 64), codes),
        (name + "_scale_inv", "F32", (1, 1), np.full((1, 1), 0.01, np.float32)),
    ]
    write_safetensors(base / "model.safetensors", listed)
    config = json.loads((base / "config.json").read_text())
    quantized = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    parts = lora("model.layers.0.mlp.up_proj", 96, 64)
    adapter = adapter_of(tmp_path / "adapter", parts)
    with closing(read(base)) as plain, closing(read(base, adapters=[(adapter, 1.0)])) as model:
        expected = merged(whole(plain.tensors[name]), parts, 2.5)
        np.testing.assert_allclose(whole(model.tensors[name]), expected, rtol=0, atol=CLOSE)
    done = convert(base, tmp_path / "made", ConvertParams(to="safetensors", quant="f32", adapters=[adapter]))
    assert done.verified is not None
    assert done.verified.lossless
    assert "quantization_config" not in json.loads((tmp_path / "made/config.json").read_text())
    planned = {one.source: one.target for one in plan(base, ConvertParams(adapters=[adapter])).tensors}
    assert planned["F8_E4M3+adapter"] == "BF16"


def test_rows_are_the_same_bits_however_they_are_asked_for() -> None:
    """So what was written can be compared with what is read again in other pieces."""
    rng = np.random.default_rng(1)
    for rows, columns, rank, dora in ((1000, 96, 8, False), (130, 64, 3, True), (5, 7, 1, False), (64, 2048, 16, True)):
        base = _Recorded(rng.standard_normal((rows, columns), np.float32))
        left, right = rng.standard_normal((rows, rank), np.float32), rng.standard_normal((rank, columns), np.float32)
        lengths = rng.uniform(1, 2, rows).astype(np.float32)
        tensor = Merged(
            "w",
            base,
            lambda left=left, right=right: (left, right),
            0.3,
            (lambda lengths=lengths: lengths) if dora else None,
        )
        expected = tensor.rows(slice(None))
        exact = base.values + np.float32(0.3) * (left @ right)
        if dora:
            exact *= (lengths / np.linalg.norm(exact, axis=1))[:, None]
        np.testing.assert_allclose(expected, exact, rtol=0, atol=1e-4)
        order = rng.permutation(rows)
        for which in (slice(1, 4), slice(0, rows, 3), order, order[:3], order[:0]):
            np.testing.assert_array_equal(tensor.rows(which), expected[which])
        assert max(base.asked[1:]) <= rows  # only the rows that were asked for
        assert base.asked[1:3] == [3, len(range(0, rows, 3))]


class _Recorded:
    """A tensor over an array, and how many rows it was asked for."""

    stored = "F32"

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.shape, self.asked = values, values.shape, list[int]()

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        found = self.values[which].copy()
        self.asked.append(len(found))
        return found


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint in bfloat16, and an adapter of some of its matrices."""
    base = folder_of(tmp_path / "tiny-base", UNALIGNED)
    parts: Arrays = {}
    for i in range(3):
        parts |= lora(f"model.layers.{i}.self_attn.q_proj", 288, 288) | lora(f"model.layers.{i}.mlp.up_proj", 768, 288)
    return base, adapter_of(tmp_path / "adapter", parts, base_model_name_or_path="someone/Tiny-Base")


def test_a_plan_says_what_an_adapter_changes(pair: tuple[Path, Path]) -> None:
    base, adapter = pair
    found = plan(base, ConvertParams(quant="q4_k_m", adapters=[adapter]))
    changed = {one.name for one in found.tensors if one.source == "BF16+adapter"}
    assert changed == {f"blk.{i}.{kind}.weight" for i in range(3) for kind in ("attn_q", "ffn_up")}
    assert found.notes[-1] == "adapter adapter: changes 6 tensors"
    assert not any("trained on" in note for note in found.notes)  # someone/Tiny-Base is this one
    plain = plan(base, ConvertParams(quant="q4_k_m"))
    assert found.source_fingerprint != plain.source_fingerprint
    assert plan(base, ConvertParams(adapters=[(adapter, 0.5)])).source_fingerprint != found.source_fingerprint
    kept = plan(base, ConvertParams(adapters=[adapter]))
    assert {one.target for one in kept.tensors if one.name in changed} == {"BF16"}
    assert {one.name for one in kept.tensors if not one.exact} == changed  # a sum is rounded to the base's type
    whole_sums = plan(base, ConvertParams(quant="f32", adapters=[adapter]))
    assert whole_sums.exact
    assert whole_sums.warnings == ()  # larger, and for a reason


@pytest.mark.parametrize(
    "options", [{}, {"quant": "f32"}, {"quant": "q4_k_m"}, {"to": "onnx"}, {"to": "onnx", "quant": "int8"}]
)
def test_a_conversion_is_verified_against_the_sums(
    options: dict[str, Any], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    done = convert(base, tmp_path / "made", ConvertParams(adapters=[adapter], **options))
    assert done.verified is not None
    assert done.verified.tensors == len(done.plan.tensors)
    assert done.verified.ran.startswith("it runs")
    assert (done.verified.grade == "lossless") == (options == {"quant": "f32"})
    if not options:
        assert done.verified.exact == done.verified.tensors - 6
        assert 0 < done.verified.rmse < 0.01


def test_a_folder_becomes_a_folder_with_the_adapter_in_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    done = convert(base, tmp_path / "merged", ConvertParams(to="safetensors", quant="f32", adapters=[adapter]))
    assert done.verified is not None
    assert done.verified.lossless
    with closing(read(tmp_path / "merged")) as model, closing(read(base, adapters=[(adapter, 1.0)])) as expected:
        assert set(model.tensors) == set(expected.tensors)
        for name, tensor in expected.tensors.items():
            np.testing.assert_array_equal(whole(model.tensors[name]), whole(tensor))
        assert model.config == {**expected.config, "torch_dtype": "float32"}
    with pytest.raises(Unsupported, match="only GGUF files are converted to them, and folders with an adapter"):
        convert(base, tmp_path / "again", ConvertParams(to="safetensors"))


def test_an_output_that_was_the_embedding(tmp_path: Path) -> None:
    """What changes one of them makes two of them, in every target; what changes both alike does not."""
    base = folder_of(tmp_path / "base", "qwen2", dtype="F32")
    adapter = adapter_of(tmp_path / "adapter", lora("lm_head", 271, 64))
    done = convert(base, tmp_path / "model.gguf", ConvertParams(adapters=[adapter]))
    assert any("are two" in note for note in done.plan.notes)
    embedding = checkpoint(CONFIGS["qwen2"])["model.embed_tokens.weight"]
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        ours = {
            name: file.data(name).view(np.float32).reshape(271, 64) for name in ("output.weight", "token_embd.weight")
        }
        np.testing.assert_array_equal(ours["token_embd.weight"], embedding)
        np.testing.assert_allclose(ours["output.weight"], merged(embedding, lora("lm_head", 271, 64), 2.5), atol=CLOSE)
    convert(base, tmp_path / "folder", ConvertParams(to="safetensors", adapters=[adapter]))
    assert json.loads((tmp_path / "folder/config.json").read_text())["tie_word_embeddings"] is False
    convert(base, tmp_path / "onnx", ConvertParams(to="onnx", adapters=[adapter]))
    assert json.loads((tmp_path / "onnx/config.json").read_text())["tie_word_embeddings"] is False

    whole_ones = {"model.embed_tokens.weight": embedding * 2, "lm_head.weight": embedding * 2}
    both = adapter_of(tmp_path / "both", whole_ones, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    made = plan(base, ConvertParams(adapters=[both]))
    assert "output.weight" not in {one.name for one in made.tensors}
    gemma = folder_of(tmp_path / "gemma", "gemma2", dtype="F32")
    with pytest.raises(Unsupported, match="gemma2 has one"):
        plan(gemma, ConvertParams(adapters=[adapter]))


def test_two_adapters(tmp_path: Path) -> None:
    """Sums add up; what takes a tensor's place or scales it stands alone."""
    base, module = folder_of(tmp_path / "base", dtype="F32"), "model.layers.0.self_attn.q_proj"
    first, second = lora(module, 64, 64), lora(module, 64, 64, seed=1)
    one, two = adapter_of(tmp_path / "one", first), adapter_of(tmp_path / "two", second)
    with closing(read(base, adapters=[(one, 1.0), (two, 0.5)])) as model:
        expected = merged(checkpoint(CONFIGS["llama"])[module + ".weight"], first, 2.5)
        expected = merged(expected, second, 1.25)
        np.testing.assert_allclose(whole(model.tensors[module + ".weight"]), expected, rtol=0, atol=CLOSE)
    dora = adapter_of(tmp_path / "dora", lora(module, 64, 64, dora=True), use_dora=True)
    saved = adapter_of(
        tmp_path / "saved", {module + ".weight": np.ones((64, 64), np.float32)}, modules_to_save=["q_proj"]
    )
    for pair in ([one, dora], [dora, one], [saved, one], [one, saved], [dora, dora], [saved, saved]):
        with pytest.raises(Unsupported, match="merge one of them alone"):
            plan(base, ConvertParams(adapters=pair))
    other = adapter_of(tmp_path / "other", lora("model.layers.1.self_attn.q_proj", 64, 64, dora=True), use_dora=True)
    assert len([n for n in plan(base, ConvertParams(adapters=[one, other])).notes if "changes 1 tensor" in n]) == 2
    strong = plan(base, ConvertParams(adapters=[(saved, 2.0)]))
    assert any("taken as they are" in note for note in strong.notes)


def test_a_base_of_another_name_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = pair
    parts = lora("model.layers.0.self_attn.q_proj", 288, 288)
    for name, said in (("org/Other-7B", "Other-7B"), ("/home/x/other/", "other"), (r"C:\models\that", "that")):
        adapter = adapter_of(tmp_path / said, parts, base_model_name_or_path=name)
        notes = plan(base, ConvertParams(adapters=[adapter])).notes
        assert notes[-1] == f"adapter {said}: says that it was trained on {said}; this is tiny-base"
    unnamed = adapter_of(tmp_path / "unnamed", parts, base_model_name_or_path=None)
    assert "trained on" not in "".join(plan(base, ConvertParams(adapters=[unnamed])).notes)


def test_an_adapter_beside_its_base(pair: tuple[Path, Path]) -> None:
    """It is left alone unless it is asked for, and that is said."""
    base, adapter = pair
    for file in adapter.iterdir():
        shutil.copy(file, base)
    found = plan(base)
    assert any("an adapter lies in the folder" in note for note in found.notes)
    assert not any(one.source.endswith("adapter") for one in found.tensors)
    again = plan(base, ConvertParams(adapters=[base]))
    assert sum(one.source.endswith("adapter") for one in again.tensors) == 6


def test_what_has_no_weights_to_add_to_says_what_to_do(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    with pytest.raises(Unsupported, match="only an adapter; convert the model that it is for, with --adapter adapter"):
        plan(adapter)
    file = tiny("llama").write(tmp_path / "model.gguf")
    with pytest.raises(Unsupported, match=r"weights of a Hugging Face folder; .*--to safetensors"):
        plan(file, ConvertParams(adapters=[adapter]))
    convert(base, tmp_path / "onnx", ConvertParams(to="onnx", verify=False))
    with pytest.raises(Unsupported, match="weights of a Hugging Face folder"):
        plan(tmp_path / "onnx", ConvertParams(adapters=[adapter]))
    with pytest.raises(InvalidParameter, match="optimum has no such choice"):
        ConvertParams(to="onnx", exporter="optimum", adapters=[adapter])
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        plan(tmp_path / "nowhere", ConvertParams(adapters=[adapter]))


@pytest.mark.parametrize("wrong", ["folder", [1], [("a", "b")], [("a", math.nan)], [("a", 1, 2)], {"a": 1}])
def test_what_is_no_list_of_folders_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"adapters="):
        ConvertParams(adapters=wrong)


def test_what_merge_programs_write_converts_as_it_is(tmp_path: Path) -> None:
    """Shards, an index with a version in it, a card, their configuration, and a head that is the embedding again."""
    config = {
        **CONFIGS["qwen2"],
        "architectures": ["Qwen2ForCausalLM"],
        "_name_or_path": "org/base",
        "torch_dtype": "bfloat16",
    }
    tensors = checkpoint(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder = folder_of(tmp_path / "merged", config, shards=3, tensors=tensors)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["metadata"] = {"mergekit_version": "0.1.4", "total_size": 1}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "mergekit_config.yml").write_text("merge_method: slerp\nbase_model: org/base\ndtype: bfloat16\n")
    (folder / "README.md").write_text(
        "---\nbase_model:\n- org/base\n- org/other\ntags:\n- mergekit\n- merge\n---\n# merged\n"
    )
    done = convert(folder, tmp_path / "model.gguf")
    assert done.verified is not None
    assert done.verified.lossless
    assert [one.name for one in done.plan.left_out] == ["lm_head.weight"]


def test_a_file_says_which_adapters_are_in_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    other = adapter_of(tmp_path / "other", lora("lm_head", 271, 288))
    params = ConvertParams(adapters=[adapter, (other, 0.25)], verify=False)
    convert(base, tmp_path / "model.gguf", params)
    convert(base, tmp_path / "plain.gguf", ConvertParams(verify=False))
    with GGUFFile.open(tmp_path / "model.gguf") as file, GGUFFile.open(tmp_path / "plain.gguf") as plain:
        assert file.metadata["edgellm.convert.adapters"] == "adapter, other=0.25"
        assert "edgellm.convert.adapters" not in plain.metadata
