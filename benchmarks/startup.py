"""How long edgellm takes to start: medians over interleaved runs, each a new process, with warm file caches.

python benchmarks/startup.py smollm2:135m --runs 20 --json startup.json

python        an interpreter that does nothing: part of every other figure
import        `import edgellm`
help          `edgellm --help`
first token   `edgellm run MODEL "hi" --max-tokens 1`, from the start of the process to the first byte of the answer
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

FORBIDDEN = {"import": ("llama_cpp", "onnxruntime"), "help": ("llama_cpp", "onnxruntime")}


def until_exit(command: list[str]) -> float:
    """Seconds from the start of a process to its end."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def until_output(command: list[str]) -> float:
    """Seconds from the start of a process to the first byte that it writes."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - started
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"{' '.join(command)} gave no answer (exit code {process.returncode})")
    return elapsed


def imported(command: list[str]) -> set[str]:
    """Top-level packages that a Python command imports, as `-X importtime` tells them."""
    done = subprocess.run([command[0], "-X", "importtime", *command[1:]], capture_output=True, text=True, check=True)
    lines = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {name.partition(".")[0] for name in lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write every time here")
    options = parser.parse_args()
    python = [sys.executable]
    answer = ["-m", "edgellm", "run", options.model, "hi", "--max-tokens", "1", "--temperature", "0"]
    cases: dict[str, tuple[Callable[[list[str]], float], list[str]]] = {
        "python": (until_exit, [*python, "-c", "pass"]),
        "import": (until_exit, [*python, "-c", "import edgellm"]),
        "help": (until_exit, [*python, "-m", "edgellm", "--help"]),
        "first token": (until_output, [*python, *answer]),
    }
    for case, names in FORBIDDEN.items():
        found = imported(cases[case][1]) & set(names)
        if found:
            print(f"{case} imports {', '.join(sorted(found))}")
            return 1
    times: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(options.runs + 1):
        for case, (measure, command) in cases.items():
            seconds = measure(command)
            if number:  # the first run warms the file caches
                times[case].append(seconds)
    print(f"{'':12}  median      low     high   ({options.runs} runs, ms)")
    for case, values in times.items():
        figures = (statistics.median(values), min(values), max(values))
        print(f"{case:12}" + "".join(f"{1e3 * value:9.0f}" for value in figures))
    if options.json:
        options.json.write_text(json.dumps(times, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
