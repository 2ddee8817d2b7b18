"""Adapters that requests name, on llama.cpp: each has the answers and the state of its own."""

from __future__ import annotations

import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS
from click.testing import CliRunner
from hf_models import folder_of
from numpy.typing import NDArray
from peft_folders import Arrays, adapter_of, lora
from serving import running

import edgellm
from edgellm.backends.base import Step
from edgellm.cli import cli
from edgellm.converters import ConvertParams, convert
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import write_gguf

TOKENS = np.random.default_rng(3).integers(3, 271, 40).tolist()
MODULES: dict[str, dict[str, tuple[int, int]]] = {
    "llama": {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.down_proj": (64, 96)},
    "qwen3": {"self_attn.q_proj": (128, 64), "self_attn.o_proj": (64, 128), "mlp.up_proj": (96, 64)},
    "phi3": {"self_attn.qkv_proj": (128, 64), "mlp.gate_up_proj": (192, 64)},
    "gpt2": {"attn.c_attn": (192, 64), "mlp.c_proj": (64, 256)},
}


def _adapter(name: str, folder: Path, seed: int = 0, **options: Any) -> Path:
    layers = "transformer.h" if name == "gpt2" else "model.layers"
    parts: Arrays = {}
    for i in range(2):
        for module, shape in MODULES[name].items():
            parts |= lora(f"{layers}.{i}.{module}", *shape, seed=seed)
    return adapter_of(folder, parts, **options)


def _logits(model: edgellm.Model, adapter: str = "") -> NDArray[np.float32]:
    def run(backend: Any) -> NDArray[np.float32]:
        sequence = backend.new_sequence()
        sequence.adapter = adapter
        rows = np.array(backend.forward([Step(sequence, TOKENS, "all")])[0])
        sequence.close()
        return rows

    return model._engine.call(run)


@pytest.mark.parametrize("name", MODULES)
def test_logits_are_those_of_the_merged_model(name: str, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", name, dtype="F32")
    adapter = _adapter(name, tmp_path / "own", use_rslora=True, alpha_pattern={"mlp.*": 3})
    plain = convert(base, tmp_path / "plain.gguf", ConvertParams(verify=False)).path
    merged = convert(base, tmp_path / "merged.gguf", ConvertParams(adapters=[(adapter, 0.5)], verify=False)).path
    with edgellm.load(merged, kv_type="f32", backend="llamacpp") as model:
        expected = _logits(model)
    with edgellm.load(plain, kv_type="f32", adapters=[(adapter, 0.5)]) as model:
        assert model.backend == "llamacpp"
        without = _logits(model)
        np.testing.assert_allclose(_logits(model, "own"), expected, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(_logits(model), without)
        assert np.abs(expected - without).max() > 0.05


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("adapters")
    base = folder_of(folder / "base", {**CONFIGS["llama"], "max_position_embeddings": 1024}, dtype="F32")
    path = convert(base, folder / "model.gguf", ConvertParams(verify=False)).path
    return path, [_adapter("llama", folder / name, seed) for seed, name in enumerate(("one", "two", "three"))]


def _answer(model: edgellm.Model, prompt: list[int], adapter: str | None, **options: Any) -> edgellm.Completion:
    return model.generate(prompt, adapter=adapter, max_tokens=8, temperature=0, ignore_eos=True, **options)


def test_a_thousand_switches_under_load(three: tuple[Path, list[Path]]) -> None:
    """Each request has the answer of its adapter, whatever runs beside it and whatever is known of its prompt."""
    path, adapters = three
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 271) for _ in range(rng.randrange(9, 90))] for _ in range(12)]
    prompts += [[*prompts[0], 5, 6, 7], [*prompts[1][:8], 9, 9, 9]]
    names = [None, "one", "two", "three"]
    with edgellm.load(path, adapters=adapters, ctx=512) as model:
        alone = {(i, n): _answer(model, p, n, cache=False).tokens for i, p in enumerate(prompts) for n in names}
        assert len({tuple(alone[0, name]) for name in names}) == 4
        jobs = [(rng.randrange(len(prompts)), rng.choice(names)) for _ in range(1000)]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda job: _answer(model, prompts[job[0]], job[1]).tokens, jobs))
        wrong = [job for job, answer in zip(jobs, answers, strict=True) if answer != alone[job]]
        assert wrong == []


def test_state_is_never_reused_across_adapters(
    three: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, adapters = three
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    prompt = [random.Random(2).randrange(3, 271) for _ in range(300)]

    def reused(model: edgellm.Model, name: str | None) -> int:
        report = _answer(model, prompt, name).cache
        return len(prompt) - report.computed

    with edgellm.load(path, adapters=adapters[:2], ctx=512) as model:
        for name in (None, "one", "two"):
            assert reused(model, name) == 0
        for name in ("two", None, "one"):
            assert reused(model, name) > 250
    other = {"one": adapters[1], "two": (adapters[0], 0.5), "three": adapters[2]}
    with edgellm.load(path, adapters=other, ctx=512) as model:
        assert reused(model, "one") > 250  # from disk: it was "two"
        assert reused(model, None) > 250
        assert reused(model, "two") == 0  # of another strength
        assert reused(model, "three") == 0


def test_gguf_adapters(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    path, _ = three
    a, b = lora("x", 96, 64).values()

    def written(name: str, tensors: dict[str, NDArray[np.float32]], **other: Any) -> Path:
        metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
        metadata |= {"adapter.lora.alpha": np.float32(10), **{k.replace("__", "."): v for k, v in other.items()}}
        listed = [(n, v.shape, GGMLType.F32, np.ascontiguousarray(v)) for n, v in tensors.items()]
        write_gguf(tmp_path / name, metadata, listed)
        return tmp_path / name

    good = {"blk.0.ffn_up.weight.lora_a": a, "blk.0.ffn_up.weight.lora_b": b}
    peft = adapter_of(
        tmp_path / "peft", {f"model.layers.0.mlp.up_proj.lora_{k}.weight": v for k, v in (("A", a), ("B", b))}
    )
    with edgellm.load(path, adapters=[written("good.gguf", good), peft], kv_type="f32") as model:
        np.testing.assert_array_equal(_logits(model, "good"), _logits(model, "peft"))
        with pytest.raises(InvalidParameter, match=r"adapter 'bad' is not loaded with .*; there are: good, peft"):
            _answer(model, TOKENS, "bad")
    halves = [(n, v.shape, GGMLType.BF16, (v.view(np.uint32) >> 16).astype(np.uint16)) for n, v in good.items()]
    head = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(tmp_path / "half.gguf", {**head, "adapter.lora.alpha": np.float32(10)}, halves)
    with edgellm.load(path, adapters=[tmp_path / "half.gguf", peft], kv_type="f32") as model:
        np.testing.assert_allclose(_logits(model, "half"), _logits(model, "peft"), rtol=0, atol=0.05)
        assert np.abs(_logits(model, "half") - _logits(model)).max() > 0.05
    for bad, kind, told in (
        (written("a.gguf", good, general__architecture="qwen2"), Unsupported, "of the architecture 'qwen2'"),
        (written("b.gguf", good, adapter__type="ia3"), Unsupported, "no LoRA adapter"),
        (written("h.gguf", good, adapter__alora__invocation_tokens=[1, 2]), Unsupported, "is not done here"),
        (written("c.gguf", {"blk.0.ffn_up.weight.lora_a": a}), InvalidModelFile, "one matrix of two"),
        (
            written("d.gguf", {**good, "blk.9.x.weight.lora_a": a, "blk.9.x.weight.lora_b": b}),
            Unsupported,
            "does not do",
        ),
        (written("e.gguf", {**good, "other": a}), Unsupported, "is none of a LoRA adapter"),
        (written("f.gguf", {k: v.T for k, v in good.items()}), InvalidModelFile, "it is another model's"),
        (written("g.gguf", {k: v * np.nan for k, v in good.items()}), InvalidModelFile, "infinite or NaN"),
    ):
        with pytest.raises(kind) as caught:
            edgellm.load(path, adapters=[bad])
        assert told in str(caught.value)
        assert str(bad) in str(caught.value)


def test_what_is_not_applied_is_refused(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    path, adapters = three
    dora = adapter_of(tmp_path / "dora", lora("model.layers.0.mlp.up_proj", 96, 64, dora=True), use_dora=True)
    whole = adapter_of(tmp_path / "whole", {"lm_head.weight": np.zeros((271, 64), np.float32)})
    for bad in (dora, whole):
        with pytest.raises(Unsupported, match="merge it into the model"):
            edgellm.load(path, adapters=[bad])
    gpt2 = convert(folder_of(tmp_path / "gpt2", "gpt2"), tmp_path / "gpt2.gguf", ConvertParams(verify=False)).path
    metadata = {"general.architecture": "gpt2", "general.type": "adapter", "adapter.type": "lora"}
    a, b = np.ones((4, 64), np.float32), np.ones((128, 4), np.float32)
    tensors = [(f"position_embd.weight.lora_{which}", v.shape, GGMLType.F32, v) for which, v in (("a", a), ("b", b))]
    write_gguf(tmp_path / "positions.gguf", metadata | {"adapter.lora.alpha": np.float32(4)}, tensors)
    with pytest.raises(Unsupported, match=r"'position_embd\.weight', which llama"):
        edgellm.load(gpt2, adapters=[tmp_path / "positions.gguf"])
    with pytest.raises(Unsupported, match=r"adapters are llama\.cpp's"):
        edgellm.load(path, adapters=adapters, backend="native")
    with pytest.raises(InvalidParameter, match="of a name that no other one has"):
        edgellm.LoadParams(adapters=[adapters[0], adapters[0]])
    folder = convert(path, tmp_path / "onnx", ConvertParams(to="onnx", verify=False)).path
    with pytest.raises(Unsupported, match="an ONNX model takes no adapters"):
        edgellm.load(folder, adapters=adapters)


def test_a_name_of_ones_own_and_what_is_exported(three: tuple[Path, list[Path]]) -> None:
    """State that was read with an adapter is not handed out as the model's."""
    path, adapters = three
    with edgellm.load(path, adapters={"polite": adapters[0]}, ctx=512) as model:
        assert model.adapters == ("polite",)
        told = model.encode("hello world, " * 30)
        first = _answer(model, told, "polite")
        assert first.cache.from_live + first.cache.from_memory + first.cache.from_disk == 0
        again = _answer(model, told, "polite")
        assert again.tokens == first.tokens
        assert again.cache.computed < len(told) / 2
        blocks = model.export_state(told)
        assert sum(len(block.tokens) for block, _ in blocks) == 0  # read with the adapter alone


def _told(path: Path, *arguments: str | Path) -> Any:
    given = [
        "run",
        path,
        "hello",
        "--raw",
        "--json",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--no-cache",
        *arguments,
    ]
    return CliRunner().invoke(cli, list(map(str, given)))


def test_the_command_line_names_them(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """The only one is used; of several one is chosen; a request's lines choose their own."""
    path, (one, two, _) = three
    with edgellm.load(path, adapters=[one, (two, -0.5)]) as model:
        expected = {
            name: model.generate("hello", adapter=name, max_tokens=8, temperature=0, cache=False).text
            for name in (None, "one", "two")
        }
    assert len(set(expected.values())) == 3
    for arguments, name in (
        ((), None),
        (("--adapter", one), "one"),
        (("--adapter", one, "--adapter", f"{two}=-0.5", "--use-adapter", "two"), "two"),
        (("--adapter", one, "--adapter", two), None),
    ):
        done = _told(path, *arguments)
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["text"] == expected[name]
    refused = _told(path, "--adapter", one, "--use-adapter", "two")
    assert "--use-adapter two: no --adapter has this name; one" in str(refused.exception)
    lines = [{"prompt": "hello", "adapter": name, "max_tokens": 8, "temperature": 0} for name in ("one", "two")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["batch", tmp_path / "in.jsonl", "--model", path, "-o", tmp_path / "out.jsonl", "--raw", "--ordered"]
    done = CliRunner().invoke(cli, [*map(str, given), "--adapter", str(one), "--adapter", f"{two}=-0.5"])
    assert done.exit_code == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == [expected["one"], expected["two"]]


def test_requests_to_the_server_name_them(three: tuple[Path, list[Path]]) -> None:
    path, adapters = three
    with edgellm.load(path, adapters=adapters) as model:
        expected = {
            name: model.generate("hello", adapter=name, max_tokens=8, temperature=0).text for name in ("one", "two")
        }

    def ask(name: str) -> Any:
        asked = {"model": "model", "prompt": "hello", "max_tokens": 8, "temperature": 0, "adapter": name}
        body, headers = json.dumps(asked).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/completions", body, headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["choices"][0]["text"]

    with running(path, load=edgellm.LoadParams(adapters=adapters)) as server:
        for name in ("one", "two", "one"):
            assert ask(name) == expected[name]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("four")
        assert refused.value.code == 400
        assert "there are: one, two, three" in refused.value.read().decode()
