"""Checkpoints to GGUF and back: against the `gguf` package, llama.cpp's quantizer, and the source itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from arch_models import CONFIGS, EMBEDDERS, LLAMA, checkpoint
from hf_models import ALIGNED, UNALIGNED, folder_of, write_tokenizer, write_weights
from llama_quantize import llama_quantize
from numpy.typing import NDArray
from tiny_models import tiny

import edgellm
from edgellm.backends.llamacpp.checks import check_header
from edgellm.converters import ConvertParams, convert, plan, read
from edgellm.converters.quant.imatrix import ImportanceMatrix, InputSums
from edgellm.converters.quant.pool import Quantizers
from edgellm.converters.quant.recipes import TARGETS
from edgellm.converters.tokens import read_gguf, read_huggingface
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.safetensors import write_safetensors
from edgellm.formats.tensor import Tensor, chunks

VERIFIED = {"llama", "gemma3", "mixtral", "gpt2", "bert"}  # tests/architectures/test_identity.py runs all of them


def whole(tensor: Tensor) -> NDArray[np.float32]:
    return np.concatenate([tensor.rows(part) for part in chunks(tensor)]).reshape(tensor.shape)


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    with GGUFFile.open(path) as file:
        return {name: (info.type.name, file.data(name).tobytes()) for name, info in file.tensors.items()}


def values(path: Path) -> dict[str, NDArray[np.float32]]:
    checkpoint = read(path)
    found = {name: whole(tensor) for name, tensor in checkpoint.tensors.items()}
    checkpoint.close()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """bf16 weights come back bit for bit, the file runs, and the tokenizer says the same."""
    source = folder_of(tmp_path / "source", name, shards=3 if name in ("llama", "gemma3") else 1)
    if name in EMBEDDERS:
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    there = convert(source, tmp_path / "there.gguf", ConvertParams(verify=name in VERIFIED))
    if there.verified is not None:
        assert there.verified.exact == there.verified.tensors
        assert there.verified.ran.startswith("not run" if name in EMBEDDERS else "it runs")
    assert there.path.stat().st_size == there.plan.file_bytes
    assert there.plan.recipe == "keep"
    with GGUFFile.open(there.path) as file:
        assert check_header(file) == []  # what edgellm writes needs no trial

    reader = gguf.GGUFReader(there.path)
    assert [t.name for t in reader.tensors] == [one.name for one in there.plan.tensors]
    assert {t.name: t.tensor_type.name for t in reader.tensors} == {one.name: one.target for one in there.plan.tensors}
    assert reader.fields["general.name"].contents() == "source"
    assert reader.fields["edgellm.convert.source_fingerprint"].contents() == there.plan.source_fingerprint

    back = convert(there.path, tmp_path / "back", ConvertParams(to="safetensors"))
    assert back.plan.recipe == "bf16"
    assert back.plan.exact or "gemma" in name  # a norm that has 1 taken away again may need more bits
    expected, found = values(source), values(tmp_path / "back")
    assert sorted(found) == sorted(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, key)
    with closing(read(back.path)) as again:
        assert again.description.hyper.pooling == ("cls" if name in EMBEDDERS else None)
    n_vocab = CONFIGS[name]["vocab_size"]
    ours, theirs = (read_huggingface(folder, n_vocab) for folder in (tmp_path / "back", source))
    assert (ours.tokens, ours.types, ours.merges, ours.special) == (
        theirs.tokens, theirs.types, theirs.merges, theirs.special,
    )  # fmt: skip


@pytest.mark.parametrize("to", ["gguf", "onnx"])
@pytest.mark.parametrize(
    ("name", "tied", "said"), [("ministral3", True, None), ("ministral3", True, True), ("mistral", False, True)]
)
def test_the_text_of_a_model_that_also_sees(name: str, tied: bool, said: bool | None, to: str, tmp_path: Path) -> None:
    """Whether its output is the embedding, the checkpoint knows best: what config.json says of it may be of the whole
    or of the text, and both are found that are wrong. What sees is left out, and listed."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    text, tensors = {**CONFIGS[name], "tie_word_embeddings": False}, checkpoint(CONFIGS[name])
    seeing = {f"language_model.{key}": value for key, value in tensors.items() if not (tied and "lm_head" in key)}
    seeing |= dict.fromkeys(("vision_tower.a.weight", "multi_modal_projector.b.weight"), np.ones((4, 4), np.float32))
    source = folder_of(tmp_path / "source", text, tensors=seeing)
    whole_of = {"model_type": "mistral3", "text_config": text, "vision_config": {}, "image_token_index": 10}
    whole_of |= {} if said is None else {"tie_word_embeddings": said}
    (source / "config.json").write_text(json.dumps(whole_of))
    made = tmp_path / ("made.gguf" if to == "gguf" else "made")
    done = convert(source, made, ConvertParams(to=to))
    assert {one.name for one in done.plan.left_out} == {"vision_tower.a.weight", "multi_modal_projector.b.weight"}
    with closing(read(made)) as again:
        assert again.description.hyper.tied == tied
        assert again.description.hyper.n_layer == 2
    with edgellm.load(made, ctx=16) as model:
        assert model.generate("hello", max_tokens=3, temperature=0, ignore_eos=True).usage.completion_tokens == 3


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_1", "iq4_nl", "q2_k"])
def test_a_quantized_file_answers(quant: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", ALIGNED)
    done = convert(source, tmp_path / "model.gguf", ConvertParams(quant=quant, verify=False))
    assert done.plan.file_bytes == done.path.stat().st_size
    with GGUFFile.open(done.path) as file:
        assert file.metadata["general.file_type"] == TARGETS[quant].file_type
        assert file.metadata["general.quantization_version"] == 2
        assert file.metadata["edgellm.convert.recipe"] == quant
        assert file.metadata["edgellm.convert.version"] == edgellm.__version__
    with edgellm.load(done.path, ctx=128) as model:
        assert model.generate("hello world", max_tokens=4, temperature=0, ignore_eos=True).usage.completion_tokens == 4


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Importance of the weights of ALIGNED, as our file and as .npz for the oracle."""
    path = tmp_path_factory.mktemp("matrix") / "imatrix.gguf"
    rng = np.random.default_rng(5)
    entries = {}
    for i in range(2):
        for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            columns = 512 if role == "ffn_down" else 256
            sums = rng.standard_normal((1, columns)).astype(np.float32) ** 2
            entries[f"blk.{i}.{role}.weight"] = InputSums(sums, np.ones(1, np.float32))
    ImportanceMatrix(entries, 3, 512, ("words.txt",)).write(path)
    np.savez(path.with_suffix(".npz"), **{name: entry.sums for name, entry in entries.items()})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("shape", ["aligned", "unaligned", "importance"])
def test_bytes_are_those_of_llama_cpps_quantizer(shape: str, matrix: Path, tmp_path: Path) -> None:
    """Straight from the checkpoint, against an unquantized file that llama.cpp quantizes."""
    source = folder_of(tmp_path / "source", UNALIGNED if shape == "unaligned" else ALIGNED)
    plain = convert(source, tmp_path / "plain.gguf", ConvertParams(verify=False)).path
    given = matrix if shape == "importance" else None
    quants = ["q4_0", "q8_0", "q4_k_m", "q5_k_m", "q6_k"]
    oracle = given.with_suffix(".npz") if given else None
    llama_quantize([(plain, tmp_path / f"oracle-{quant}.gguf", quant, oracle) for quant in quants])
    for quant in quants:
        params = ConvertParams(quant=quant, imatrix=given, verify=False)
        ours = convert(source, tmp_path / f"{quant}.gguf", params)
        assert stored(ours.path) == stored(tmp_path / f"oracle-{quant}.gguf"), quant
        assert bool(ours.plan.fallbacks) == (shape == "unaligned" and quant != "q8_0")
        with GGUFFile.open(ours.path) as file:
            assert file.metadata.get("quantize.imatrix.entries_count") == (14 if given else None)
            assert file.metadata.get("quantize.imatrix.dataset") == ("words.txt" if given else None)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_1])
def test_requantizing_a_gguf_file(kind: GGMLType, tmp_path: Path) -> None:
    source = tiny("qwen3", weights=kind, hidden=256).write(tmp_path / "source.gguf")
    llama_quantize([(source, tmp_path / "oracle.gguf", "q4_k_m", None)])
    ours = convert(source, tmp_path / "ours.gguf", ConvertParams(quant="q4_k_m"))
    assert stored(ours.path) == stored(tmp_path / "oracle.gguf")
    assert ours.verified is not None
    assert ours.verified.mean_kl is not None
    assert ours.verified.mean_kl < 0.01
    lossy = {one.source for one in ours.plan.tensors if not one.exact}
    assert lossy == {kind.name}


def test_keeping_a_gguf_file_copies_it(tmp_path: Path) -> None:
    """Key-values keep their types, tensors their bytes; a conversion of a conversion does not pile up records."""
    made = tiny("gemma3", weights=GGMLType.Q8_0)
    extra = {"odd.u16": np.uint16(7), "odd.f64": np.float64(0.1), "odd.flags": np.array([True, False])}
    made.metadata |= {**extra, "odd.texts": ["a", "ü"], "odd.none": [], "general.file_type": 7}
    source = made.write(tmp_path / "source.gguf")
    first = convert(source, tmp_path / "first.gguf")
    second = convert(first.path, tmp_path / "second.gguf")
    assert first.verified is not None
    assert first.verified.grade == "lossless"
    assert first.plan.exact
    assert stored(first.path) == stored(source)
    assert first.path.stat().st_size == second.path.stat().st_size
    files = [GGUFFile.open(path) for path in (source, first.path)]
    for key in files[0].metadata:
        assert files[1].kind(key) == files[0].kind(key)
        ours, theirs = (file.metadata[key] for file in files)
        assert list(ours) == list(theirs) if files[0].kind(key).endswith("[]") else ours == theirs
    added = set(files[1].metadata) - set(files[0].metadata)
    assert added - {"general.quantization_version"} == {key for key in added if key.startswith("edgellm.convert.")}
    for file in files:
        file.close()


def test_a_split_source_becomes_one_file(tmp_path: Path) -> None:
    made = tiny()
    listed = [(name, *rest) for name, rest in made.tensors.items()]
    for i in range(2):
        about = {"split.no": np.uint16(i), "split.count": np.uint16(2), "split.tensors.count": np.int32(len(listed))}
        metadata = {**(made.metadata if i == 0 else {}), **about}
        write_gguf(tmp_path / f"model-{i + 1:05d}-of-00002.gguf", metadata, listed[i::2])
    done = convert(tmp_path / "model-00002-of-00002.gguf", tmp_path / "whole.gguf")
    expected = made.write(tmp_path / "expected.gguf")
    assert stored(done.path) == stored(expected)
    with GGUFFile.open(done.path) as file:
        assert not any(key.startswith("split.") for key in file.metadata)


def tied_folder(folder: Path, *, same: bool) -> Path:
    config = {**LLAMA, "tie_word_embeddings": True}
    tensors = checkpoint(config)
    head = tensors["model.embed_tokens.weight"].copy()
    if not same:
        head[5, 5] += 1
    return folder_of(folder, config, tensors={**tensors, "lm_head.weight": head})


def test_only_a_head_that_is_the_embedding_is_left_out(tmp_path: Path) -> None:
    same = plan(tied_folder(tmp_path / "same", same=True))
    assert [(one.name, "equal to" in one.why) for one in same.left_out] == [("lm_head.weight", True)]
    assert "output.weight" not in {one.name for one in same.tensors}
    other = convert(tied_folder(tmp_path / "other", same=False), tmp_path / "other.gguf")
    assert not other.plan.left_out
    assert "lm_head.weight differs" in other.plan.notes[-1]
    found = values(other.path)
    assert found["output.weight"][5, 5] == pytest.approx(found["token_embd.weight"][5, 5] + 1, rel=0.01)


def test_experts_have_an_importance_each(tmp_path: Path) -> None:
    config = {**CONFIGS["mixtral"], "hidden_size": 256, "intermediate_size": 256}
    source = folder_of(tmp_path / "source", config)
    rng = np.random.default_rng(1)
    names = [f"blk.{i}.ffn_{role}_exps.weight" for i in range(2) for role in ("gate", "up", "down")]
    sums = {name: rng.standard_normal((4, 256)).astype(np.float32) ** 2 for name in names}
    counts = np.ones(4, np.float32)
    ImportanceMatrix({n: InputSums(s, counts) for n, s in sums.items()}, 1, 512).write(tmp_path / "imatrix.gguf")
    np.savez(tmp_path / "imatrix.npz", **sums)  # type: ignore[arg-type]
    plain = convert(source, tmp_path / "plain.gguf", ConvertParams(verify=False)).path
    llama_quantize([(plain, tmp_path / "oracle.gguf", "q4_0", tmp_path / "imatrix.npz")])
    ours = convert(source, tmp_path / "ours.gguf", ConvertParams(quant="q4_0", imatrix=tmp_path / "imatrix.gguf"))
    assert stored(ours.path) == stored(tmp_path / "oracle.gguf")


def test_an_importance_matrix_of_another_model_is_refused(matrix: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", UNALIGNED)
    with pytest.raises(InvalidParameter, match="another model"):
        convert(source, tmp_path / "a.gguf", ConvertParams(quant="q4_0", imatrix=matrix))
    other = ImportanceMatrix(
        {"blk.99.x.weight": InputSums(np.ones((1, 4), np.float32), np.ones(1, np.float32))}, 1, 512
    )
    other.write(tmp_path / "other.gguf")
    with pytest.raises(InvalidParameter, match="no entry for any tensor"):
        convert(source, tmp_path / "a.gguf", ConvertParams(quant="q4_0", imatrix=tmp_path / "other.gguf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gguf", "source"]


def test_calibrating_a_folder(tmp_path: Path) -> None:
    """Its statistics are used and recorded, and the file it takes is gone."""
    source = folder_of(tmp_path / "source", ALIGNED)
    text = tmp_path / "words.txt"
    text.write_text("hello world, the other world. " * 40, encoding="utf-8")
    stages: list[str] = []
    params = ConvertParams(quant="q2_k_s", calibrate=text)
    done = convert(source, tmp_path / "model.gguf", params, progress=lambda what, done, total: stages.append(what))
    assert list(dict.fromkeys(stages)) == [
        "writing a temporary q8_0 file to calibrate with", "calibrating", "converting", "verifying",
        "writing a temporary exact file to measure with", "measuring",
    ]  # fmt: skip
    assert done.path.stat().st_size == done.plan.file_bytes
    with GGUFFile.open(done.path) as file:
        assert file.metadata["quantize.imatrix.file"] == file.metadata["quantize.imatrix.dataset"] == "words.txt"
        assert file.metadata["quantize.imatrix.entries_count"] == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "source", "words.txt"]
    with pytest.raises(InvalidParameter, match="needs an importance matrix"):
        plan(source, ConvertParams(quant="q2_k_s"))


@pytest.mark.parametrize("fast", [False, True])
def test_a_file_fits(fast: bool, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", UNALIGNED)
    full = plan(source).file_bytes
    sizes = []
    for share in (0.35, 0.6, 1.0):
        room = int(full * share) + 200
        params = ConvertParams(fit=room, fast_on_cpu=fast, verify=False, force=True)
        done = convert(source, tmp_path / "model.gguf", params)
        sizes.append(done.path.stat().st_size)
        assert sizes[-1] <= room
        slow = {"Q4_1", "Q5_0", "Q5_1"} & {one.target for one in done.plan.tensors}
        assert not (fast and slow)
    assert sizes == sorted(sizes)
    assert done.plan.recipe == "keep"
    with pytest.raises(InvalidParameter, match="too few"):
        plan(source, ConvertParams(fit=int(full * 0.1), fast_on_cpu=fast))


def test_fitting_a_quantized_file_never_enlarges_a_tensor(tmp_path: Path) -> None:
    source = tiny("llama", weights=GGMLType.Q8_0, hidden=256).write(tmp_path / "source.gguf")
    size = source.stat().st_size
    done = convert(source, tmp_path / "model.gguf", ConvertParams(fit=int(size * 0.8)))
    assert done.path.stat().st_size <= int(size * 0.8)
    bits = {"Q8_0": 8, "F32": 32}
    assert all(
        GGMLType[one.target].nbytes(one.shape) <= GGMLType[one.source].nbytes(one.shape) for one in done.plan.tensors
    )
    assert {one.source for one in done.plan.tensors} == set(bits)


def test_strict_refuses_fallbacks(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", UNALIGNED)
    with pytest.raises(Unsupported, match=r"rows of 288 .*instead of Q4_K"):
        plan(source, ConvertParams(quant="q4_k_m", strict=True))
    assert not plan(source, ConvertParams(quant="q8_0", strict=True)).fallbacks


def test_an_fp8_checkpoint(tmp_path: Path) -> None:
    """Weights of 8 bits with a scale become bf16."""
    config = {**LLAMA, "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}
    tensors = checkpoint(LLAMA)
    source = folder_of(tmp_path / "source", LLAMA)
    entries: list[Any] = []
    for name, array in tensors.items():
        if "proj" in name:
            codes = np.random.default_rng(0).integers(0x20, 0x40, array.shape).astype(np.uint8)
            entries.append((name, "F8_E4M3", array.shape, codes))
            entries.append((name + "_scale_inv", "F32", (1, 1), np.full((1, 1), 0.25, np.float32)))
        else:
            entries.append((name, "F32", array.shape, array))
    write_safetensors(source / "model.safetensors", entries)
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = convert(source, tmp_path / "model.gguf")
    kinds = {one.source: one.target for one in done.plan.tensors}
    assert kinds == {"F32": "F32", "F8_E4M3": "BF16"}
    assert done.verified is not None
    assert done.verified.exact == done.verified.tensors  # a quarter of a number of 8 bits is one of 16


def test_the_wrong_bytes_never_get_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer that mixes up rows is found out."""
    source = folder_of(tmp_path / "source", ALIGNED)
    real = Quantizers.run

    def wrong(self: Quantizers, name: str, kind: GGMLType, rows: Any, importance: Any = None) -> Any:
        mixed = (np.roll(chunk, 1, axis=0) if name == "blk.1.ffn_up.weight" else chunk for chunk in rows)
        return real(self, name, kind, mixed, importance)

    monkeypatch.setattr(Quantizers, "run", wrong)
    for quant in ("keep", "q4_k_m"):
        with pytest.raises(InvalidModelFile, match=r"blk\.1\.ffn_up\.weight.*nothing was kept"):
            convert(source, tmp_path / "model.gguf", ConvertParams(quant=quant))
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", ALIGNED)

    def stop_in(stage: str) -> Callable[[str, int, int], None]:
        def stop(what: str, done: int, total: int) -> None:
            if what == stage and 2 * done > total:
                raise KeyboardInterrupt

        return stop

    for stage in ("converting", "verifying"):
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "model.gguf", ConvertParams(quant="q4_k_m"), progress=stop_in(stage))
    plain = convert(source, tmp_path / "model.gguf").path
    with pytest.raises(KeyboardInterrupt):
        convert(plain, tmp_path / "folder", ConvertParams(to="safetensors"), progress=stop_in("converting"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "source"]


def test_targets_that_exist(tmp_path: Path) -> None:
    source = tiny().write(tmp_path / "source.gguf")
    target = tmp_path / "target.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(InvalidParameter, match="--force"):
        convert(source, target)
    with pytest.raises(InvalidParameter, match="source itself"):
        convert(source, source, ConvertParams(force=True))
    (tmp_path / "folder").mkdir()
    for params in (ConvertParams(force=True), ConvertParams(to="safetensors", force=True)):
        with pytest.raises(InvalidParameter, match="a folder of this name"):
            convert(source, tmp_path / "folder", params)
    with pytest.raises(InvalidParameter, match="a folder would be written"):
        convert(source, target, ConvertParams(to="safetensors", force=True))
    assert target.read_bytes() == b"precious"
    convert(source, target, ConvertParams(force=True))
    assert target.read_bytes()[:4] == b"GGUF"


MEMORY = """
import resource, sys
from edgellm.converters import ConvertParams, convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], ConvertParams(quant=sys.argv[3], to=sys.argv[4], verify=False))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages that were read leave memory at once on Linux")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A source of 240 MB, chunks of 32 MB in some copies, and 170 MB of memory: ru_maxrss is in KiB."""
    config = {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1}
    rng = np.random.default_rng(0)
    block = rng.standard_normal((64, 8192)).astype(np.float32) / 64
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(source, config)
    shapes = {
        name: array.shape for name, array in checkpoint({**config, "hidden_size": 64, "intermediate_size": 128}).items()
    }
    scaled = {64: 2048, 128: 8192, 32: 1024, 271: 271}
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        tensors[name] = np.resize(block, tuple(scaled[size] for size in shape))
    write_weights(source / "model.safetensors", tensors, "F32")
    assert (source / "model.safetensors").stat().st_size > 230e6
    for quant, to, start in (
        ("keep", "gguf", source),
        ("q8_0", "gguf", source),
        ("f32", "safetensors", tmp_path / "keep"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(start), str(tmp_path / quant), quant, to],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        grown, child = map(int, done.stdout.split())
        assert grown < 170_000
        assert child < 200_000


def test_a_real_model_there_and_back(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 (Q4_1 and Q8_0) as a folder of f32 and as a GGUF file again: the `gguf` package's numbers."""
    folder = convert(smollm2, tmp_path / "folder", ConvertParams(to="safetensors", verify=False))
    assert folder.plan.recipe == "f32"
    back = convert(tmp_path / "folder", tmp_path / "back.gguf", ConvertParams(verify=False))
    expected, found = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (smollm2, back.path))
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].tensor_type.name == "F32"
        if name == "token_embd.weight" or name.startswith(("blk.0.", "blk.17.", "blk.29.")):  # of 30 layers
            numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(found[name].data.reshape(numbers.shape), numbers, name)
    with GGUFFile.open(smollm2) as one, GGUFFile.open(back.path) as other:
        ours, theirs = read_gguf(other), read_gguf(one)
        assert (ours.tokens, ours.merges, ours.pre) == (theirs.tokens, theirs.merges, theirs.pre)
        assert (ours.special, ours.chat_templates) == (theirs.special, theirs.chat_templates)
        llama = {key: one.metadata[key] for key in one.metadata if key.startswith("llama.")}
        assert {key: other.metadata[key] for key in llama} == llama
