"""`edgellm convert` on tiny random models."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hf_models import UNALIGNED, folder_of
from peft_folders import adapter_of, lora
from tiny_models import tiny

from edgellm.cli import main
from edgellm.cli.convert import convert as command
from edgellm.converters import ConvertParams, Planned, plan
from edgellm.converters.groups import groups
from edgellm.errors import InvalidParameter, ModelNotFound, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile

WARNED = [
    (GGMLType.Q8_0, {"quant": "q4_k_m"}, ["quantized a second time (Q8_0 to Q4_K"]),
    (GGMLType.Q4_0, {"quant": "q8_0"}, ["quantized a second time (Q4_0 to Q8_0)", "and no better: leave its types"]),
    (GGMLType.Q4_0, {"quant": "f16"}, ["and no better: leave its types"]),
    (GGMLType.F16, {"quant": "f32"}, ["larger than the source"]),
    (GGMLType.Q4_0, {"to": "safetensors"}, ["only floats are written there; `--quant f16` halves it"]),
    (GGMLType.Q4_0, {"to": "onnx"}, ["onnx has no type as small"]),
    (GGMLType.Q4_0, {"to": "onnx", "quant": "int8"}, ["quantized a second time (Q4_0 to INT8", "larger than"]),
    (GGMLType.F32, {"quant": "q4_k_m"}, []),
    (GGMLType.Q8_0, {}, []),
]


def call(*arguments: str | Path, verbose: bool = False) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], obj={"verbose": verbose})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "source", UNALIGNED)


def test_the_path_is_the_answer_and_the_rest_goes_to_stderr(source: Path, tmp_path: Path) -> None:
    result = call(source, "-o", tmp_path / "model.gguf", "--quant", "Q4_K_M")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'model.gguf'}\n"
    lines = result.stderr.splitlines()
    assert lines[:4] == ["converting", "verifying", "writing a temporary exact file to measure with", "measuring"]
    assert lines[4].startswith("fallbacks: ")
    assert lines[4].endswith("the first is token_embd.weight, Q5_0 instead of Q4_K")
    assert lines[5].startswith("q4_k_m: ")
    assert " bits per weight, in " in lines[5]
    assert lines[6].startswith("verified: ")
    assert lines[6].endswith(" predictions; it runs")


def test_adapters(source: Path, tmp_path: Path) -> None:
    """Repeated, with a scale or without; the plan has a row for what they change; a folder may be called NAME=1."""
    one = adapter_of(tmp_path / "one", lora("model.layers.0.self_attn.q_proj", 288, 288))
    two = adapter_of(tmp_path / "two=2", lora("model.layers.1.mlp.up_proj", 768, 288))
    told = call(source, "--adapter", f"{one}=0.5", "--adapter", two, "--quant", "q4_k_m", "--dry-run").stdout
    assert re.search(r"^blk\.0\.attn_q\.weight +288×288 +BF16\+adapter→Q5_0", told, re.MULTILINE)
    assert "adapter one: changes 1 tensor, 0.5 times as strong" in told
    assert "adapter two=2: changes 1 tensor\n" in told
    made = call(source, "-o", tmp_path / "model.gguf", "--adapter", f"{one}=-1", "--adapter", f"{two}=1e-1")
    assert made.exit_code == 0, made.stderr
    assert "note: adapter one: changes 1 tensor, -1 times as strong\n" in made.stderr
    refused = call(source, "--dry-run", "--adapter", f"{one}=much")
    assert refused.exit_code == 2
    assert "behind = a number is expected, as in FOLDER=0.5" in refused.stderr
    exported = call(tiny("llama").write(tmp_path / "tiny.gguf"), "--dry-run", "--adapter", one)
    assert isinstance(exported.exception, Unsupported)


def test_json(source: Path, tmp_path: Path) -> None:
    told = json.loads(call(source, "-o", tmp_path / "model.gguf", "--json").stdout)
    assert told["path"] == str(tmp_path / "model.gguf")
    assert told["verified"]["grade"] == "lossless"
    assert told["plan"]["file_bytes"] == (tmp_path / "model.gguf").stat().st_size
    again = json.loads(call(source, "-o", tmp_path / "other.gguf", "--json", "--no-verify").stdout)
    assert again["verified"] is None


def test_dry_run_prints_a_row_for_each_kind_of_tensor(source: Path, tmp_path: Path) -> None:
    """A kind is split where layers become different types; the rows tell every tensor and every byte."""
    planned = plan(source, ConvertParams(quant="q4_k_m"))
    found = groups(planned.tensors)
    assert ("blk.{0-2}.attn_q.weight", "Q5_0", 3 * 57_024) in [(name, one.target, n) for name, one, n in found]
    split = {name: one.target for name, one, _ in found if "ffn_down" in name}
    assert split == {"blk.{0-1}.ffn_down.weight": "Q4_K", "blk.2.ffn_down.weight": "Q6_K"}
    assert sum(nbytes for _, _, nbytes in found) == planned.tensor_bytes
    assert sum(_members(name) for name, _, _ in found) == len(planned.tensors)
    lines = call(source, "--quant", "q4_k_m", "--dry-run").stdout.split("\n\n")[0].splitlines()
    assert len(lines) - 1 == len(found) < len(planned.tensors) / 2
    assert lines[1].split() == ["token_embd.weight", "271×288", "BF16→Q5_0", "53.7", "kB", "lossy*"]


def _members(name: str) -> int:
    count = 1
    for listed in re.findall(r"\{(.*?)\}", name):
        ends = [part.split("-") for part in listed.split(",")]
        count *= sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
    return count


def test_experts_of_layers_are_one_kind() -> None:
    made = [
        Planned(f"model.layers.{i}.experts.{j}.w1.weight", (2, 2), "F32", "F16", 8, False)
        for i in range(12)
        for j in range(3)
    ]
    assert [(name, nbytes) for name, _, nbytes in groups(made)] == [
        ("model.layers.{0-11}.experts.{0-2}.w1.weight", 288)
    ]


@pytest.mark.parametrize(("source_type", "params", "words"), WARNED)
def test_what_is_hardly_meant_is_warned_of(
    source_type: GGMLType, params: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    source = tiny(weights=source_type, hidden=256).write(tmp_path / "source.gguf")
    found = plan(source, ConvertParams(**params)).warnings  # type: ignore[arg-type]
    assert [word in text for word, text in zip(words, found, strict=True)] == [True] * len(words)
    options = [part for name, value in params.items() for part in (f"--{name}", value)]
    told = call(source, *options, "--dry-run").stdout
    assert told.count("warning") == len(words)
    done = call(source, *options, "--no-verify", "-o", tmp_path / "out")
    assert done.stderr.count("warning: ") == len(words)


def test_verbose_prints_every_tensor_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    result = call(source, "--quant", "q4_k_m", "--dry-run", verbose=True)
    assert result.exit_code == 0
    assert result.stderr == ""
    table, facts = result.stdout.split("\n\n")
    rows = {line.split()[0]: line.split(maxsplit=5)[1:] for line in table.splitlines()}
    assert rows["blk.0.attn_q.weight"] == ["288×288", "BF16", "Q5_0", "57,024", "lossy*"]
    assert rows["blk.0.attn_norm.weight"] == ["288", "BF16", "F32", "1,152", "exact"]
    told = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert told["recipe"] == "q4_k_m"
    assert told["fallbacks"].endswith("; --strict refuses them")
    assert "to run it with 128 tokens of context" in told["memory"]
    planned = json.loads(call(source, "--quant", "q4_k_m", "--dry-run", "--json").stdout)
    assert planned["fallbacks"] == int(told["fallbacks"].split()[0])
    assert len(planned["tensors"]) == len(rows) - 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_to_safetensors_and_a_size(source: Path, tmp_path: Path) -> None:
    assert call(source, "-o", tmp_path / "fit.gguf", "--fit", "2.2MB", "--for", "cpu").exit_code == 0
    assert (tmp_path / "fit.gguf").stat().st_size <= 2_200_000
    with GGUFFile.open(tmp_path / "fit.gguf") as file:
        assert file.metadata["edgellm.convert.target"] == "fit 2200000"
    result = call(tmp_path / "fit.gguf", "-o", tmp_path / "back", "--to", "safetensors", "--quant", "f16")
    assert result.exit_code == 0, result.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "back").iterdir()
    }


def test_to_onnx(source: Path, tmp_path: Path) -> None:
    result = call(source, "-o", tmp_path / "folder", "--to", "onnx", "--quant", "INT4", "--max-context", "64")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'folder'}\n"
    lines = result.stderr.splitlines()
    assert lines[:4] == ["converting", "verifying", "writing a temporary exact file to measure with", "measuring"]
    assert lines[4].startswith("note: products round")
    assert lines[5].startswith("int4: ")
    assert lines[6].endswith(" predictions; it runs")
    assert (tmp_path / "folder" / "onnx" / "model_q4.onnx").is_file()
    told = json.loads(call(tmp_path / "folder", "-o", tmp_path / "a.gguf", "--json").stdout)
    assert (told["plan"]["source_format"], told["plan"]["format"]) == ("onnx", "gguf")
    exact = call(source, "-o", tmp_path / "exact", "--to", "onnx", "--quant", "int8", "--exact", "--json")
    told = json.loads(exact.stdout)
    files = (path for path in (tmp_path / "exact").rglob("*") if path.is_file())
    assert told["plan"]["file_bytes"] == sum(path.stat().st_size for path in files)
    assert told["plan"]["notes"] == []


def test_the_plan_of_a_folder(source: Path, tmp_path: Path) -> None:
    result = call(source, "--to", "onnx", "--quant", "int4_64", "--dry-run", verbose=True)
    assert result.exit_code == 0, result.stderr
    table, facts = result.stdout.split("\n\n")
    rows = {line.split()[0]: line.split(maxsplit=5)[1:] for line in table.splitlines()}
    fallback = ["288×288", "BF16", "INT4/32+zp", "53,280", "lossy*"]
    assert rows["blk.0.attn_q.weight"] == fallback
    assert rows["blk.0.ffn_down.weight"][2:] == ["INT4/64+zp", "126,144", "lossy"]
    told = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert told["recipe"] == "int4_64"
    assert told["fallbacks"].endswith("; --strict refuses them")
    guessed = call(source, "--to", "onnx", "--exporter", "optimum", "--dry-run", "--json")
    assert "optimum decides" in json.loads(guessed.stdout)["notes"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_errors(source: Path, tmp_path: Path) -> None:
    assert isinstance(call(source, "--quant", "q4_k_m", "--strict", "--dry-run").exception, Unsupported)
    assert isinstance(call(tmp_path / "nothing.gguf", "-o", tmp_path / "a.gguf").exception, ModelNotFound)
    (tmp_path / "a.gguf").touch()
    assert isinstance(call(source, "-o", tmp_path / "a.gguf").exception, InvalidParameter)
    assert isinstance(call(source, "-o", tmp_path / "b.gguf", "--quant", "q9").exception, InvalidParameter)
    for options in (("--exact",), ("--to", "onnx", "--quant", "q4_0"), ("--exporter", "optimum")):
        assert isinstance(call(source, "-o", tmp_path / "b.gguf", *options).exception, InvalidParameter)
    nowhere = call(source)
    assert nowhere.exit_code == 2
    assert "-o DST" in nowhere.stderr
    assert call(source, "-o", tmp_path / "a.gguf", "--force").exit_code == 0


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny()
    made.metadata["general.type"] = "adapter"
    path = made.write(tmp_path / "adapter.gguf")
    with pytest.raises(SystemExit) as leaving:
        main(["convert", str(path), "-o", str(tmp_path / "a.gguf")])
    assert leaving.value.code == 1
    assert capsys.readouterr().err.startswith("edgellm: ")


def test_ctrl_c_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgellm.converters.verify.compare", stop)
    result = call(source, "-o", tmp_path / "model.gguf")
    assert result.exit_code != 0
    assert "stopped; nothing was left behind" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


KILLED = """
import sys, time
import edgellm.converters
from edgellm.cli import main

def wait(*_):
    print("begun", flush=True)
    time.sleep(60)

sys.modules["edgellm.converters.convert"].check_space = wait
main(["convert", sys.argv[1], "-o", sys.argv[2]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and locks")
def test_what_is_left_when_a_conversion_is_killed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()

    def begun() -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", KILLED, source, folder / "a.gguf"]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        return child

    def ended(child: subprocess.Popen[bytes], number: signal.Signals) -> bytes:
        child.send_signal(number)
        return child.communicate(timeout=60)[1]

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:  # and so it is for children
            continue
        child = begun()
        assert ended(child, number) == b"stopped; nothing was left behind\n"
        assert child.returncode == 128 + number
        assert list(folder.iterdir()) == []
    killed = begun()
    ended(killed, signal.SIGKILL)
    [left] = folder.iterdir()
    other = folder / ".b.gguf.aaaaaaaa.part"  # of another target
    other.mkdir()
    living = begun()
    try:
        assert not left.exists()
        assert call(source, "-o", folder / "a.gguf").exit_code == 0
        assert len(list(folder.glob(".a.gguf.*.part"))) == 1  # that of the one that lives
    finally:
        ended(living, signal.SIGTERM)
    assert {path.name for path in folder.iterdir()} == {"a.gguf", other.name}
