"""Who may import whom: the rooms of docs/architecture.md, enforced on the syntax tree of every file.

A room is a module or package, named without the leading `edgellm.`; the longest name that fits wins. An import inside a
function counts like one at the top, except where the table says that it may only stand inside a function.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT, files, imports_of, module_of

VALUES = {"errors", "events", "option", "params"}
TEXT = VALUES | {"formats"}
PUBLIC = "edgellm"  # the package itself: its public names, from whichever room they come

COMMON = {
    "backends.base",
    "backends.stderr",
    "backends.pool",
    "backends.checked",
    "backends.shared_tokenizer",
}  # to all backends
BACKEND = TEXT | COMMON | {"budget", "tokenizers", "architectures", "machine", "_native", "child"}
BACKENDS = {"backends.echo", "backends.llamacpp", "backends.onnx", "backends.native"}
ENGINES = {"backends.base", "backends", "kv", "kv.store", "engine"}
ABOVE = TEXT | ENGINES | {"budget", "prompts", "toolbox", "tokenizers", "constrain", "machine", "hub"}
TURN = VALUES | {"backends.base", "constrain", "prompts"}
COMMAND = VALUES | {PUBLIC, "config", "hub", "kv.store", "machine"}

PARTS = ("", ".tokens", ".quant", ".job", ".evaluate", ".verify", ".calibrate", ".onnx.kv_scales")
CONVERT = {"budget", "errors", "formats", "architectures", "child"} | {f"converters{part}" for part in PARTS}

EVERYBODYS = {"arguments", "files", "home", "lock", "pace", "pages", "threads"}

# room: the rooms it may import, besides itself and EVERYBODYS
RULES: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "child": {"errors"},
    "_pyinstaller": {"child"},
    "events": set(),
    "arguments": {"errors"},
    "home": set(),
    "lock": set(),
    "pace": set(),
    "pages": set(),
    "threads": {"errors"},
    "_native": set(),
    "option": {"errors"},
    "params": {"errors", "option"},
    "machine": {"errors", "_native"},
    "formats": {"errors"},
    "architectures": {"errors", "formats"},
    "tokenizers": TEXT,
    "prompts": TEXT,
    "toolbox": {"errors", "events", "prompts"},
    "constrain": VALUES | {"backends.base"},
    "backends.base": VALUES,
    "budget": VALUES | {"backends.base"},
    "backends.stderr": set(),
    "backends.shared_tokenizer": {"errors"} | COMMON,
    "backends.pool": {"errors"} | COMMON,
    "backends.checked": {"errors"} | COMMON,
    "backends": TEXT | {"backends.base"},
    **dict.fromkeys(BACKENDS, BACKEND),
    "backends.native": BACKEND | {"backends.llamacpp"},  # headers and vocabularies of the same files
    "kv": VALUES | {"backends.base", "constrain", "engine", "kv.store", "_native"},
    "kv.store": VALUES | {"backends.base", "constrain", "kv", "_native"},
    "engine": VALUES | {"backends.base", "constrain", "kv", "_native"},
    "scoring": VALUES | {"backends.base", "engine"},
    "embedding": VALUES | {"backends.base", "engine"},
    "model": ABOVE | {"chat", "embedding", "prompter", "scoring"},
    "loading": ABOVE | {"model"},
    "chat": ABOVE | {"prompter", "reply", "rounds", "said", "saved"},
    "reply": VALUES | {"engine", "prompter", "prompts"},
    "rounds": VALUES | {"constrain", "engine", "prompter", "prompts", "reply", "toolbox"},
    "saved": VALUES | {"backends.base", "kv", "prompts", "said"},
    "prompter": TURN | {"engine", "reading", "said"},
    "reading": TURN | {"engine"},
    "said": VALUES | {"backends.base", "engine", "prompts"},
    "config": {"errors"},
    "hub": {"child", "config", "errors", "formats"},
    "bench": TEXT | {PUBLIC, "backends.base", "backends.llamacpp", "machine", "child"},
    "serve": COMMAND | {"backends.base", "constrain", "formats", "option", "prompter", "prompts"},
    "jobs": COMMAND | {"formats", "option", "serve"},
    "cli": COMMAND,
    "cli.batch": COMMAND | {"cli", "jobs"},
    "cli.serve": COMMAND | {"cli", "option", "serve"},
    "cli.bench": COMMAND | {"bench", "cli"},
    "__main__": {"cli"},
    PUBLIC: ABOVE | {"loading", "model", "chat", "jobs"},
    "converters": CONVERT,
    "converters.tokens": CONVERT | {"tokenizers"},
    "converters.quant": CONVERT | {"machine"},
    "converters.job": CONVERT | {PUBLIC},
    "converters.evaluate": CONVERT | {PUBLIC},
    "converters.verify": CONVERT | {PUBLIC},
    "converters.onnx.kv_scales": CONVERT | {"backends.base", "backends.onnx", PUBLIC},
    "converters.calibrate": CONVERT | {"machine", "backends.llamacpp", PUBLIC},
}

# file or folder: what it may import in addition, inside a function (or for type hints) only
INSIDE_FUNCTIONS: dict[str, set[str]] = {
    "edgellm/backends/__init__.py": BACKENDS,
    "edgellm/backends/llamacpp/adapters.py": {"converters"},
    "edgellm/chat.py": {"model"},
    "edgellm/cli/convert.py": {"converters", "converters.job"},
    "edgellm/cli/eval.py": {"converters", "converters.evaluate"},
}

# other people's packages that belong to one place; None: to no place yet
OWNED: dict[str, str | None] = {
    "llama_cpp": "edgellm/backends/llamacpp/library.py",
    "huggingface_hub": "edgellm/hub/",
    "prompt_toolkit": "edgellm/cli/",
    "rich": "edgellm/cli/",
    "starlette": "edgellm/serve/",
    "uvicorn": "edgellm/serve/listen.py",
    "uvloop": "edgellm/serve/listen.py",
    "pydantic": "edgellm/serve/",
    "pydantic_core": "edgellm/serve/",
    "prometheus_client": "edgellm/serve/metrics.py",
    "click": "edgellm/cli/",
    "jinja2": "edgellm/prompts/",
    "llguidance": "edgellm/constrain/",
    "platformdirs": "edgellm/home.py",
    "PyInstaller": "edgellm/_pyinstaller/",
    "onnx": None,
    "gguf": "converters/quant/ggml.py",
    "pyarrow": "edgellm/jobs/cluster.py",
    "ray": "edgellm/jobs/cluster.py",
    "onnxruntime": "edgellm/backends/onnx/library.py",
    "optimum": "converters/onnx/optimum.py",
    "tokenizers": "edgellm/tokenizers/text.py",
    "torch": None,
    "transformers": None,
}


# files that may import another place's package all the same
GUESTS = {"edgellm/bench/peers.py": {"llama_cpp"}}  # measures llama-cpp-python itself


def room_of(module: str) -> str | None:
    """The room of one of our modules; None when the table has none for it."""
    if module == "edgellm":
        return PUBLIC
    parts = module.split(".")[1:]
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    room = next((name for name in names if name in RULES), None)
    return None if room == "backends" and module != "edgellm.backends" else room


def violations(root: Path) -> list[str]:
    found = []
    for file in files(root):
        where = file.relative_to(root).as_posix()
        room = room_of(module_of(file, root))
        if room is None:
            found.append(f"{where}: no room in the table for this file")
            continue
        for item in imports_of(file, root):
            top = item.module.split(".")[0]
            at = f"{where}:{item.line}"
            if top in OWNED and top not in GUESTS.get(where, set()):
                place = OWNED[top]
                if place is None or not where.startswith(place):
                    found.append(f"{at}: {top} belongs to {place or 'no file yet'}")
            if top != "edgellm":
                continue
            target = room_of(item.module)
            extra = INSIDE_FUNCTIONS.get(where, set()) if item.where != "top" else set()
            if target is None or target not in {room} | EVERYBODYS | RULES[room] | extra:
                found.append(f"{at}: {room} may not import {item.module}")
    return found


def test_every_import_keeps_the_rules() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("edgellm/errors.py", "import edgellm.params", "errors may not import edgellm.params"),
        ("edgellm/formats/gguf.py", "from ..engine import engine", "formats may not import edgellm.engine.engine"),
        ("edgellm/formats/gguf.py", "from .. import machine", "formats may not import edgellm.machine"),
        (
            "edgellm/engine/engine.py",
            "def f():\n    from edgellm.backends import echo",
            "may not import edgellm.backends",
        ),
        (
            "edgellm/engine/engine.py",
            "from edgellm.backends.llamacpp import library",
            "may not import edgellm.backends",
        ),
        ("edgellm/backends/__init__.py", "from edgellm.backends import echo", "may not import edgellm.backends.echo"),
        ("edgellm/backends/echo.py", "from edgellm.backends.llamacpp import amx", "may not import edgellm.backends"),
        ("edgellm/backends/other.py", "", "no room in the table"),
        ("edgellm/novelty.py", "", "no room in the table"),
        ("edgellm/cli/run.py", "from edgellm.backends import open_backend", "cli may not import edgellm.backends"),
        ("edgellm/cli/run.py", "def f():\n    import edgellm.converters.plan", "cli may not import edgellm.converters"),
        ("edgellm/cli/convert.py", "import edgellm.converters.plan", "cli may not import edgellm.converters.plan"),
        ("edgellm/model.py", "import edgellm.converters", "model may not import edgellm.converters"),
        ("converters/plan.py", "import edgellm", "converters may not import edgellm"),
        ("converters/plan.py", "from edgellm.hub import pull", "converters may not import edgellm.hub"),
        (
            "edgellm/model.py",
            "def f():\n    import llama_cpp.llama_cpp",
            "llama_cpp belongs to edgellm/backends/llamacpp",
        ),
        ("edgellm/prompts/template.py", "from transformers import AutoTokenizer", "transformers belongs to no file"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    for name in ("engine/engine.py", "backends/echo.py", "backends/llamacpp/amx.py", "machine.py", "params.py"):
        other = tmp_path / "edgellm" / name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.touch()
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text, encoding="utf-8")
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(file)
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("edgellm/backends/__init__.py", "def f():\n    from edgellm.backends.echo import open_echo"),
        ("edgellm/cli/convert.py", "def f():\n    from edgellm.converters import plan"),
        ("edgellm/kv/store.py", "from edgellm.home import home"),
        ("edgellm/cli/run.py", "import edgellm\nfrom edgellm import load"),
        ("converters/gguf/write.py", "from ..plan import Plan\nfrom edgellm.formats import gguf"),
        ("converters/verify.py", "import edgellm"),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, file: str, text: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text, encoding="utf-8")
    assert violations(tmp_path) == []


@pytest.mark.parametrize("start", ["import edgellm", "import edgellm.cli"])
def test_starting_up_loads_nothing_heavy(start: str) -> None:
    assert loaded(start) & {"llama_cpp", "onnxruntime", "numpy", "jinja2", "huggingface_hub", "rich"} == set()


def test_pipes_load_no_server() -> None:
    heavy = {"starlette", "uvicorn", "prometheus_client", "llama_cpp", "onnxruntime", "huggingface_hub", "jinja2"}
    assert loaded("import edgellm.serve.stdio") & heavy == set()


def test_chats_load_asyncio_for_its_users_alone() -> None:
    assert "asyncio" not in loaded("import edgellm.chat, edgellm.model, edgellm.engine.engine")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['edgellm', '--help']\n"
        "try:\n    runpy.run_module('edgellm', run_name='__main__')\n"
        "except SystemExit as leaving:\n    assert not leaving.code, leaving.code\n"
    )
    assert loaded(program) & {"llama_cpp", "onnxruntime", "numpy"} == set()


def loaded(program: str) -> set[str]:
    """Top-level names of the modules that a new interpreter has after a program."""
    tail = (
        "\nimport json, sys; sys.stderr.write('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + tail], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))
