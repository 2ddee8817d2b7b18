"""KV caches in 8 bits: what is kept, how far predictions move, and what plan, folder and engine say about it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from arch_models import CONFIGS, LLAMA, checkpoint
from click.testing import CliRunner
from hf_models import folder_of
from numpy.typing import NDArray
from onnx_models import VARIANTS, ArrayWeights, Cache, Runner, opened, write

import edgellm
from edgellm.architectures import from_config
from edgellm.backends.base import Step
from edgellm.backends.onnx import open_onnx
from edgellm.cli.convert import convert as command
from edgellm.converters import ConvertParams, convert, plan
from edgellm.converters.onnx import kv_scales
from edgellm.converters.onnx.graph.model import model_graph
from edgellm.converters.onnx.source import ONNXFolder
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_writer import write_onnx

FAMILIES = [name for name, config in VARIANTS.items() if from_config(config)[1].causal]  # encoders keep nothing
GEMMA3 = {**CONFIGS["gemma3"], "max_position_embeddings": 256}
NOTHING = edgellm.CacheParams(memory=0, disk=0)


def rounded(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """(batch, heads, tokens, size) in steps of (heads, size)."""
    codes: NDArray[np.int8] = np.clip(np.rint(values / scales[None, :, None]), -128, 127).astype(np.int8)
    return codes


def rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """(with float32, with int8, the second's conversion)."""
    home = tmp_path_factory.mktemp(request.param)
    source = folder_of(home / "source", GEMMA3 if request.param == "gemma3" else LLAMA)
    convert(source, home / "f32", ConvertParams(to="onnx", verify=False))
    done = convert(source, home / "int8", ConvertParams(to="onnx", kv="int8"))
    return home / "f32", home / "int8", done


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_are_rounded_and_predictions_stay_near(family: str, tmp_path: Path) -> None:
    config = VARIANTS[family]
    weights = ArrayWeights(config, checkpoint(dict(config)))
    hyper = write(tmp_path / "f32.onnx", config, checkpoint(dict(config)))
    whole = Runner(tmp_path / "f32.onnx", hyper)
    tokens = np.random.default_rng(3).integers(0, hyper.n_vocab, 24).tolist()
    logits, state = whole.run([tokens], [24], whole.empty())
    largest = [np.abs(values).max(axis=(0, 2)) for values in state.values()]
    scales = (np.stack(largest) / np.float32(127)).reshape(hyper.n_layer, 2, hyper.n_head_kv, hyper.head_dim)
    write_onnx(tmp_path / "int8.onnx", model_graph(hyper, weights, None, scales))
    small = Runner(tmp_path / "int8.onnx", hyper)
    empty = cast(Cache, {name: values.astype(np.int8) for name, values in small.empty().items()})
    found, kept = small.run([tokens], [24], empty)
    for part, name in enumerate(("key", "value")):  # of the first layer, which saw the same
        name = f"past_key_values.0.{name}"
        assert kept[name].dtype == np.int8
        steps = kept[name].astype(int) - rounded(state[name], scales[0, part])
        assert np.abs(steps).max() <= 1
        assert np.mean(steps != 0) < 0.01  # the two graphs may differ in a last bit
    spread = float(logits.std())
    assert 0 < rms(found - logits) < 0.1 * spread
    _, first = small.run([tokens[:23]], [23], empty)
    last, after = small.run([tokens[23:]], [24], first)
    assert all(np.abs(after[name].astype(int) - kept[name]).max() <= 1 for name in kept)
    # the graph with float32 over the numbers that were kept: only the last token's own are rounded
    known = {name: first[name] * scales[at // 2, at % 2][None, :, None] for at, name in enumerate(first)}
    expected, _ = whole.run([tokens[23:]], [24], known)
    assert rms(last[0, -1] - expected[0, -1]) < 0.02 * spread


def test_the_engine_and_the_plan_know_the_size(folders: tuple[Path, Path, Any]) -> None:
    whole, small, done = folders
    infos = [edgellm.inspect(path) for path in (whole, small)]
    assert infos[0].kv_bytes_per_token == 4 * infos[1].kv_bytes_per_token
    assert infos[0].fingerprint != infos[1].fingerprint
    assert infos[0].tensor_types == infos[1].tensor_types  # scales are no weights
    notes = [note for note in done.plan.notes if "8 bits" in note and "a token" in note]
    each = infos[1].kv_bytes_per_token
    assert len(notes) == 1
    assert f"{each} bytes a token instead of {4 * each}" in notes[0]
    plain = plan(small.parent / "source", ConvertParams(to="onnx"))
    assert plain.memory is not None
    assert plain.memory_ctx is not None
    grown = done.plan.file_bytes - plain.file_bytes  # by the scales
    assert plain.memory - done.plan.memory == plain.memory_ctx * 3 * each - grown
    assert done.plan.file_bytes == sum(path.stat().st_size for path in small.rglob("*") if path.is_file())
    assert done.verified.exact == done.verified.tensors
    assert done.verified.mean_kl is not None  # not lossless
    assert 0 < done.verified.mean_kl < 0.06
    with pytest.raises(Unsupported, match="keeps int8"):
        edgellm.load(small, kv_type="f16")


def test_the_data_file_is_the_same(folders: tuple[Path, Path, Any]) -> None:
    whole, small, _ = folders
    names = [path.relative_to(small) for path in small.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    differing = [str(name) for name in names if (whole / name).read_bytes() != (small / name).read_bytes()]
    assert [Path(name).name for name in differing] == ["model.onnx"]
    for path in (whole, small):
        with ONNXFile.open(path / "onnx/model.onnx") as file:
            types = {value.dtype for value in file.graph.inputs if value.name.startswith("past")}
        assert types == ({"INT8"} if path == small else {"FLOAT"})


def test_predictions_of_the_folder(folders: tuple[Path, Path, Any]) -> None:
    whole, small, _ = folders
    with edgellm.load(whole, cache=NOTHING) as a, edgellm.load(small, cache=NOTHING) as b:
        tokens = a.encode("Keys and values, in 8 bits, of a text that nobody measured before. ")
        ours, theirs = (np.concatenate(list(model.logits(tokens))) for model in (b, a))
    assert rms(ours - theirs) < 0.2 * theirs.std()  # random models answer every nudge
    assert np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)) > 0.7


def test_save_and_load_are_exact(folders: tuple[Path, Path, Any]) -> None:
    _, small, _ = folders
    with closing(open_onnx(small, edgellm.LoadParams())) as backend:
        tokens = list(range(5, 45))
        first, second = backend.new_sequence(), backend.new_sequence()
        backend.forward([Step(first, tokens, "none")])
        blocks = [first.save(0, 16), first.save(16, 40)]
        assert len(blocks[0]) < 16 * backend.info.kv_bytes_per_token + 64
        second.load(blocks)
        assert second.save(0, 40) == first.save(0, 40)
        rows = [backend.forward([Step(each, [7], "last")])[0] for each in (first, second)]
        np.testing.assert_array_equal(rows[0], rows[1])


def test_scales_hold_at_every_position(folders: tuple[Path, Path, Any]) -> None:
    """A pair of rotated channels shares a scale, which is at least what a key far from the text needs."""
    whole, _, _ = folders
    with closing(ONNXFolder(whole)) as source:
        hyper = source.description.hyper
    seen: list[tuple[int, int]] = []
    text = "The harbour lay quiet in the early morning. " * 6
    scales = kv_scales.measure(whole, text, hyper, lambda done, of: seen.append((done, of)))
    half = hyper.head_dim // 2
    np.testing.assert_array_equal(scales[:, 0, :, :half], scales[:, 0, :, half:])
    assert not np.array_equal(scales[:, 1, :, :half], scales[:, 1, :, half:])
    assert seen[-1][0] == seen[-1][1]
    assert scales.min() > 0
    with closing(open_onnx(whole, edgellm.LoadParams())) as backend:
        tokens = backend.tokenizer.encode("", bos=True) + backend.tokenizer.encode(text)
        tokens = tokens[: min(len(tokens), backend.n_ctx)]
        sequence = backend.new_sequence()
        backend.forward([Step(sequence, tokens, "none")])
        for i, view in enumerate(backend.pool.views(sequence)):
            values = np.abs(view[:, : len(tokens)].astype(np.float32)).max(axis=1)
            assert (values <= 127 * scales[i // 2, i % 2]).all()


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", LLAMA)
    text = tmp_path / "mine.txt"
    text.write_text("One two three four five six seven eight nine ten. " * 20, encoding="utf-8")
    params = ConvertParams(to="onnx", kv="int8", calibrate=text)  # no weight is quantized: it is for the scales alone
    assert not params.has_importance
    stages: list[str] = []
    done = convert(source, tmp_path / "made", params, progress=lambda what, *_: stages.append(what))
    assert list(dict.fromkeys(stages))[:3] == ["converting", "measuring keys and values", "verifying"]
    assert any("over mine.txt" in note for note in done.plan.notes)
    text.write_text("too short", encoding="utf-8")
    with pytest.raises(InvalidParameter, match="tokens; give one of"):
        convert(source, tmp_path / "none", params)
    assert not (tmp_path / "none").exists()


def test_from_an_int8_folder_and_from_gguf(folders: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """What a folder with 8 bits says of its weights is whole: GGUF and ONNX are made of it again."""
    whole, small, _ = folders
    made = convert(small, tmp_path / "model.gguf", ConvertParams())
    assert made.verified is not None
    assert made.verified.exact == made.verified.tensors
    convert(small, tmp_path / "f32", ConvertParams(to="onnx", verify=False))
    for name in ("onnx/model.onnx_data", "config.json"):
        assert (tmp_path / "f32" / name).read_bytes() == (whole / name).read_bytes()
    again = convert(tmp_path / "model.gguf", tmp_path / "int8", ConvertParams(to="onnx", kv="int8"))
    assert again.verified is not None
    assert again.verified.mean_kl is not None
    assert 0 < again.verified.mean_kl < 0.2  # against the source, though every weight is exact


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="kv='f16': must be one of f32, int8"):
        ConvertParams(to="onnx", kv="f16")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="exact, max_context and kv"):
        ConvertParams(kv="int8")
    with pytest.raises(InvalidParameter, match="importance matrix changes nothing"):
        ConvertParams(to="onnx", kv="int8", imatrix=Path("m.gguf"))
    encoder = folder_of(tmp_path / "encoder", "bert")
    with pytest.raises(Unsupported, match="keeps no keys and values"):
        plan(encoder, ConvertParams(to="onnx", kv="int8"))


def test_a_damaged_model(tmp_path: Path) -> None:
    """Infinite keys are found before anything is made of them."""
    tensors = checkpoint(dict(LLAMA))
    name = next(name for name in tensors if name.endswith("0.self_attn.k_proj.weight"))
    tensors[name] = np.full_like(tensors[name], 3e38)
    source = folder_of(tmp_path / "source", LLAMA, tensors=tensors, dtype="F32")
    with pytest.raises(InvalidModelFile, match="keys or values that are no numbers"):
        convert(source, tmp_path / "made", ConvertParams(to="onnx", kv="int8"))
    assert not (tmp_path / "made").exists()


def test_genai_config_names_the_same_cache(folders: tuple[Path, Path, Any]) -> None:
    _, small, _ = folders
    decoder = json.loads((small / "genai_config.json").read_text("utf-8"))["model"]["decoder"]
    session = opened(small / decoder["filename"])
    names = {each.name: each.type for each in session.get_inputs()}
    for i in range(decoder["num_hidden_layers"]):
        for part in ("key", "value"):
            assert names[decoder["inputs"][f"past_{part}_names"] % i] == "tensor(int8)"


def test_the_command(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", LLAMA)
    result = CliRunner().invoke(command, [str(source), "--to", "onnx", "--kv-type", "int8", "--dry-run", "--json"])
    told = json.loads(result.stdout)
    expected = plan(source, ConvertParams(to="onnx", kv="int8"))
    assert (told["notes"], told["memory"]) == (list(expected.notes), expected.memory)
