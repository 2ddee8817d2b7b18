"""Configurations: both spellings mean the same, the real models' keys are known, and what would be lost stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import published_configs
import pytest
from arch_models import COMMON, CONFIGS, LLAMA3, PUBLISHED, YARN, checkpoint, convert
from numpy.typing import NDArray
from tiny_models import tiny

from edgellm.architectures import Hyper, from_config, from_metadata
from edgellm.architectures.rope import Rope, llama3_factors, share
from edgellm.backends.llamacpp.checks import check_header
from edgellm.errors import EdgeLLMError, InvalidModelFile, Unsupported, UnsupportedArchitecture
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile


def hyper(name: str, **changed: Any) -> Hyper:
    """The configuration with keys changed, or removed with an ellipsis."""
    values = {key: value for key, value in {**CONFIGS[name], **changed}.items() if value is not ...}
    return from_config(values)[1]


def rope(name: str, **changed: Any) -> Rope:
    found = hyper(name, **changed).rope
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "changed", "word"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"new_attention_trick": 3}, "new_attention_trick"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_scaling": {**YARN, "beta_fast": 16}}, "beta_fast"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}}, "twist"),
        ("qwen2", {"rope_scaling": LLAMA3}, "llama3"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "8 rotated elements of a head of 16"),
        ("qwen2", {"head_dim": 32}, "4 heads of 32 elements do not fill"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}, "sliding window"),
        ("llama", {"rope_scaling": {**YARN, "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        ("ministral3", {"rope_parameters": {**YARN, "truncate": False}}, "truncate"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3moe", {"norm_topk_prob": ...}, "norm_topk_prob"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("gemma3", {"sliding_window": None}, "sliding_window"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, "no_rope_layers"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("olmo3", {"sliding_window": None, "layer_types": ["sliding_attention"] * 5}, "sliding_window"),
        ("olmo3", {"layer_types": ["chunked_attention"] * 5}, "layer_types"),
        ("olmo3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("cohere2", {"sliding_window": None, "sliding_window_pattern": 1}, "sliding window"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere2", {"rope_scaling": YARN}, "yarn"),
        ("exaone4", {"sliding_window": 16, "layer_types": None}, "windows in 2 of 2 layers"),
        ("exaone4-32b", {"sliding_window_pattern": "LG"}, "windows in 32 of 64 layers"),
        ("exaone4-32b", {"sliding_window": None}, "windows in 0 of 64 layers"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_what_would_change_the_model_stops(name: str, changed: dict[str, Any], word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        hyper(name, **changed)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' is '64'"),
        ({"num_hidden_layers": 10**9}, "n_layer"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"num_attention_heads": 0}, "n_head"),
        ({"vocab_size": True}, "vocab_size"),
        ({"rope_theta": -1.0}, "rotary"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}}, "original context"),
    ],
)
def test_a_config_that_lies(changed: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidModelFile, match=word):
        hyper("llama", **changed)


def test_unknown_architectures() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"'mamba'.*llama"):
        from_config({"model_type": "mamba"})
    with pytest.raises(UnsupportedArchitecture, match=r"keys are those of llama: if it computes the same"):
        from_config({**CONFIGS["llama"], "model_type": "lama"})
    with pytest.raises(InvalidModelFile, match="model_type"):
        from_config({})


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mixtral", "gpt2", "bert", "ministral3"])
def test_the_nearest_family_is_named_with_what_differs(name: str) -> None:
    config, tensors = CONFIGS[name], checkpoint(CONFIGS[name])
    other = {**config, "model_type": "other", "twist": 3}
    names = {key.replace("down_proj", "downwards") for key in tensors} | {"model.layers.0.gate.weight"}
    with pytest.raises(UnsupportedArchitecture) as caught:
        from_config(other, names=names)
    said = str(caught.value)
    family = from_config(config)[0].model_type
    assert f"'other' cannot be converted; nearest is {family}, but unknown keys twist; tensors that it does" in said
    assert "model.layers.*.gate.weight" in said
    assert "a GGUF file" in said
    assert "--exporter optimum" in said
    if "model.layers.0.mlp.down_proj.weight" in tensors:
        assert "tensors that only it has: model.layers.*.mlp.down_proj.weight" in said
    with pytest.raises(UnsupportedArchitecture, match=f"keys and tensors are those of {family}: if it computes"):
        from_config({**config, "model_type": "other"}, names=list(tensors))
    parts = {"model_type": "seeing", "text_config": {**config, "model_type": "other"}, "vision_config": {}}
    with pytest.raises(UnsupportedArchitecture, match=f"'seeing' cannot be converted; its .* those of {family}: if"):
        from_config(parts, names=list(tensors))
    with pytest.raises(UnsupportedArchitecture, match="none that can be is near it"):
        from_config({**config, "model_type": "other"}, names=["backbone.layers.0.mixer.A_log"])


def test_spellings_of_rope() -> None:
    for scaling in (LLAMA3, YARN, {"rope_type": "linear", "factor": 2.0}):
        new = {"rope_theta": 10000.0, **scaling}
        assert rope("llama", rope_theta=None, rope_parameters=new) == rope("llama", rope_scaling=scaling)
    old = rope("gemma3")
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    nested = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    bare = {"rope_theta": None, "rope_local_base_freq": None, "rope_scaling": None}
    assert rope("gemma3", **bare, rope_parameters=nested) == old
    new = {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, "rope_type": "default"}
    assert rope("gpt_neox", rotary_pct=None, rotary_emb_base=None, rope_parameters=new) == rope("gpt_neox")


def test_yarn_magnitude_from_mscale() -> None:
    scaling = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}
    expected = (0.1 * np.log(4.0) + 1.0) / (0.05 * np.log(4.0) + 1.0)
    assert rope("llama", rope_scaling=scaling).magnitude == pytest.approx(expected)


def test_windows_that_llama_cpp_ignores_limit_the_context() -> None:
    assert hyper("mistral", sliding_window=48).n_ctx_train == 48
    assert hyper("mixtral", sliding_window=4096).n_ctx_train == 128
    assert hyper("phi3", sliding_window=100).n_ctx_train == 100
    assert hyper("mistral", sliding_window=..., max_position_embeddings=32768).n_ctx_train == 4096


@pytest.mark.parametrize("low", [1.0, 0.5])
@pytest.mark.parametrize("known", [True, False])
def test_llama3_scaling_is_recognised(low: float, known: bool, tmp_path: Path) -> None:
    """Files of other converters hold the factors alone."""
    wanted = Rope(500000.0, 64, scaling="llama3", factor=32.0, original=8192, low=low, high=4.0)
    model = tiny("llama", hidden=256)
    model.metadata |= {"llama.rope.freq_base": 500000.0, "llama.rope.dimension_count": 64}
    if known:
        model.metadata["llama.rope.scaling.original_context_length"] = 8192
    model.tensors["rope_freqs.weight"] = ((32,), GGMLType.F32, llama3_factors(wanted))
    with GGUFFile.open(model.write(tmp_path / "a.gguf")) as file:
        found = from_metadata(file)[1].rope
    assert found is not None
    np.testing.assert_allclose(llama3_factors(found), llama3_factors(wanted), rtol=1e-6)
    assert (found.factor, found.low, found.high) == (32.0, low, 4.0)


def test_other_factors_are_not_llama3(tmp_path: Path) -> None:
    model = tiny("llama", hidden=256)
    model.metadata["llama.rope.dimension_count"] = 64
    model.tensors["rope_freqs.weight"] = ((32,), GGMLType.F32, np.linspace(1, 9, 32, dtype=np.float32) ** 2)
    with GGUFFile.open(model.write(tmp_path / "a.gguf")) as file, pytest.raises(Unsupported, match="llama3"):
        from_metadata(file)


def test_unknown_keys_and_tensors_of_a_gguf_file(tmp_path: Path) -> None:
    model = tiny("llama")
    model.metadata["llama.attention.trick"] = 1
    with GGUFFile.open(model.write(tmp_path / "a.gguf")) as file, pytest.raises(Unsupported, match=r"attention\.trick"):
        from_metadata(file)
    model = tiny("llama")
    model.tensors["blk.0.attn_sinks.weight"] = ((4,), GGMLType.F32, np.zeros(4, np.float32))
    with GGUFFile.open(model.write(tmp_path / "b.gguf")) as file:
        architecture, numbers = from_metadata(file)
        with pytest.raises(Unsupported, match="attn_sinks"):
            architecture.relations(numbers, list(file.tensors))


@pytest.mark.parametrize(
    "name", ["llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "granite", "smollm3", "olmo2", "olmo3", "exaone4"]
)
def test_files_by_others_are_read(name: str, tmp_path: Path) -> None:
    """What the key-values of our own files say, the fewer ones of the tests' tiny models say as well."""
    with GGUFFile.open(tiny(name).write(tmp_path / "a.gguf")) as file:
        architecture, numbers = from_metadata(file)
        known = {part.name for one in architecture.relations(numbers, list(file.tensors)) for part in one.gguf}
        assert known == set(file.tensors)
    assert from_config(architecture.config(numbers))[1] == numbers


def test_a_gguf_head_that_the_family_has_not_is_no_silent_loss(tmp_path: Path) -> None:
    """Names that a Hugging Face checkpoint may leave out are not skipped in GGUF."""
    path = convert(CONFIGS["bert"], checkpoint(CONFIGS["bert"]), tmp_path / "a.gguf")
    with GGUFFile.open(path) as file:
        architecture, numbers = from_metadata(file)
        with pytest.raises(Unsupported, match=r"cls\.weight"):
            architecture.relations(numbers, [*file.tensors, "cls.weight"])


def test_what_llama_cpp_fills_in_is_read(tmp_path: Path) -> None:
    with GGUFFile.open(tiny("gemma2").write(tmp_path / "a.gguf")) as file:
        found = from_metadata(file)[1]
    assert (found.attention_softcap, found.final_softcap, found.windowed) == (50.0, 30.0, (True, False))
    with GGUFFile.open(tiny("gemma3").write(tmp_path / "b.gguf")) as file:
        rotary = from_metadata(file)[1].rope
    assert rotary == Rope(10000.0, 16, 10000.0)
    with GGUFFile.open(tiny("granite").write(tmp_path / "c.gguf")) as file:
        assert from_metadata(file)[1].attention_scale == 0.25


@pytest.mark.parametrize(("said", "right"), [(1.0, True), (0.1 * math.log(4.0) + 1.0, True), (1.5, False)])
def test_the_magnitude_that_other_converters_name_again(said: float, right: bool, tmp_path: Path) -> None:
    """llama.cpp reads it and computes the usual one of YaRN all the same."""
    model = tiny("olmo3")
    said_by_others = {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_attn_factor": said}
    model.metadata |= {f"olmo2.rope.scaling.{key}": value for key, value in said_by_others.items()}
    with GGUFFile.open(model.write(tmp_path / "a.gguf")) as file:
        assert (check_header(file) == []) == right
        if not right:
            with pytest.raises(Unsupported, match="yarn_attn_factor"):
                from_metadata(file)
            return
        found = from_metadata(file)[1].rope
    assert found is not None
    assert found.magnitude == pytest.approx(0.1 * math.log(4.0) + 1.0)


def test_a_pattern_of_letters() -> None:
    letters = hyper("cohere2", sliding_window_pattern="LLG")
    assert letters.windowed == (True, True, False, True, True)
    assert hyper("cohere2", sliding_window_pattern=3) == letters
    with pytest.raises(InvalidModelFile, match="letters L and G"):
        hyper("cohere2", sliding_window_pattern="LX")


def test_two_families_are_called_mistral3_in_gguf(tmp_path: Path) -> None:
    model = tiny("mistral3")
    with GGUFFile.open(model.write(tmp_path / "a.gguf")) as file:
        assert from_metadata(file)[0].model_type == "ministral3"
    del model.metadata["mistral3.attention.temperature_scale"]
    for key in ("fast", "slow"):
        del model.metadata[f"mistral3.rope.scaling.yarn_beta_{key}"]
    with GGUFFile.open(model.write(tmp_path / "b.gguf")) as file:
        architecture, numbers = from_metadata(file)
        assert architecture.model_type == "mistral"
        assert from_config(architecture.config(numbers))[0].gguf == "llama"
        assert len(architecture.relations(numbers, list(file.tensors))) == len(file.tensors)


def _bytes(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]], path: Path) -> bytes:
    return convert(config, tensors, path).read_bytes()


@pytest.mark.parametrize(
    ("name", "names"), [("mixtral", ("w1", "w3", "w2")), ("qwen3moe", ("gate_proj", "up_proj", "down_proj"))]
)
def test_fused_experts(name: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    config, tensors = CONFIGS[name], checkpoint(CONFIGS[name])
    fused = {key: value for key, value in tensors.items() if ".experts." not in key}
    fused = {key.replace("block_sparse_moe.", "mlp."): value for key, value in fused.items()}
    module = "block_sparse_moe" if name == "mixtral" else "mlp"
    for i in range(2):
        base = f"model.layers.{i}."
        gate, up, down = (
            np.stack([tensors[f"{base}{module}.experts.{e}.{one}.weight"] for e in range(4)]) for one in names
        )
        fused[f"{base}mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        fused[f"{base}mlp.experts.down_proj"] = down
    assert _bytes(config, fused, tmp_path / "b.gguf") == _bytes(config, tensors, tmp_path / "a.gguf")


def test_prefixes_old_names_and_parts_that_carry_nothing(tmp_path: Path) -> None:
    config, tensors = CONFIGS["bert"], checkpoint(CONFIGS["bert"])
    old = {
        "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    }
    old |= {"cls.predictions.bias": np.zeros(3, np.float32), "bert.pooler.dense.bias": np.zeros(64, np.float32)}
    assert _bytes(config, old, tmp_path / "b.gguf") == _bytes(config, tensors, tmp_path / "a.gguf")
    old["bert.encoder.layer.0.adapter.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(Unsupported, match=r"adapter\.weight"):
        convert(config, old, tmp_path / "c.gguf")


@pytest.mark.parametrize(
    ("whole", "name"), [("gemma3", "gemma3"), ("mistral3", "ministral3"), ("mistral3", "mistral"), ("llava", "llama")]
)
@pytest.mark.parametrize(("before", "after"), [("language_model.", "vision_tower."), ("", "model.vision_tower.")])
def test_models_that_also_see(whole: str, name: str, before: str, after: str, tmp_path: Path) -> None:
    """Their text is what it is alone, under the names of transformers 4 and of 5."""
    text, tensors = CONFIGS[name], checkpoint(CONFIGS[name])
    config = {"model_type": whole, "text_config": text, "vision_config": {"a": 1}, "image_token_index": 3}
    names = {key: before + key if before else key.replace("model.", "model.language_model.") for key in tensors}
    seeing = {names[key]: value for key, value in tensors.items()}
    seeing |= {after + "x.weight": np.zeros((2, 2), np.float32), "image_newline": np.zeros(2, np.float32)}
    assert _bytes(config, seeing, tmp_path / "b.gguf") == _bytes(text, tensors, tmp_path / "a.gguf")


def test_a_text_part_that_says_little() -> None:
    """transformers 4 left out what its classes have by themselves; the whole says whether the output is tied."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    found = from_config({"model_type": "llava", "text_config": text})[1]
    assert (found.n_embd, found.n_ff, found.n_layer, found.n_vocab, found.tied) == (4096, 11008, 32, 32064, False)
    assert from_config({"model_type": "llava", "text_config": text, "tie_word_embeddings": True})[1].tied
    unnamed = {key: value for key, value in CONFIGS["mistral"].items() if key != "model_type"}
    assert from_config({"model_type": "mistral3", "text_config": unnamed})[0].model_type == "mistral"
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        from_config({"model_type": "llava", "text_config": {"model_type": "mamba"}})
    with pytest.raises(InvalidModelFile, match="model_type"):
        from_config({"model_type": "llava", "text_config": {"model_type": ["llama"]}})


def test_a_tied_head_that_was_stored_is_named(tmp_path: Path) -> None:
    config, tensors = CONFIGS["qwen2"], checkpoint(CONFIGS["qwen2"])
    architecture, numbers = from_config(config)
    assert architecture.duplicates(numbers, list(tensors)) == []
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert architecture.duplicates(numbers, list(tensors)) == [("lm_head.weight", "model.embed_tokens.weight")]
    with GGUFFile.open(convert(config, tensors, tmp_path / "a.gguf")) as file:
        assert "output.weight" not in file.tensors


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (None, None),
        ({"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling(folder: dict[str, Any] | None, expected: str | None) -> None:
    assert from_config(CONFIGS["bert"], folder)[1].pooling == expected


def test_pooling_that_llama_cpp_has_not() -> None:
    with pytest.raises(Unsupported, match="max_tokens"):
        from_config(CONFIGS["bert"], {"pooling_mode_max_tokens": True})


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_models_are_known(name: str) -> None:
    assert hyper(name, **PUBLISHED[name]) == hyper(name)


@pytest.mark.parametrize("name", published_configs.FOUND)
def test_published_configurations_are_read_whole(name: str) -> None:
    architecture, numbers = from_config(published_configs.PUBLISHED[name])
    found = architecture.model_type, numbers.n_layer, numbers.n_embd, numbers.head_dim, numbers.tied
    assert found == published_configs.FOUND[name]
    assert from_config(architecture.config(numbers))[1] == numbers
    assert set(published_configs.PUBLISHED) == set(published_configs.FOUND)


def test_real_files_are_explained(smollm2: Path, gemma3: Path) -> None:
    for path, model_type, window in ((smollm2, "llama", None), (gemma3, "gemma3_text", 512)):
        with GGUFFile.open(path) as file:
            architecture, numbers = from_metadata(file)
            parts = {p.name: p.shape for one in architecture.relations(numbers, list(file.tensors)) for p in one.gguf}
            assert parts == {name: info.shape for name, info in file.tensors.items()}
        assert (architecture.model_type, numbers.window, numbers.tied) == (model_type, window, True)
        assert from_config(architecture.config(numbers))[1] == numbers


def test_the_rotated_share_comes_back() -> None:
    pairs = [(dim, head) for head in range(2, 258, 2) for dim in range(2, head + 1, 2)]
    assert [pair for pair in pairs if int(pair[1] * share(Rope(1e4, pair[0]), pair[1])) != pair[0]] == []


def test_defaults_of_sparse_configurations() -> None:
    sparse = {key: COMMON[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    sparse |= {"model_type": "llama", "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}
    found = from_config(sparse)[1]
    assert (found.n_head_kv, found.head_dim, found.tied, found.rope) == (4, 16, False, Rope(10000.0, 16))
    assert issubclass(Unsupported, EdgeLLMError)


BEYOND = (
    0,
    -1,
    3,
    10**12,
    10**400,
    -(10**400),
    math.nan,
    math.inf,
    -1.5,
    "x",
    [],
    ["x"],
    {},
    {"rope_type": "yarn"},
    True,
)
STRETCHED = {
    "yarn": ("factor", "mscale", "mscale_all_dim", "attention_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("factor", "short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_number_that_cannot_be_is_a_typed_error(name: str) -> None:
    """Whatever a key says, nothing that large is computed, and what is refused is refused with an error of ours."""
    known = {**CONFIGS[name], **PUBLISHED.get(name, {})}
    rotary = ("rope_theta", "partial_rotary_factor", "rope_local_base_freq", "no_rope_layer_interval", "head_dim")
    changes = [{key: value} for key in {*known, *rotary} for value in BEYOND]
    for kind, keys in STRETCHED.items():
        usual = {key: [1.0] * 8 if key.startswith(("short", "long")) else 4.0 for key in keys} | {keys[-1]: 32}
        listed = [*BEYOND, [math.nan] * 8, [None] * 8]
        changes += [{"rope_scaling": {"rope_type": kind, **usual, key: value}} for key in keys for value in listed]
    for change in changes:
        try:
            architecture, found = from_config({**known, **change})
            architecture.metadata(found)
            architecture.extra(found)
        except EdgeLLMError:
            pass
