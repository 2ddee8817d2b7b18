"""The vocabulary of a GGUF file without llama.cpp is the one that llama.cpp reads; and edgellm runs without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import spm_vocabulary, tiny
from tokens_oracle import random_texts

import edgellm
from edgellm.backends.llamacpp import library
from edgellm.backends.llamacpp.vocabulary import open_vocabulary as of_llamacpp
from edgellm.backends.native.vocabulary import LibraryVocabulary, Vocabulary, open_vocabulary
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile

PHI3 = 4  # of 300 texts, which llama.cpp splits otherwise: it swallows only ASCII's spaces behind a control token
WITHOUT = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "llama_cpp" else found(name, *rest)
sys.modules["llama_cpp"] = None
"""


@contextmanager
def both(path: Path) -> Iterator[tuple[Vocabulary, Vocabulary]]:
    with GGUFFile.open(path) as file:
        theirs = of_llamacpp(file, trust=True)
        try:
            yield LibraryVocabulary(file), theirs
        finally:
            theirs.close()


def compare(path: Path, differences: int = 0) -> None:
    with both(path) as (ours, theirs):
        assert ours.n_vocab == theirs.n_vocab
        assert ours.special == theirs.special
        a, b = ours.tokenizer, theirs.tokenizer
        assert (a.begin, a.end) == (b.begin, b.end)
        for token in range(0, ours.n_vocab, 1 + ours.n_vocab // 4000):
            for special in (False, True):
                for before in (None, -1, token // 2, *ours.special.begin):
                    piece = a.piece(token, special=special, before=before)
                    assert piece == b.piece(token, special=special, before=before), (token, special, before)
        template = "<|im_start|>user <start_of_turn> [INST]"
        marks = a.marks(template)
        assert marks == b.marks(template)
        wrong = []
        for text in random_texts(300, sorted(marks)[:60]):
            for special in (False, True):
                if a.encode(text, special=special, bos=True) != b.encode(text, special=special, bos=True):
                    wrong.append(text)
        assert len(wrong) <= differences, wrong


@pytest.mark.parametrize(
    "name", ["deepseek-coder", "gpt-2", "gpt-neox", "llama-bpe", "llama-spm", "phi-3", "qwen2", "qwen35", "starcoder"]
)
def test_published_vocabularies_agree(llama_vocabularies: Path, name: str) -> None:
    compare(llama_vocabularies / f"ggml-vocab-{name}.gguf", PHI3 if name == "phi-3" else 0)


def test_the_vocabulary_of_smollm2_agrees(smollm2: Path) -> None:
    compare(smollm2)


def test_the_vocabulary_of_gemma_agrees(gemma3: Path) -> None:
    compare(gemma3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "phi3", "qwen2"])
def test_tiny_vocabularies_agree(tmp_path: Path, architecture: str) -> None:
    compare(tiny(architecture).write(tmp_path / "model.gguf"))


def without(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program where llama.cpp is not installed."""
    command = [sys.executable, "-c", WITHOUT + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


ANSWER = """
import edgellm, json
with edgellm.load(sys.argv[1], ctx=512) as model:
    done = model.chat("Be brief.").send("Name three colours.", max_tokens=24, temperature=0, cache=False)
    assert not any(name.partition(".")[0] == "llama_cpp" for name, module in sys.modules.items() if module)
print(json.dumps([done.text, list(done.tokens), model.info.engine]))
"""


def test_an_answer_is_the_same_without_llamacpp(smollm2: Path) -> None:
    done = without(ANSWER, str(smollm2))
    assert done.stderr == ""
    text, tokens, engine = json.loads(done.stdout)
    assert engine == "native"
    with edgellm.load(smollm2, ctx=512) as model:
        with_it = model.chat("Be brief.").send("Name three colours.", max_tokens=24, temperature=0, cache=False)
    assert (text, tokens) == (with_it.text, list(with_it.tokens))


COMMAND = "from edgellm.cli import main; main(sys.argv[1:])"


def test_what_needs_llamacpp_says_how_to_get_it(tmp_path: Path) -> None:
    unknown = tiny("llama")
    unknown.metadata["general.architecture"] = "mamba"
    path = unknown.write(tmp_path / "unknown.gguf")
    done = without(COMMAND, "run", str(path), "Hello")
    assert done.returncode == 1
    assert "it does not know 'mamba' models" in done.stderr
    assert "llama.cpp is not installed here: pip install 'edgellm[llamacpp]'" in done.stderr
    known = tiny("llama").write(tmp_path / "known.gguf")
    done = without(COMMAND, "run", str(known), "Hello", "--backend", "llamacpp")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'edgellm[llamacpp]'" in done.stderr
    done = without(COMMAND, "run", str(known), "Hello", "--gpu-layers", "2")
    assert done.returncode == 1
    assert "gpu_layers is 2, and it computes on the CPU" in done.stderr
    assert "pip install 'edgellm[llamacpp]'" in done.stderr
    done = without(COMMAND, "show", str(path))
    assert done.returncode == 0
    assert "pip install" in done.stdout
    done = without(COMMAND, "convert", str(known), "-o", str(tmp_path / "less.gguf"), "--quant", "q4_0")
    assert done.returncode == 1
    assert "pip install 'edgellm[llamacpp]'" in done.stderr
    assert not (tmp_path / "less.gguf").exists()
    done = without(COMMAND, "run", str(known), "Hello", "--adapter", str(known))
    assert done.returncode == 1
    assert "adapters are asked for" in done.stderr
    assert "pip install 'edgellm[llamacpp]'" in done.stderr


def test_a_quantized_file_becomes_a_graph_without_llamacpp(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    done = without(COMMAND, "convert", str(smollm2), "-o", str(folder), "--to", "onnx")
    assert done.returncode == 0, done.stderr
    with edgellm.load(folder, ctx=256) as model:
        assert model.generate("Once upon a time", max_tokens=8, temperature=0, cache=False).text.strip()


def test_the_doctor_takes_no_offence() -> None:
    done = without(COMMAND, "doctor", "--json")
    report = json.loads(done.stdout)
    [engine] = [engine for engine in report["engines"] if engine["name"] == "llama.cpp"]
    assert "error" not in engine
    [finding] = [finding for finding in report["findings"] if "llama.cpp is not installed" in finding["problem"]]
    assert (finding["level"], finding["command"]) == ("note", library.INSTALL)
    shown = without(COMMAND, "doctor").stdout
    assert "not installed" in shown
    assert library.INSTALL in shown


def vocabulary_of(path: Path, **changes: Any) -> GGUFFile:
    model = tiny("llama")
    model.metadata |= spm_vocabulary() | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return GGUFFile.open(model.write(path))


def test_hostile_vocabularies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "installed", lambda: False)
    usual = spm_vocabulary()["tokenizer.ggml.tokens"]
    endless = [*usual[:-1], "a" * 200_000]
    with vocabulary_of(tmp_path / "long.gguf", tokens=endless) as file, pytest.raises(InvalidModelFile, match="200000"):
        open_vocabulary(file, trust=False)
    twice = [*usual[:-1], usual[-2]]
    with vocabulary_of(tmp_path / "twice.gguf", tokens=twice) as file, pytest.raises(InvalidModelFile, match="twice"):
        open_vocabulary(file, trust=False)
    scores = np.zeros(3, np.float32)
    with (
        vocabulary_of(tmp_path / "few.gguf", scores=scores) as file,
        pytest.raises(InvalidModelFile, match="scores has 3"),
    ):
        open_vocabulary(file, trust=False)
    with vocabulary_of(tmp_path / "kind.gguf", model="rwkv") as file, pytest.raises(Unsupported, match="rwkv"):
        open_vocabulary(file, trust=False)
