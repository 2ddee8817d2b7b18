"""Checkpoints as the converters read them, against numpy, torch and the `gguf` package; damage and tricks refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from edgellm.converters import read
from edgellm.converters.folder.source import HuggingFace
from edgellm.converters.gguf.source import GGUF
from edgellm.converters.numbers import decode
from edgellm.errors import EdgeLLMError, InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.confined import file_in
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.safetensors import write_safetensors
from edgellm.formats.tensor import check_finite, chunks, n_rows

RANDOM = np.random.default_rng(0)
INDEX = "model.safetensors.index.json"
PLAIN = {
    "a.weight": RANDOM.standard_normal((6, 5)).astype(np.float32),
    "b.weight": RANDOM.standard_normal((2, 3, 4)).astype(np.float32),
    "c.bias": RANDOM.standard_normal(7).astype(np.float32),
}


def folder_of(folder: Path, tensors: Any = PLAIN, config: Any = None) -> Path:
    """A checkpoint of one file. tensors: arrays by name, or what `write_safetensors` takes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    if isinstance(tensors, dict):
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    else:
        write_safetensors(folder / "model.safetensors", tensors)
    return folder


def sharded(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    safetensors.numpy.save_file({"a.weight": PLAIN["a.weight"]}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({n: PLAIN[n] for n in ("b.weight", "c.bias")}, folder / "model-2.safetensors")
    if weight_map is None:
        weight_map = {"a.weight": "model-1.safetensors"} | dict.fromkeys(("b.weight", "c.bias"), "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def opened(path: Path) -> HuggingFace:
    found = read(path)
    assert isinstance(found, HuggingFace)
    return found


def refused(path: Path, kind: type[EdgeLLMError] = InvalidModelFile) -> str:
    with pytest.raises(kind) as caught:
        read(path)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("make", [folder_of, sharded])
def test_a_folder_and_any_file_in_it(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    weights = next(folder.glob("*.safetensors"))
    for path in (folder, folder / "config.json", weights):
        found = opened(path)
        assert (found.folder, found.format, found.dropped) == (folder, "huggingface", ())
        assert (found.config, found.generation) == ({"model_type": "llama"}, {"eos_token_id": 2})
        assert set(found.tensors) == set(PLAIN)
        for name, array in PLAIN.items():
            tensor = found.tensors[name]
            assert (tensor.shape, tensor.stored) == (array.shape, "F32")
            flat = array.reshape(n_rows(tensor), tensor.shape[-1])
            assert np.array_equal(tensor.rows(slice(None)), flat)
            assert np.array_equal(np.concatenate([tensor.rows(chunk) for chunk in chunks(tensor)]), flat)
        order = np.array([5, 0, 0, 2])
        assert np.array_equal(found.tensors["a.weight"].rows(order), PLAIN["a.weight"][order])
        assert np.array_equal(found.tensors["b.weight"].rows(slice(2, 4)), PLAIN["b.weight"].reshape(6, 4)[2:4])
        found.close()


def test_rows_are_ours_to_change(tmp_path: Path) -> None:
    tensor = opened(folder_of(tmp_path)).tensors["a.weight"]
    rows = tensor.rows(slice(0, 2))
    rows += 1
    assert np.array_equal(tensor.rows(slice(0, 2)), PLAIN["a.weight"][:2])


def test_numbers_against_numpy(tmp_path: Path) -> None:
    values = RANDOM.standard_normal((4, 8)).astype(np.float32)
    brain = (values.view(np.uint32) >> 16).astype(np.uint16)
    wide = values.astype(np.float64) * 1.0000001
    tensors = [
        ("f16", "F16", (4, 8), values.astype(np.float16)),
        ("bf16", "BF16", (4, 8), brain),
        ("f64", "F64", (4, 8), wide),
        ("scalar", "F32", (), np.float32(3).tobytes()),
        ("odd", "U8", (3,), b"abc"),
    ]
    found = opened(folder_of(tmp_path, tensors)).tensors
    assert np.array_equal(found["f16"].rows(slice(1, 3)), values.astype(np.float16)[1:3].astype(np.float32))
    cut = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(found["bf16"].rows(np.array([3, 1])), cut[[3, 1]])
    assert np.array_equal(found["f64"].rows(slice(None)), wide.astype(np.float32))
    assert (found["scalar"].shape, found["scalar"].rows(slice(None)).tolist()) == ((1,), [[3.0]])
    with pytest.raises(Unsupported, match="'odd' is U8"):
        found["odd"].rows(slice(None))


@pytest.mark.parametrize(
    ("stored", "values"),
    [
        ("F8_E4M3", {0x00: 0.0, 0x01: 2.0**-9, 0x07: 7 * 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x7E: 448.0, 0xC4: -3.0}),
        ("F8_E5M2", {0x00: 0.0, 0x01: 2.0**-16, 0x3C: 1.0, 0x7B: 57344.0, 0x7C: np.inf, 0xC2: -3.0}),
    ],
)
def test_eight_bit_values_of_the_paper(stored: str, values: dict[int, float]) -> None:
    codes = np.array([list(values)], np.uint8)
    assert decode(stored, codes).tolist() == [list(values.values())]
    assert np.isnan(decode(stored, np.array([[0x7F, 0xFF]], np.uint8))).all()
    assert np.signbit(decode(stored, np.array([[0x80]], np.uint8))).all()


@pytest.mark.parametrize("stored", ["F8_E4M3", "F8_E5M2", "BF16", "F16"])
def test_every_code_is_torch_s_value(stored: str) -> None:
    torch = pytest.importorskip("torch")
    kind = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BF16": "bfloat16", "F16": "float16"}[stored]
    codes = np.arange(256, dtype=np.uint8) if stored[:2] == "F8" else np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(codes.copy()).view(getattr(torch, kind)).float().numpy()
    assert np.array_equal(decode(stored, codes.view(np.uint8).reshape(1, -1))[0], expected, equal_nan=True)


# Hugging Face's fp8


def e4m3(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Codes without NaN."""
    codes = RANDOM.integers(0, 254, shape).astype(np.uint8)
    codes[codes == 0x7F] = 0
    return codes


def fp8(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "quantization_config": {"quant_method": "fp8", **more}}


@pytest.mark.parametrize(
    ("shape", "block", "config"),
    [
        ((256, 384), (128, 128), fp8()),
        ((200, 130), (128, 128), fp8(weight_block_size=[128, 128])),
        ((50, 70), (16, 32), fp8(weight_block_size=[16, 32])),
        ((3, 50, 70), (16, 32), fp8(weight_block_size=[16, 32])),
        ((3, 20, 10), (20, 10), fp8(weight_block_size=None)),
        ((200, 130), (128, 128), {"model_type": "llama"}),
        ((200, 130), (128, 128), {"model_type": "gemma3", "text_config": fp8()}),
    ],
)
def test_blocks_of_fp8(tmp_path: Path, shape: tuple[int, ...], block: tuple[int, int], config: Any) -> None:
    codes = e4m3(shape)
    grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    scale = RANDOM.uniform(0.5, 2, grid).astype(np.float32)
    scale_bf16 = (scale.view(np.uint32) >> 16).astype(np.uint16)
    tensors = [
        ("x.weight", "F8_E4M3", shape, codes),
        ("x.weight_scale_inv", "F32", grid, scale),
        ("experts.up", "F8_E4M3", shape, codes),
        ("experts.up_scale_inv", "BF16", grid, scale_bf16),
        ("norm.weight", "F32", (3,), np.ones(3, np.float32)),
    ]
    found = opened(folder_of(tmp_path, tensors, config))
    assert (set(found.tensors), found.dropped) == ({"x.weight", "experts.up", "norm.weight"}, ())
    plain = decode("F8_E4M3", codes.reshape(-1, shape[-1])).reshape(shape)

    def expected(scale: NDArray[np.float32]) -> NDArray[np.float32]:
        spread = np.repeat(np.repeat(scale, block[0], axis=-2), block[1], axis=-1)[..., : shape[-2], : shape[-1]]
        return (plain * spread).reshape(-1, shape[-1])

    tensor = found.tensors["x.weight"]
    assert (tensor.shape, tensor.stored) == (shape, "F8_E4M3")
    assert np.array_equal(tensor.rows(slice(None)), expected(scale))
    assert np.array_equal(tensor.rows(slice(7, 31, 2)), expected(scale)[7:31:2])
    order = RANDOM.permutation(n_rows(tensor))[:20]
    assert np.array_equal(tensor.rows(order), expected(scale)[order])
    rounded = (scale.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(found.tensors["experts.up"].rows(slice(None)), expected(rounded))


def test_blocks_of_fp8_as_torch_has_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    codes, scale = e4m3((130, 200)), RANDOM.uniform(0.5, 2, (2, 2)).astype(np.float32)
    tensors = [("x.weight", "F8_E4M3", (130, 200), codes), ("x.weight_scale_inv", "F32", (2, 2), scale)]
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn).float()
    spread = torch.from_numpy(scale).repeat_interleave(128, 0).repeat_interleave(128, 1)[:130, :200]
    rows = opened(folder_of(tmp_path, tensors, fp8())).tensors["x.weight"].rows(slice(None))
    assert np.array_equal(rows, (weight * spread).numpy())


@pytest.mark.parametrize("name", ["x.weight_scale", "x.weight_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_for_a_tensor_and_activation_scales_dropped(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    codes, one = e4m3((4, 6)), np.float32(0.25).tobytes()
    dropped = ["x.input_scale", "y.activation_scale", "experts.up_activation_scale", "attn.k_scale"]
    tensors = [("x.weight", "F8_E4M3", (4, 6), codes), (name, "F32", shape, one)]
    found = opened(folder_of(tmp_path, [*tensors, *((n, "F32", (), one) for n in dropped)], fp8()))
    assert list(found.tensors) == ["x.weight"]
    assert sorted(found.dropped) == sorted(dropped)
    assert np.array_equal(found.tensors["x.weight"].rows(slice(1, 3)), decode("F8_E4M3", codes[1:3]) / 4)


@pytest.mark.parametrize(
    ("scales", "config", "kind", "complaint"),
    [
        ([], fp8(), InvalidModelFile, "has 0 scales"),
        ([("x.weight_scale", "F32", ()), ("x.weight_scale_inv", "F32", ())], fp8(), InvalidModelFile, "has 2 scales"),
        ([("x.weight_scale", "F32", (2,))], fp8(), InvalidModelFile, r"need a scale of shape \(1, 1\)"),
        ([("x.weight_scale", "F32", (1, 1, 1))], fp8(), InvalidModelFile, "need a scale of shape"),
        ([("x.weight_scale", "U8", (1, 1))], fp8(), Unsupported, "its scale is U8"),
        ([("x.weight_scale", "F32", ())], fp8(weight_block_size=[0, 1]), InvalidModelFile, "not two positive"),
        ([("x.weight_scale", "F32", ())], fp8(weight_block_size="1"), InvalidModelFile, "not two positive"),
    ],
)
def test_scales_that_do_not_fit(tmp_path: Path, scales: Any, config: Any, kind: Any, complaint: str) -> None:
    size = {"F32": 4, "U8": 1}
    tensors = [(name, dtype, shape, bytes(size[dtype] * int(np.prod(shape)))) for name, dtype, shape in scales]
    folder = folder_of(tmp_path, [("x.weight", "F8_E4M3", (4, 6), e4m3((4, 6))), *tensors], config)
    with pytest.raises(kind, match=complaint):
        read(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "fbgemm_fp8", None])
def test_other_quantizations_are_refused(tmp_path: Path, method: str | None) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": method, "load_in_8bit": True}}
    message = refused(folder_of(tmp_path, config=config), Unsupported)
    assert repr(str(method)) in message
    assert "original checkpoint" in message


# what is missing, damaged or hostile


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "a JSON object is expected"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' appears twice"),
        (b'{"a": "' + b"x" * (16 << 20) + b'"}', "more than 16 MiB"),
        (b'{"a": ' + b"[" * 200_000, "not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_a_bad_json_file(tmp_path: Path, name: str, raw: bytes, complaint: str) -> None:
    folder = sharded(tmp_path)
    if name == INDEX and len(raw) > 1 << 20:
        raw, complaint = b" " * ((64 << 20) + 1), "more than 64 MiB"
    (folder / name).write_bytes(raw)
    message = refused(folder)
    assert complaint in message
    assert name in message
    assert len(message) < 600 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("weight_map", "complaint"),
    [
        ({}, "no weight_map"),
        (["a"], "no weight_map"),
        ({"a.weight": 5}, "not in a .safetensors file"),
        ({"a.weight": "model.bin"}, "not in a .safetensors file"),
        ({"a.weight": "../outside.safetensors"}, "not the plain name"),
        ({"a.weight": "sub/model.safetensors"}, "not the plain name"),
        ({"a.weight": "sub\\model.safetensors"}, "not the plain name"),
        ({"a.weight": "/model.safetensors"}, "not the plain name"),
        ({"a.weight": "C:model.safetensors"}, "not the plain name"),
        ({"a.weight": "a\0.safetensors"}, "not the plain name"),
        ({"a.weight": "model-1.safetensors", "new": "model-1.safetensors"}, "'new' is not in this shard"),
        ({"a.weight": "model-2.safetensors"}, "'a.weight' is not in this shard"),
        ({"b.weight": "model-2.safetensors"}, "'c.bias' is in this shard, but not"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: Any, complaint: str) -> None:
    safetensors.numpy.save_file({"a.weight": PLAIN["a.weight"]}, tmp_path / "outside.safetensors")
    assert complaint in refused(sharded(tmp_path / "model", weight_map))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors: this shard is missing; fetch all 2" in refused(folder, ModelNotFound)


@pytest.mark.parametrize("name", ["config.json", "model-2.safetensors", INDEX])
def test_links_are_followed(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "model")
    outside = tmp_path / f"outside-{name}"
    (folder / name).rename(outside)
    try:
        (folder / name).symlink_to(outside)
    except OSError:
        pytest.skip("links are not allowed here")
    assert set(opened(folder).tensors) == set(PLAIN)
    for lost in (name, "nothing"):  # it leads to itself
        (folder / name).unlink()
        (folder / name).symlink_to(lost)
        assert name in refused(folder, ModelNotFound)


def test_the_cache_of_the_hub_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x--y" / "snapshots" / "0123", tmp_path / "models--x--y" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder_of(tmp_path / "model").iterdir():
        file.rename(blobs / file.name)
        try:
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
        except OSError:
            pytest.skip("links are not allowed here")
    assert set(opened(snapshot).tensors) == set(PLAIN)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/a", "C:\\a", "C:a", "a\n"])
def test_names_that_are_not_of_a_file_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidModelFile, match="not the plain name"):
        file_in(tmp_path, name)


def test_truncated_weights(tmp_path: Path) -> None:
    places = [folder_of(tmp_path / "a") / "model.safetensors", sharded(tmp_path / "b") / "model-2.safetensors"]
    for path in places:
        path.write_bytes(path.read_bytes()[:-4])
        assert f"{path.name}: tensor" in refused(path.parent)


def test_an_empty_tensor_is_refused(tmp_path: Path) -> None:
    assert "'x' of shape (0, 4) is empty" in refused(folder_of(tmp_path, {"x": np.zeros((0, 4), np.float32)}))


@pytest.mark.parametrize(
    ("files", "kind", "complaint"),
    [
        ([], ModelNotFound, "fetch the weights"),
        (["pytorch_model.bin"], Unsupported, "save_pretrained"),
        (["model.pt"], Unsupported, "a pickle, which can run any code"),
        (["consolidated.safetensors"], Unsupported, "'consolidated.safetensors' is not named model.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.bin"], Unsupported, "'model.fp16.safetensors' is not named"),
        (["adapter_model.safetensors", "adapter_config.json"], Unsupported, "the model that it is for, with --adapter"),
    ],
)
def test_no_weights_that_we_read(tmp_path: Path, files: list[str], kind: Any, complaint: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in files:
        (tmp_path / name).touch()
    assert complaint in refused(tmp_path, kind)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none", ModelNotFound)
    assert "no config.json" in refused(tmp_path, ModelNotFound)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    assert "not an ONNX model" in refused(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.h5").write_bytes(b"\x08\x08")
    assert "neither a Hugging Face folder" in refused(tmp_path / "model.h5", Unsupported)
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02")
    assert "a pickle" in refused(tmp_path / "weights.bin", Unsupported)
    (tmp_path / "false.gguf").write_bytes(bytes(100))
    assert "not a GGUF file" in refused(tmp_path / "false.gguf")
    folder = folder_of(tmp_path / "model")
    safetensors.numpy.save_file(PLAIN, folder / "other.safetensors")
    assert "not one of the weight files" in refused(folder / "other.safetensors", Unsupported)
    (folder / INDEX).write_text('{"weight_map": {"a.weight": "other.safetensors"}}')
    assert "the index of another set" in refused(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    array = PLAIN["a.weight"].copy()
    array[2, 3] = bad
    rows = opened(folder_of(tmp_path, {"a.weight": array})).tensors["a.weight"].rows(slice(None))
    with pytest.raises(InvalidModelFile, match=r"'a\.weight': 1 of 30 weights"):
        check_finite("a.weight", rows)
    check_finite("a.weight", rows[:2])


def test_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    found = opened(folder_of(tmp_path, {"a": np.full((1, 2), 1e300)}))
    with pytest.raises(InvalidModelFile, match="2 of 2"):
        check_finite("a", found.tensors["a"].rows(slice(None)))


def test_memory_is_that_of_the_rows(tmp_path: Path) -> None:
    big = np.ones((4096, 1024), np.float16)  # 8 MiB
    tensor = opened(folder_of(tmp_path, {"a": big})).tensors["a"]
    tracemalloc.start()
    try:
        for which in (slice(100, 164), np.arange(4095, 0, -64)):
            assert tensor.rows(which).shape == (64, 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_pages_that_were_read_leave_memory(tmp_path: Path) -> None:
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("the system does not say which pages are resident")
    folder = folder_of(tmp_path, {"a": np.ones((4096, 1024), np.float16), "b": np.ones((4096, 1024), np.float16)})
    found = opened(folder)
    for tensor in found.tensors.values():
        for start in range(0, 4096, 256):
            tensor.rows(slice(start, start + 256))
    resident, ours = 0, False
    for line in maps.read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            ours = line.endswith("model.safetensors") and str(folder) in line
        elif first == "Rss:" and ours:
            resident += int(line.split()[1])  # KiB
    assert resident < 1024
    found.close()


def test_fingerprints(tmp_path: Path) -> None:
    prints = [opened(folder_of(tmp_path / name)).fingerprint for name in "ab"]
    assert prints[0] == prints[1]
    changed = {name: array + 1 for name, array in PLAIN.items()}
    others = [
        opened(folder_of(tmp_path / "c", changed)).fingerprint,
        opened(folder_of(tmp_path / "d", config={"model_type": "qwen2"})).fingerprint,
        opened(sharded(tmp_path / "e")).fingerprint,
    ]
    assert len({prints[0], *others}) == 4


# GGUF


def test_a_gguf_file_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    values = RANDOM.standard_normal((2, 3, 64)).astype(np.float32)
    kinds = {name: GGMLType[name] for name in ("F32", "F16", "BF16", "F64", "Q8_0")}
    packed = {name: gguf.quantize(values, gguf.GGMLQuantizationType[name]) for name in kinds if name != "F64"}
    packed["F64"] = values.astype(np.float64)
    path = tmp_path / "model.gguf"
    tensors = [(name, values.shape, kind, packed[name]) for name, kind in kinds.items()]
    ids = ("ids", (4,), GGMLType.I32, np.arange(4, dtype=np.int32))
    write_gguf(path, {"general.architecture": "llama"}, [*tensors, ids])
    renamed = path.with_suffix(".model")
    renamed.write_bytes(path.read_bytes())
    for place in (path, renamed):
        found = read(place)
        assert isinstance(found, GGUF)
        assert (found.format, found.path, found.fingerprint) == ("gguf", place, found.file.fingerprint)
        assert found.file.metadata["general.architecture"] == "llama"
        for name in ("F32", "F16", "BF16", "F64"):
            tensor = found.tensors[name]
            assert (tensor.shape, tensor.stored, tensor.type) == (values.shape, name, kinds[name])
            reference = values if name == "F64" else gguf.dequantize(packed[name], gguf.GGMLQuantizationType[name])
            flat = reference.reshape(6, 64)
            assert np.array_equal(tensor.rows(slice(1, 5)), flat[1:5])
            assert np.array_equal(tensor.rows(np.array([4, 0])), flat[[4, 0]])
        raw = found.tensors["Q8_0"].raw(np.array([5, 1]))
        assert np.array_equal(raw, packed["Q8_0"].reshape(6, 68)[[5, 1]])
        with pytest.raises(Unsupported, match="holds integers"):
            found.tensors["ids"].rows(slice(None))
        found.close()


def test_quantized_rows(tmp_path: Path) -> None:
    pytest.importorskip("edgellm.converters.quant.ggml")
    values = RANDOM.standard_normal((6, 64)).astype(np.float32)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    write_gguf(tmp_path / "a.gguf", {}, [("t", (6, 64), GGMLType.Q8_0, packed)])
    found = read(tmp_path / "a.gguf")
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(found.tensors["t"].rows(slice(2, 5)), expected[2:5])
    assert np.array_equal(found.tensors["t"].rows(np.array([5, 0])), expected[[5, 0]])
