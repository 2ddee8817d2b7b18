"""The documentation holds: its Python runs, its commands exist, and run where they end by themselves, its numbers are
those of the code."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arch_models import LLAMA
from doc_blocks import PAGES, SHELL, Block, blocks, commands, lines, misuse, run_python
from hf_models import folder_of
from peft_folders import adapter_of, lora
from source_tree import ROOT

import edgellm
from edgellm import errors
from edgellm.converters import ConvertParams, convert
from edgellm.serve.refusal import refusal

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
ALONE = "docs/structured-output.md"  # run by test_guide.py
LANGUAGES = {"python", "sh", "console", "text", "json", "yaml", "toml"}

# lines that end not by themselves, or need what is not here, by what they begin with
NOT_RUN = {
    "pip install": "installs",
    "python -m venv": "makes an environment",
    "optimum/bin/edgellm": "needs an environment of its own",
    "edgellm serve": "listens until it is stopped",
    "edgellm pull": "needs a network",
    "edgellm run hf:": "needs a network",
    "edgellm bench": "measures for minutes",
    "edgellm cache clear": "asks first",
    "edgellm run smollm2:135m  ": "a conversation, which needs a terminal",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small checkpoint, and the GGUF file of it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    source = folder_of(folder / "source", {**LLAMA, "max_position_embeddings": 1024})
    return source, convert(source, folder / "model.gguf", ConvertParams(quant="f16", verify=False)).path


@pytest.fixture
def bench(
    checkpoint: tuple[Path, Path], smollm2: Path, gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder to work in, with small models under the names that the documentation uses, and those of the catalog."""
    state, folder = tmp_path / "state", tmp_path / "work"
    state.mkdir()
    folder.mkdir()
    assert gemma3.parents[1] == smollm2.parents[1]
    (state / "models").symlink_to(smollm2.parents[1])
    monkeypatch.setenv("EDGELLM_HOME", str(state))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.chdir(folder)
    for name in ("model", "q4_k_m", "f16", "model-q4_k_m", "model-q8_0", "model-q4_0", "model-f16", "smollm2-135m"):
        shutil.copyfile(checkpoint[1], folder / f"{name}.gguf")
    for name in ("SmolLM2-135M-Instruct", "CHECKPOINT"):
        shutil.copytree(checkpoint[0], folder / name)
    for name in ("my-adapter", "other-adapter"):
        adapter_of(folder / name, lora("model.layers.0.self_attn.q_proj", 64, 64))
    (folder / "in.jsonl").write_text('{"prompt": "Hi."}\n', encoding="utf-8")
    text = "".join(f"{i}: hello world, the other {i * i % 97} world. " for i in range(120))
    for name in ("wiki.test.raw", "calibration.txt", "FILE", "letter.txt"):
        (folder / name).write_text(text[:200] if name == "letter.txt" else text, encoding="utf-8")
    return folder


class Window:
    """Stands in for a window, and for a signal of one."""

    def __init__(self, *_: object) -> None:
        self.shown: list[str] = []

    def show(self, text: str) -> None:
        self.shown.append(text)

    emit = show


class Bar:
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, of: int) -> None:
        self.told.append((done, of))


def _readme(model: edgellm.Model) -> dict[str, Any]:
    from pydantic import BaseModel, Field

    class Invoice(BaseModel):
        customer: str = Field(max_length=20)
        total: int = Field(ge=0, le=1000)

    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    def add(a: int, b: int) -> int:
        """Add two whole numbers."""
        return a + b

    return {"chat": model.chat(), "Invoice": Invoice, "weather": weather, "add": add}


def _embedding(model: edgellm.Model) -> dict[str, Any]:
    import multiprocessing

    given = {"QThread": object, "Signal": Window, "multiprocessing": multiprocessing}
    return {**given, "chat": model.chat(), "question": "Say yes.", "window": Window(), "edgellm": edgellm}


def _evaluation(_model: edgellm.Model) -> dict[str, Any]:
    return {"text": Path("wiki.test.raw").read_text(encoding="utf-8"), "bar": Bar()}


def _clients(_model: edgellm.Model) -> dict[str, Any]:
    import anthropic
    import ollama
    import openai

    return {"OpenAI": openai.OpenAI, "ollama": ollama, "Anthropic": anthropic.Anthropic}


def _starcoder2(_model: edgellm.Model) -> dict[str, Any]:
    names = dict(vars(importlib.import_module("edgellm.architectures.starcoder2")))
    del names["STARCODER2"]
    return {name: value for name, value in names.items() if not name.startswith("__")}


# what the text around the blocks of a page speaks of
AROUND: dict[str, Callable[[edgellm.Model], dict[str, Any]]] = {
    "README.md": _readme,
    "docs/embedding.md": _embedding,
    "docs/evaluation.md": _evaluation,
    "docs/clients.md": _clients,
    "docs/adding-an-architecture.md": _starcoder2,
}


def ran(page: str, model: edgellm.Model) -> Iterator[tuple[Block, dict[str, Any]]]:
    """Each block of Python of a page that can run, after it did, and the names that are there then."""
    names: dict[str, Any] = {}
    for block in PYTHON:
        if block.page == page and not block.why:
            names |= AROUND.get(page, lambda _: {})(model)
            run_python(block, names)
            yield block, names


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON} - {ALONE}))
def test_python_runs(
    page: str, bench: Path, smollm2: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench / "all-MiniLM-L6-v2").symlink_to(minilm_folder)
    monkeypatch.setattr("multiprocessing.set_executable", lambda _path: None)
    with edgellm.load(smollm2, ctx=2048) as model:
        for block, names in ran(page, model):
            if "class Assistant" in block.text:
                _the_assistant(names["Assistant"], smollm2)
            if "class Answer(QThread)" in block.text:
                answer = names["Answer"]()
                answer.chat, answer.question, answer.cancel = model.chat(), "Say yes.", edgellm.CancelToken()
                answer.run()
                assert "".join(answer.piece.shown)
            if "window.show" in block.text:
                assert "".join(names["window"].shown) == names["chat"].messages[-1]["content"]
            if "schema=Invoice" in block.text:
                assert isinstance(names["done"].parsed, names["Invoice"])
            if "evaluate(" in block.text:
                assert names["found"].tokens > 0
                assert names["bar"].told
            if "model.embed" in block.text:
                assert names["vectors"].shape == (3, 384)


def _the_assistant(kind: Any, path: Path) -> None:
    events: list[tuple[str, Any]] = []
    assistant = kind(path, lambda name, what: events.append((name, what)))
    assistant.thread.join()
    assert events == [("ready", None)]
    assistant.ask("What is red?")
    assistant.thread.join()
    assert events[-1] == ("end", None)
    assert "".join(what for name, what in events if name == "piece") == assistant.chat.messages[-1]["content"]
    assert [what for name, what in events if name == "progress"]
    assistant.ask("word " * 20_000)
    assistant.thread.join()
    assert events[-1][0] == "error"
    assistant.ask("Count to a thousand.")
    assistant.close()
    with pytest.raises(errors.Closed):
        assistant.model.encode("x")
    missing = kind(path / "missing", lambda name, what: events.append((name, what)))
    missing.close()
    assert events[-1][0] == "error"


def test_what_of_python_does_not_run() -> None:
    unrun = [block for block in PYTHON if block.why]
    assert all(block.why.startswith("needs ") for block in unrun), unrun
    assert len(unrun) <= 3, [f"{block}: {block.why}" for block in unrun]


def test_every_block_says_its_language() -> None:
    assert [f"{each}: {each.language}" for each in BLOCKS if each.language not in LANGUAGES] == []


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_shell_is_shell() -> None:
    for block in BLOCKS:
        if block.language in SHELL:
            for line in lines(block):
                done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{block}: {done.stderr}"


def test_commands_are_there() -> None:
    """Every command and option of the program that a block of shell or the text names."""
    known, found = 0, []
    for block in BLOCKS:
        if block.language in SHELL:
            for line in lines(block):
                for arguments in commands(line):
                    known += 1
                    found += [f"{block}: {line}: {wrong}" for wrong in [misuse(arguments)] if wrong]
    for page in PAGES:
        for line in re.findall(r"`(edgellm(?: [^`\n]+)?)`", page.read_text(encoding="utf-8")):
            for arguments in commands(line):
                if not arguments or "COMMAND" in arguments or "…" in line or "FOLDER" in arguments[0]:
                    continue
                known += 1
                wrong = misuse(["1" if each == "N" else each for each in arguments])
                if wrong and not wrong.endswith("missing"):
                    found.append(f"{page.name}: `{line}`: {wrong}")
    assert found == []
    assert known > 60


def test_misuse_is_found() -> None:
    assert misuse(["run", "m.gguf", "Hi", "--temperature", "0"]) == ""
    assert "no command" in misuse(["ran"])
    assert "No such option" in misuse(["run", "m.gguf", "--temprature", "0"])
    assert "not" in misuse(["run", "m.gguf", "--temperature", "warm"])
    assert "too much" in misuse(["show", "a", "b"])
    assert "missing" in misuse(["show"])
    assert misuse(["cache", "ls"]) == ""
    assert "no command" in misuse(["cache", "lss"])
    assert [*commands("A=1 edgellm run x | cat && edgellm list # end")] == [["run", "x"], ["list"]]


RUNNING = sorted(
    {block.page for block in BLOCKS if block.language in SHELL for line in lines(block) for _ in commands(line)}
    - {"docs/performance.md"}  # measures for hours
)


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("page", RUNNING)
def test_commands_run(page: str, bench: Path) -> None:
    program = bench.parent / "bin" / "edgellm"
    program.parent.mkdir()
    short = 'if [ "$1" = run ]; then shift; set -- run --max-tokens 40 "$@"; fi'
    program.write_text(f'#!/bin/sh\n{short}\nexec {sys.executable} -m edgellm "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    for block in BLOCKS:
        for line in lines(block) if block.page == page and block.language == "sh" else ():
            typed = line.partition("#")[0].rstrip() + "  "
            every = [*commands(line)]
            if not every or typed.startswith(tuple(NOT_RUN)):
                continue
            for target in [each[each.index("-o") + 1] for each in every if each[:1] == ["convert"] and "-o" in each]:
                Path(target).unlink(missing_ok=True)  # a line before it uses another of this name
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {line}"],
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, f"{block}: {line}\n{done.stdout}{done.stderr}"
            assert "this should not have happened" not in done.stderr


def test_what_of_shell_does_not_run() -> None:
    """Few lines, and each for a reason that still holds for one."""
    every = [line for block in BLOCKS if block.page in RUNNING and block.language == "sh" for line in lines(block)]
    typed = [line.partition("#")[0].rstrip() + "  " for line in every]
    assert [why for why in NOT_RUN if not any(line.startswith(why) for line in typed)] == []
    assert sum(line.startswith(tuple(NOT_RUN)) for line in typed) <= 24


def test_what_is_named_is_there() -> None:
    """Files and folders of the project that a page names, and those that pages outside of docs/ link to."""
    lost = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:docs|benchmarks|examples|tests|edgellm|native|converters)/[\w./-]*)`", text)
        lost += [f"{page.name}: {each}" for each in named if not (ROOT / each).exists() and "X" not in each]
        if page.parent.name != "docs":
            links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
            lost += [f"{page.name}: {each}" for each in links if "//" not in each and not (page.parent / each).exists()]
    assert lost == []


ERROR_PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
CLASSES = [each for each in vars(errors).values() if inspect.isclass(each) and each.__module__ == errors.__name__]


def test_every_error_is_explained() -> None:
    assert len(CLASSES) > 20
    assert sorted(re.findall(r"^### (\w+)$", ERROR_PAGE, re.MULTILINE)) == sorted(each.__name__ for each in CLASSES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_is_what_the_page_says(kind: type[errors.EdgeLLMError]) -> None:
    section = ERROR_PAGE.partition(f"### {kind.__name__}\n")[2].partition("\n#")[0]
    error = kind("m", needed=2, n_ctx=1) if kind is errors.ContextOverflow else kind("m")
    answer = refusal(error)
    said = re.search(r"HTTP (\d+) `(\w+)`", section)
    assert said is not None
    assert (int(said[1]), said[2]) == (answer.status, answer.code)
    assert ("exit code 2" in section) == isinstance(error, errors.InvalidParameter)
    for other in (ValueError, FileNotFoundError, OSError):
        if other in kind.__mro__[1:3] and kind.__bases__[-1] is other:
            assert f"also a `{other.__name__}`" in section or f"also an `{other.__name__}`" in section
    assert len(section.split()) > 15


LIMITS = re.findall(
    r"^\| (.+?) \| ([\d,.]+) ?(.*?) \| `(edgellm\.[\w.]+)(?:\((\w+)\))?` \|$",
    (ROOT / "docs" / "limits.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "GB": 10**9}


def test_the_limits_are_a_table() -> None:
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert len(LIMITS) == page.count("| `edgellm.") >= 50


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit[3])
def test_a_limit_is_that_of_the_code(limit: tuple[str, str, str, str, str]) -> None:
    _what, number, unit, place, parameter = limit
    room, _, name = place.rpartition(".")
    value: Any
    if parameter:
        value = inspect.signature(getattr(importlib.import_module(room), name)).parameters[parameter].default
    elif room.rpartition(".")[2].istitle() or "Params" in room:
        holder, _, kind = room.rpartition(".")
        value = getattr(importlib.import_module(holder), kind).OPTIONS[name].default
    else:
        value = getattr(importlib.import_module(room), name)
    assert math.isclose(float(number.replace(",", "")) * UNITS.get(unit.split(" ")[0], 1), value, rel_tol=0)


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: edgellm\.(\w+)$", page, re.MULTILINE))
    assert shown | {"EdgeLLMError", "errors", "__version__"} == set(edgellm.__all__)


def test_every_reason_of_the_cache_is_explained() -> None:
    """What a report may say of a prompt that was computed again: in the source, and on the page."""
    page = " ".join((ROOT / "docs" / "reuse.md").read_text(encoding="utf-8").split())
    source = "".join(
        (ROOT / "edgellm" / name).read_text(encoding="utf-8")
        for name in ("kv/explain.py", "engine/reuse.py", "engine/request.py")
    )
    said = re.findall(
        r'(?:reason=|reasons\.append\(|why = |return |^[A-Z_]+ = |note = |words = )f?"([^"{]+)', source, re.M
    )
    reasons = {each.strip() for each in said if each.count(" ") > 2}
    assert len(reasons) >= 8
    assert sorted(each for each in reasons if each not in page) == []
