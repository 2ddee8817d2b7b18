"""edgellm's own engine as a backend: which files it runs and why not, what sequences share, damaged files."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backend_cases import feed, fresh, prompt
from tiny_models import Tiny, tiny

import edgellm
from edgellm.backends import native, open_backend
from edgellm.backends.base import Step
from edgellm.backends.native import checks
from edgellm.backends.native.backend import NativeBackend
from edgellm.errors import Busy, EdgeLLMError, InvalidModelFile, NotEnoughMemory, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.kv.blocks import root_key
from edgellm.kv.memory import MemoryTier
from edgellm.kv.prefixes import PUBLIC, PrefixCache
from edgellm.kv.store import BlockStore
from edgellm.machine import Memory
from edgellm.params import LoadParams

NATIVE = LoadParams(backend="native", ctx=256, micro_batch=64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama").write(tmp_path_factory.mktemp("native") / "llama.gguf")


@pytest.fixture
def backend(llama: Path) -> Iterator[NativeBackend]:
    opened = open_backend(llama, NATIVE)
    assert isinstance(opened, NativeBackend)
    yield opened
    opened.close()


def why(model: Tiny, folder: Path, **options: object) -> str | None:
    with GGUFFile.open(model.write(folder / "model.gguf")) as file:
        return native.why_not(file, LoadParams(**options))  # type: ignore[arg-type]


# Which files


def test_it_says_why_it_does_not_run_a_file(tmp_path: Path) -> None:
    assert why(tiny("llama"), tmp_path) is None
    assert "'mamba'" in str(why(tiny("mamba"), tmp_path))
    assert why(tiny("mixtral"), tmp_path) is None
    more = tiny("qwen3moe")
    more.metadata["qwen3moe.expert_used_count"] = 5
    assert "5 of 4 experts" in str(why(more, tmp_path))
    assert "MXFP4" in str(why(tiny("llama", weights=GGMLType.MXFP4), tmp_path))
    assert "heads of 24" in str(why(tiny("llama", hidden=96), tmp_path))
    embeds = tiny("qwen3")
    embeds.metadata["qwen3.pooling_type"] = 3
    assert "vectors" in str(why(embeds, tmp_path))
    lora = tiny("llama")
    lora.tensors["blk.0.attn_q.weight.lora_a"] = ((8, 64), GGMLType.F32, np.zeros((8, 64), np.float32))
    assert "lora_a" in str(why(lora, tmp_path))
    scaled = tiny("gemma2")
    scaled.metadata["gemma2.rope.scaling.type"] = "yarn"
    scaled.metadata["gemma2.rope.scaling.factor"] = 2.0
    assert "yarn" in str(why(scaled, tmp_path))


def test_it_leaves_what_was_asked_for_to_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu_layers is 3" in str(why(tiny("llama"), tmp_path, gpu_layers=3))
    assert "flash_attention" in str(why(tiny("llama"), tmp_path, flash_attention=True))
    assert why(tiny("llama"), tmp_path, gpu_layers=0) is None
    monkeypatch.setattr(checks, "_gpu", lambda: True)
    assert "GPU" in str(why(tiny("llama"), tmp_path))
    assert why(tiny("llama"), tmp_path, gpu_layers=0) is None
    monkeypatch.setattr(checks, "kernel_sets", lambda: ["scalar"])
    assert "instructions of this processor" in str(why(tiny("llama"), tmp_path, gpu_layers=0))


def test_auto_takes_it_where_it_runs_a_file(llama: Path, tmp_path: Path) -> None:
    other = tiny("mamba").write(tmp_path / "other.gguf")
    for path, engine, reason in ((llama, "native", "all that it needs"), (other, "llamacpp", "'mamba'")):
        with edgellm.load(path, ctx=64) as model:
            assert (model.backend, model.info.engine) == (engine, engine)
            assert reason in model.info.engine_reason
        seen = edgellm.inspect(path)
        assert (seen.engine, seen.engine_reason) == (engine, model.info.engine_reason)
    with pytest.raises(Unsupported, match="does not run it: it does not know 'mamba'"):
        edgellm.load(other, backend="native")


def test_state_of_one_engine_is_none_of_another(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    tokens = prompt(100)
    keys = set()
    for params in (
        NATIVE,
        LoadParams(backend="llamacpp", ctx=256),
        LoadParams(backend="native", kv_type="f32", ctx=256),
    ):
        with edgellm.load(llama, params) as model:
            keys.add(model._engine.backend.state_key)
            assert model.generate(tokens, max_tokens=1).usage.cached_tokens == 0
            assert model.generate(tokens, max_tokens=1).usage.cached_tokens > 90
    assert len(keys) == 3
    with edgellm.load(llama, NATIVE) as model:
        assert model.generate(tokens, max_tokens=1).usage.cached_tokens > 90


def test_matrices_are_not_looked_at_through_the_map(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    data = GGUFFile.data
    monkeypatch.setattr(GGUFFile, "data", lambda file, name: seen.append(name) or data(file, name))
    open_backend(llama, NATIVE).close()
    with GGUFFile.open(llama) as file:
        assert seen
        assert all(len(file.tensors[name].shape) == 1 for name in seen)


def test_loading_reports_and_can_be_stopped(llama: Path) -> None:
    shares: list[float] = []
    open_backend(llama, NATIVE, shares.append).close()
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert shares == sorted(shares)

    def stop(share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_backend(llama, NATIVE, stop)


# Memory


def test_a_long_context_needs_no_memory_for_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    model.metadata["llama.context_length"] = 1 << 15
    path = model.write(tmp_path / "long.gguf")
    available = path.stat().st_size + (1 << 15) * edgellm.inspect(path).kv_bytes_per_token + (64 << 20)
    monkeypatch.setattr("edgellm.machine.memory", lambda: Memory(total=1 << 40, available=available, limit=None))
    with edgellm.load(path, ctx=1 << 15, backend="native") as opened:
        assert opened.n_ctx == 1 << 15
    with edgellm.load(path, ctx=1 << 15, backend="llamacpp") as opened:
        assert opened.n_ctx < 1 << 14


def test_a_closed_model_holds_no_pages(llama: Path) -> None:
    opened = open_backend(llama, NATIVE)
    assert isinstance(opened, NativeBackend)
    feed(opened, opened.new_sequence(), prompt(100))
    pages = opened.pool.pages
    opened.close()
    assert pages.used == 0
    assert sys.getrefcount(pages) <= 2  # here, and what counts


# Pages


def test_forks_take_the_pages_of_their_own_tokens(backend: NativeBackend) -> None:
    pages = backend.pool.pages
    first = backend.new_sequence()
    feed(backend, first, prompt(100))
    assert pages.used == 4
    forks = [first.fork() for _ in range(5)]
    assert pages.used == 4
    rows = [feed(backend, fork, [7 + at]) for at, fork in enumerate(forks)]
    assert pages.used == 4 + 5
    assert np.array_equal(rows[2], fresh(backend, [*prompt(100), 9]))
    for sequence in (first, *forks):
        sequence.close()
    assert pages.used == 0


def test_pages_that_are_used_up_are_busy(llama: Path) -> None:
    opened = open_backend(llama, LoadParams(backend="native", ctx=256, max_sequences=8, micro_batch=256))
    assert isinstance(opened, NativeBackend)
    opened.pool.pages = type(opened.pool.pages)(2, 2, 16, "int16", 10)
    first, second = opened.new_sequence(), opened.new_sequence()
    feed(opened, first, prompt(250))
    with pytest.raises(Busy, match="10 pages"):
        opened.forward([Step(second, prompt(90), "last")])
    assert (first.length, second.length) == (250, 0)
    block = first.save(0, 96)
    with pytest.raises(Busy):
        second.load([block])
    assert second.length == 0
    assert first.truncate(100)
    assert np.array_equal(feed(opened, second, prompt(90)), fresh(opened, prompt(90)))
    opened.close()


def test_state_is_read_from_files_up_to_a_damaged_one(tmp_path: Path) -> None:
    model = tiny("llama")
    model.metadata["llama.context_length"] = 2048
    opened = open_backend(model.write(tmp_path / "model.gguf"), LoadParams(backend="native", ctx=2048))
    known = PrefixCache(root_key("model"), MemoryTier(1 << 30), BlockStore(tmp_path / "kv"), label="llama")
    assert known.store is not None
    texts = prompt(1000), [*prompt(600), *([5] * 700)]  # the second leaves the first in the middle of a block
    states = []
    for tokens in texts:
        sequence = opened.new_sequence()
        feed(opened, sequence, tokens)
        known.park(tokens, sequence, "words", owner=PUBLIC)
        states.append([bytes(sequence.save(0, length)) for length in (600, len(tokens) - 10)])
        sequence.close()
    assert known.store.flush(30)
    in_memory = [known.memory.read(hit.block.key) for hit in known.match(texts[1]).hits]
    known.memory.clear()
    for tokens, (_begin, state) in zip(texts, states, strict=True):
        sequence, match = opened.new_sequence(), known.match(tokens)
        assert known.load(match, len(tokens) - 10, sequence)
        assert sequence.save(0, sequence.length) == state
        assert known.beyond_memory(match)[0] == (0, 256)  # what a file holds takes no memory
        sequence.close()
    sequence, match = opened.new_sequence(), known.match(texts[1])
    assert [hit.taken for hit in match.hits] == [256, 256, 88, 256, 256, 188]
    for at in (1, 2, 5):
        payload = in_memory[at]
        assert payload is not None
        known.memory.write(match.hits[at].block, payload)
    assert known.load(match, 1290, sequence)
    assert sequence.save(0, 1290) == states[1][1]
    sequence.truncate(0)
    damaged = match.hits[3].block.key
    file = tmp_path / "kv" / damaged.hex()[:2] / f"{damaged.hex()}.kv"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert not known.load(match, 1290, sequence)
    assert sequence.save(0, sequence.length) == states[1][0]
    assert known.store.rejected == [(damaged, "the payload's checksum is wrong")]
    known.close()
    opened.close()


def test_a_pass_that_is_interrupted_changes_nothing(backend: NativeBackend) -> None:
    sequence = backend.new_sequence()
    expected = fresh(backend, prompt(40))
    feed(backend, sequence, prompt(20))
    backend.interrupt()
    with pytest.raises(edgellm.errors.Interrupted):
        backend.forward([Step(sequence, prompt(40)[20:], "last")])
    assert sequence.length == 20
    assert np.array_equal(feed(backend, sequence, prompt(40)[20:]), expected)
    sequence.close()


def test_a_pass_without_memory_is_told_as_such(backend: NativeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def forward(self, *_: object) -> None:
            raise MemoryError

    sequence = backend.new_sequence()
    monkeypatch.setattr(backend, "_model", Model())
    with pytest.raises(NotEnoughMemory, match="for a pass"):
        backend.forward([Step(sequence, [5], "last")])
    assert sequence.length == 0


# Damage


@pytest.mark.skipif(os.name == "nt", reason="Windows cuts no file that is mapped")
def test_a_file_that_is_cut_meanwhile_is_an_error(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(llama, tmp_path))

    def cut(share: float) -> None:
        if share > 0.3:
            os.truncate(path, 4096)

    with pytest.raises(InvalidModelFile, match=r"the file ends at byte|was cut to 4096"):
        open_backend(path, NATIVE, cut)


def test_truncated_files_are_typed_errors(llama: Path, tmp_path: Path) -> None:
    whole = llama.read_bytes()
    for size in (0, 3, 24, 1000, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "short.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidModelFile):
            open_backend(path, NATIVE)


@pytest.mark.parametrize(
    "kind", [GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.F16], ids=lambda kind: kind.name
)
def test_scales_that_are_no_numbers_are_an_error(kind: GGMLType, tmp_path: Path) -> None:
    model = tiny("llama", hidden=256, weights=kind)
    name = "blk.1.ffn_down.weight"
    shape, stored, data = model.tensors[name]
    raw = np.array(data).view(np.uint8).reshape(-1).copy()
    raw[:2] = [0, 0x7E]  # NaN: the scale of the first block, or its first number
    model.tensors[name] = (shape, stored, raw)
    path = model.write(tmp_path / "nan.gguf")
    with pytest.raises(InvalidModelFile, match=r"blk\.1\.ffn_down\.weight"):
        open_backend(path, LoadParams(backend="native", trust=True))


@pytest.mark.parametrize("name", ["ffn_gate_inp", "ffn_up_exps"])
def test_experts_that_are_no_numbers_are_an_error(name: str, tmp_path: Path) -> None:
    model = tiny("qwen3moe")
    np.ravel(model.tensors[f"blk.1.{name}.weight"][2])[-1] = np.nan
    with pytest.raises(InvalidModelFile, match=rf"blk\.1\.{name}"):
        open_backend(model.write(tmp_path / "nan.gguf"), LoadParams(backend="native", trust=True))


def test_norms_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    model = tiny("llama")
    model.tensors["blk.0.ffn_norm.weight"][2][3] = np.inf
    with pytest.raises(InvalidModelFile, match="ffn_norm"):
        open_backend(model.write(tmp_path / "inf.gguf"), LoadParams(backend="native", trust=True))


def test_lying_headers_are_typed_errors(tmp_path: Path) -> None:
    """Every number of the header wrong in turn: a typed error, or a model that computes."""
    whole, real = [0, 1, 2, 3, 7, 17, 2**16, 2**31 - 1, 2**32 - 1], [0.0, -1.0, 1e-30, 1e30, np.nan, np.inf]
    ran = 0
    for arch in ("llama", "gemma3", "phi3", "granite", "qwen3moe", "gpt2"):
        usual = tiny(arch).metadata
        for key in [key for key in usual if key.startswith(f"{arch}.")]:
            for value in whole if isinstance(usual[key], int) else real:
                model = tiny(arch)
                model.metadata[key] = value
                try:
                    opened = open_backend(model.write(tmp_path / "lie.gguf"), replace(NATIVE, trust=True))
                except EdgeLLMError:
                    continue
                assert fresh(opened, [5]).shape == (opened.info.n_vocab,)
                opened.close()
                ran += 1
    assert ran > 10


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_tensors_of_another_shape_are_typed_errors(family: str, tmp_path: Path) -> None:
    for name in tiny(family).tensors:
        model = tiny(family)
        shape, kind, data = model.tensors[name]
        smaller = (shape[0] // 2, *shape[1:])
        for changed in (smaller, shape[::-1] if shape[0] != shape[-1] else smaller):
            model.tensors[name] = (changed, kind, np.ravel(data)[: np.prod(changed)])
            with pytest.raises(EdgeLLMError):
                open_backend(model.write(tmp_path / "shape.gguf"), replace(NATIVE, trust=True))
        del model.tensors[name]
        if name != "output.weight":  # without which the output is the embedding
            with pytest.raises(EdgeLLMError):
                open_backend(model.write(tmp_path / "missing.gguf"), replace(NATIVE, trust=True))
