"""Freeze `program.py` with PyInstaller, as a folder and as one file, and use what comes out. No part of the suite.

    pip install pyinstaller .        # edgellm really installed: PyInstaller finds its hooks by the entry point
    python tests/frozen/build.py [--model smollm2.gguf] [--kind onedir|onefile] [--work FOLDER]

Nothing is told to PyInstaller but the program. It must answer from GGUF and ONNX, quantize, try an unusual file in a
child process, survive one that aborts llama.cpp, and find prompts on disk again after a restart. Exits with 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import tiny

from edgellm.converters import ConvertParams
from edgellm.converters.convert import convert

KINDS = ("onedir", "onefile")


def models(folder: Path) -> dict[str, Path]:
    """Tiny models: one plain, one unusual, one that llama.cpp answers by aborting, one as ONNX."""
    folder.mkdir()
    made = {name: tiny("llama", hidden=256) for name in ("plain", "unusual", "deadly")}
    made["unusual"].metadata["llama.pooling_type"] = 0
    made["deadly"].metadata["llama.rope.scaling.type"] = "nonsense"
    files = {name: model.write(folder / f"{name}.gguf") for name, model in made.items()}
    files["onnx"] = convert(files["plain"], folder / "onnx", ConvertParams(to="onnx")).path
    return files


def freeze(kind: str, work: Path) -> Path:
    """The program's file."""
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", f"--{kind}", "--name", kind]
    command += ["--distpath", str(work), "--workpath", str(work / "build"), "--specpath", str(work / "build")]
    began = time.perf_counter()
    subprocess.run([*command, str(Path(__file__).with_name("program.py"))], check=True)
    file = work / kind if kind == "onefile" else work / kind / kind
    whole = [file] if kind == "onefile" else [path for path in file.parent.rglob("*") if not path.is_symlink()]
    size = sum(path.stat().st_size for path in whole if path.is_file())
    print(f"{kind}: frozen in {time.perf_counter() - began:.0f} s, {size / 1e6:.0f} MB")
    return file.with_suffix(".exe") if os.name == "nt" else file


def run(program: Path, work: Path, *arguments: object) -> list[dict[str, Any]]:
    """What it says. It runs without this installation: elsewhere, and with nothing of it in the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"EDGELLM_HOME": str(work / f"home-{program.stem}"), "PATH": os.defpath}
    began = time.perf_counter()
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=work, timeout=600
    )
    print(f"  {time.perf_counter() - began:5.1f} s  {done.stdout.strip()}")
    if done.returncode or done.stderr:
        print(f"  exit status {done.returncode}, on stderr: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(program: Path, work: Path, files: dict[str, Path], model: Path | None) -> list[str]:
    """What is wrong with it."""
    known = [model] if model else []
    quantized = files["plain"].with_name("plain.gguf.convert")
    said = run(program, work, files["plain"], files["onnx"], files["unusual"], files["deadly"], quantized, *known)
    again = run(program, work, files["plain"], files["onnx"], *known)
    wrong = []
    if [line for line in [*said, *again] if "started" in line] != [
        {"started": 6 + len(known)},
        {"started": 3 + len(known)},
    ]:
        wrong.append("the program's main part ran in a child process")
    names = ["plain", "onnx", "unusual", "deadly", "quantized", "model"]
    for name, line in zip(names, said[1:], strict=False):
        if ("error" in line) != (name == "deadly"):
            wrong.append(f"{name}: {line}")
    if len(said) != 6 + len(known) or said[4].get("error") != "UnsafeModel" or "rope_scaling" not in said[4]["message"]:
        wrong.append("a file that aborts llama.cpp was not refused by a child's word")
    if not all(line.get("cached") for line in again[1:]):
        wrong.append("a known prompt was computed again after a restart")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file beside the tiny ones")
    parser.add_argument("--kind", choices=KINDS, help="both, if not given")
    parser.add_argument("--work", type=Path, help="folder for what is made; a temporary one, if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["EDGELLM_HOME"] = str(work / "home")
        for made in ("home", "models", *(f"home-{kind}" for kind in KINDS)):
            shutil.rmtree(work / made, ignore_errors=True)
        files = models(work / "models")
        wrong = []
        for kind in [options.kind] if options.kind else KINDS:
            wrong += [f"{kind}: {what}" for what in check(freeze(kind, work), work, files, options.model)]
    print("\n".join(wrong) or "all is well")
    sys.exit(bool(wrong))


main()
