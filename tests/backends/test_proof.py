"""Trials in a child process: what crashes llama.cpp must not crash us, and what was found out is remembered."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import Tiny, tiny

from edgellm.backends.llamacpp import proof, verdicts
from edgellm.child import End
from edgellm.errors import ModelLoadError, NotEnoughMemory, UnsafeModel, UnsupportedArchitecture
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.home import home, make_folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))


def make_safe(model: Tiny, folder: Path, **options: Any) -> None:
    with GGUFFile.open(model.write(folder / "model.gguf")) as file:
        proof.make_safe(file, **{"trust": False, "extra_bufts": True, **options})


def forbid_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(proof, "Child", started)


def odd(model: Tiny) -> Tiny:
    """Outside what the check knows, and harmless."""
    model.metadata["llama.pooling_type"] = 0
    return model


def deadly(model: Tiny) -> Tiny:
    """A header that llama.cpp answers by aborting the process."""
    model.metadata["llama.rope.scaling.type"] = "nonsense"
    return model


def test_a_known_model_needs_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_children(monkeypatch)
    make_safe(tiny("llama"), tmp_path)


def test_an_odd_model_that_works_passes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with caplog.at_level("INFO", logger="edgellm.llamacpp"):
        make_safe(odd(tiny("llama")), tmp_path)
    assert "pooling_type" in caplog.text
    forbid_children(monkeypatch)
    make_safe(odd(tiny("llama")), tmp_path)
    with pytest.raises(AssertionError, match="child"):
        make_safe(odd(tiny("llama", seed=9)), tmp_path)


def test_a_crash_is_an_error_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsafeModel, match=r"SIG|abort") as caught:
        make_safe(deadly(tiny("llama")), tmp_path)
    assert "rope_scaling_type_train" in str(caught.value)  # llama.cpp's last words
    forbid_children(monkeypatch)
    with pytest.raises(UnsafeModel):
        make_safe(deadly(tiny("llama")), tmp_path)
    make_safe(deadly(tiny("llama")), tmp_path, trust=True)


def test_a_refusal_carries_the_engines_words(tmp_path: Path) -> None:
    model = tiny("llama")
    del model.tensors["blk.1.attn_k.weight"]
    with pytest.raises(ModelLoadError, match=r"blk\.1\.attn_k\.weight"):
        make_safe(model, tmp_path)
    model = tiny("llama")
    model.metadata["general.architecture"] = "nonsense"
    with pytest.raises(UnsupportedArchitecture, match="nonsense"):
        make_safe(model, tmp_path)
    assert not home(proof.VERDICTS).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the child's address space")
def test_a_file_that_eats_memory_is_stopped(tmp_path: Path) -> None:
    model = tiny("llama")
    model.metadata |= {"tokenizer.ggml.model": "no_vocab", "llama.vocab_size": (1 << 31) - 1}  # 80 GB of dummy tokens
    with pytest.raises(NotEnoughMemory, match="memory"):
        make_safe(model, tmp_path)
    assert not home(proof.VERDICTS).exists()


def test_a_child_that_hangs_is_ended_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "SECONDS", 0.01)
    with pytest.raises(UnsafeModel, match="did not finish"):
        make_safe(odd(tiny("llama")), tmp_path)
    assert not home(proof.VERDICTS).exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_the_kernels_killer_means_memory() -> None:
    with pytest.raises(NotEnoughMemory):
        proof._judge(Path("x"), None, End(-9, None, ()))
    words = ("terminate called after throwing an instance of 'std::bad_alloc'",)
    with pytest.raises(NotEnoughMemory):
        proof._judge(Path("x"), None, End(-6, None, words))


@pytest.mark.parametrize("program", ["/bin/true", "", None, "/nonexistent/python", __file__])
@pytest.mark.parametrize("bring", [odd, deadly])
def test_only_a_child_of_ours_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, bring: Any
) -> None:
    """Inside another program `sys.executable` is that program."""
    monkeypatch.setattr(sys, "executable", program)
    monkeypatch.setattr(sys, "_base_executable", program)
    monkeypatch.delitem(sys.modules, "multiprocessing.spawn", raising=False)
    if bring is odd:
        make_safe(bring(tiny("llama")), tmp_path)  # by the interpreter of this installation
    for prefix in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, prefix, str(tmp_path))
    home(proof.VERDICTS).unlink(missing_ok=True)
    with pytest.raises(UnsafeModel, match=r"set_executable.*trust=True"):
        make_safe(bring(tiny("llama")), tmp_path)
    assert not home(proof.VERDICTS).exists()
    make_safe(bring(tiny("llama")), tmp_path, trust=True)


@pytest.mark.parametrize("end", [End(0, None, ("ImportError: no module",)), End(1, None, ("ImportError: no module",))])
def test_a_child_without_an_answer_is_not_the_files_fault(end: End) -> None:
    with pytest.raises(ModelLoadError, match=r"failed by itself[^$]*no module"):
        proof._judge(Path("x"), None, end)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_memory_of_verdicts_is_replaced(tmp_path: Path, content: bytes) -> None:
    (make_folder(home()) / proof.VERDICTS).write_bytes(content)
    make_safe(tiny("llama"), tmp_path)
    assert len(json.loads(home(proof.VERDICTS).read_bytes())) == 1


def test_many_writers_leave_a_whole_file_and_nothing_else() -> None:
    threads = [threading.Thread(target=verdicts.keep, args=(proof.VERDICTS, f"key {i}", "")) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(verdicts.known(proof.VERDICTS)) <= {f"key {i}" for i in range(16)}
    assert verdicts.known(proof.VERDICTS)
    assert [path.name for path in home().iterdir()] == [proof.VERDICTS]


def test_old_verdicts_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "MOST", 3)
    for i in range(5):
        verdicts.keep(proof.VERDICTS, f"key {i}", "")
    assert list(verdicts.known(proof.VERDICTS)) == ["key 2", "key 3", "key 4"]


# Headers that end a process which loads them, or once did.
FINDINGS: list[tuple[str, str, Any]] = [
    ("llama", "llama.block_count", 0),
    ("llama", "llama.block_count", 32768),
    ("llama", "llama.attention.layer_norm_rms_epsilon", float("nan")),
    ("qwen3", "qwen3.rope.dimension_count", 1),
    ("qwen3moe", "qwen3moe.expert_used_count", 9),
    ("llama", "llama.attention.head_count_kv", 0),
    ("gemma3", "tokenizer.ggml.model", "bert"),
    ("llama", "tokenizer.ggml.model", "llama"),
    ("llama", "tokenizer.ggml.tokens", ["same"] * 271),
    ("llama", "tokenizer.ggml.tokens", []),
    ("llama", "token_embd.weight", GGMLType.I32),
    ("llama", "blk.0.attn_norm.weight", GGMLType.F64),
    ("llama", "blk.1.ffn_up.weight", GGMLType.I8),
]


@pytest.mark.parametrize(("arch", "key", "value"), FINDINGS)
def test_findings_are_typed_errors(tmp_path: Path, arch: str, key: str, value: Any) -> None:
    model = tiny(arch)
    if isinstance(value, GGMLType):
        shape = model.tensors[key][0]
        model.tensors[key] = (shape, value, np.zeros(value.nbytes(shape), np.uint8))
    else:
        model.metadata[key] = value
    with pytest.raises((UnsafeModel, ModelLoadError), match=r"model\.gguf"):
        make_safe(model, tmp_path)
