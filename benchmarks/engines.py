"""Engines side by side on the same weights: edgellm's own and those of others.

    python benchmarks/engines.py NAME=KIND:PATH[@PROGRAM] ... [--prompt 512] [--depth 2048] [--shallow 64] [--tokens 64]
                                 [--streams 8] [--rounds 5] [--only FIGURE…] [--json FILE]

The first one is what the others are compared with. KIND, and what PATH and PROGRAM are:

    native, llamacpp, onnx     edgellm with that backend (edgellm: with the one it picks); a GGUF file or an ONNX folder
    genai, openvino, optimum   onnxruntime-genai and optimum on a folder, OpenVINO GenAI on a folder or a GGUF file;
                               PROGRAM is the Python of an environment that has the engine, this one without it
    llama-bench                a GGUF file; PROGRAM is llama-bench of llama.cpp or ik_llama.cpp, with its options

For example:

    python benchmarks/engines.py native=native:m.gguf gguf=llamacpp:m.gguf onnx=onnx:m.onnx genai=genai:m.onnx \\
        openvino=openvino:m.gguf@venv/bin/python "ik=llama-bench:m.gguf@ik/build/bin/llama-bench -rtr 1 -fa 1"

Every engine runs in a process of its own, loaded once (llama-bench once for each measurement). In each round all do
the same, one after the other, in an order that moves on by one place; a first round is discarded. Prompts are random
tokens, the same for all of a round, and none comes twice. Figures are medians and ranges over the rounds, ratios those
of one round: above 1 the first engine was better, also where less is better. An engine that cannot be started or fails
is left out, and one that refuses a request or produced another number of tokens than it was asked for gets no figure;
both are said.

    prefill       tokens of the prompt over the time to the first token
    decode        tokens after the first over the time from there to the end, behind a prompt of --shallow or --depth
    streams       tokens per second of --streams answers together, while all of them run
    start         load: without imports; first token: from the start of a process to the first token of a short prompt
    restart       edgellm: a new process is asked a prompt of 2,000 tokens that another one has read, with another end
                  of 16 tokens; time to the first token once it is loaded, and how many times longer the same process
                  takes for a prompt that it has not seen
    forks         edgellm: of a sequence of 2,000 tokens, time of one; memory of six of them after a token each, in the
                  first round
    contention    how many times longer an answer takes while another process of the same engine gives one
    memory        MB resident and at their highest, after the deep answer of the first round; mapped pages of files
                  count. idle: % of a processor that it used before, while others were measured

The limit of decoding is what one token reads (weights, and the keys and values before it), over the bandwidth with
which as many threads read as many bytes; that of prefill is what the products with the weights of the layers take, at
the rate of the widest product of bytes (for floats it says nothing). Both are measured in every round (limits.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from engine_child import OURS, PEERS
from engine_process import Engine, Refused
from limits import limits
from llama_bench import LlamaBench

from edgellm import machine
from edgellm.backends import inspect
from edgellm.bench.bandwidth import weight_bytes
from edgellm.formats.gguf import GGUFFile

CASES = "prefill", "depth", "shallow", "streams", "start", "restart", "forks", "contention"
ONCE = "resident", "peak", "idle", "forks, MB"
MILLISECONDS = "load", "first token", "restart", "fork"
SETS = {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "dotprod", "i8mm"}
Contestant = Engine | LlamaBench
Figures = dict[str, float]


def start(given: str, options: argparse.Namespace) -> Contestant:
    """An engine of the command line, loaded. Raises OSError, ValueError."""
    name, _, rest = given.partition("=")
    kind, _, place = rest.partition(":")
    path, _, program = place.partition("@")
    if kind not in (*OURS, *PEERS, "llama-bench") or not path or (kind == "llama-bench" and not program):
        kinds = ", ".join([*OURS, *PEERS, "llama-bench"])
        raise SystemExit(f"{given!r}: expected NAME=KIND:PATH[@PROGRAM], KIND one of {kinds}")
    if kind == "llama-bench":
        return LlamaBench(name, path, program, options)
    return Engine(name, kind, path, program, options)


class Rounds:
    """figures: of every complete round, by engine; once: what only the first tells. limits: those of the machine, one
    pair a round. absent: who takes no part, or gives no figure, and why.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._first = options.engines[0].partition("=")[0]
        self.figures: list[dict[str, Figures]] = []
        self.once: dict[str, Figures] = {}
        self.limits: list[tuple[float, float]] = []
        self.absent: dict[str, str] = {}
        self.engines: list[Contestant] = []
        for given in options.engines:
            try:
                self.engines.append(start(given, options))
            except (OSError, ValueError) as error:
                self._leave(given.partition("=")[0], str(error))

    def run(self, read_bytes: int) -> None:
        """All rounds. read_bytes: of what the limits are measured on, 0 for not at all."""
        for number in range(self._options.rounds + 1):
            found: dict[str, Figures] = {engine.name: {} for engine in self.engines}
            for case in self._options.only or CASES:
                at = (number + CASES.index(case)) % len(self.engines)
                for engine in self.engines[at:] + self.engines[:at]:
                    self._measure(engine, case, number, found[engine.name])
            for name, figures in found.items():
                once = {part: figures.pop(part) for part in ONCE if part in figures}
                self.once.setdefault(name, once)
            if number:
                self.figures.append(found)
                if read_bytes:
                    self.limits.append(limits(read_bytes, self._options.threads))
                print(f"round {number} of {self._options.rounds}", file=sys.stderr)

    def _measure(self, engine: Contestant, case: str, number: int, figures: Figures) -> None:
        rng = random.Random(f"{case} {number}")
        try:
            figures |= getattr(engine, case)(rng)
        except Refused as error:
            self.absent[f"{engine.name}, {case}"] = str(error)
        except (OSError, ValueError) as error:
            self._leave(engine.name, f"{case}: {error}")
            return
        streams, alone = (figures.get(name) for name in self._several())
        if streams and alone:
            figures[f"{self._several()[0]}, times one"] = streams / alone

    def _several(self) -> tuple[str, str]:
        return f"{self._options.streams} streams", f"decode at {self._options.shallow}"

    def _leave(self, name: str, why: str) -> None:
        if name == self._first:
            raise SystemExit(f"{name}: {why}")
        print(f"{name} takes no part: {why}", file=sys.stderr)
        self.absent[name] = why
        self.engines = [engine for engine in self.engines if engine.name != name]

    def values(self, figure: str, name: str) -> list[float]:
        """One a round, or none where a round has none."""
        found = [one[name][figure] for one in self.figures if figure in one.get(name, {})]
        return found if len(found) == len(self.figures) else []


def unit_of(figure: str) -> tuple[str, bool]:
    """And whether less is better."""
    if figure in MILLISECONDS:
        return "ms", True
    if figure.endswith(("sooner than unseen", "times one", "slower")):
        return "times", figure.endswith("slower")
    return "tokens/s", False


def spread(values: list[float]) -> str:
    """Median and range."""
    digits = 2 if max(values) < 10 else 1
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def show(rounds: Rounds, most: Figures) -> None:
    """Every figure: medians and ranges, and the ratios to the first engine."""
    names = [engine.name for engine in rounds.engines]
    for figure in dict.fromkeys(figure for one in rounds.figures for figures in one.values() for figure in figures):
        unit, lower = unit_of(figure)
        limit = most.get(figure)
        print(f"\n{figure}, {unit}" + (f" (limit {limit:.1f})" if limit else ""))
        base = rounds.values(figure, names[0])
        for name in names:
            values = rounds.values(figure, name)
            if not values:
                continue
            line = f"    {name:12} {spread(values):28}"
            if limit:
                line += f"{100 * statistics.median(values) / limit:4.0f} % of the limit  "
            if name != names[0] and base:
                pairs = zip(base, values, strict=True)
                line += f"{names[0]} {spread([theirs / ours if lower else ours / theirs for ours, theirs in pairs])}"
            print(line.rstrip())
    print("\nmemory, MB; idle, %")
    for name in names:
        if parts := [f"{part} {value:.0f}" for part, value in rounds.once.get(name, {}).items()]:
            print(f"    {name:12} {', '.join(parts)}")
    for name, why in rounds.absent.items():
        print(f"no figure: {name}: {why}")


def others_busy() -> float:
    """Seconds of work that all processors have done for others than this process and its children; 0 where the system
    does not say.
    """
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields[:8])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ours = sum(each.ru_utime + each.ru_stime for each in used)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - ours


def per_token(path: str, options: argparse.Namespace) -> Figures:
    """What a token of a GGUF model takes, by figure: bytes to read when it is decoded, operations in a prompt."""
    weights, kv = weight_bytes(path), inspect(path, "f16").kv_bytes_per_token
    with GGUFFile.open(path) as file:
        matrices = [
            each.shape for each in file.tensors.values() if len(each.shape) == 2 and each.name.startswith("blk.")
        ]
    operations = 2.0 * sum(rows * columns for rows, columns in matrices)
    reads = {f"decode at {depth}": weights + kv * float(depth) for depth in (options.shallow, options.depth)}
    return reads | {f"prefill {size}": operations for size in (options.prompt, options.depth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", metavar="NAME=KIND:PATH[@PROGRAM]")
    sizes = {"prompt": 512, "depth": 2048, "shallow": 64, "tokens": 64, "streams": 8, "rounds": 5}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--only", nargs="+", choices=CASES)
    parser.add_argument("--vocabulary", type=int, default=40_000, help="tokens are drawn from 300 to this")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    began, before = time.perf_counter(), others_busy()
    rounds = Rounds(options)
    path = options.engines[0].partition(":")[2].partition("@")[0]
    takes = per_token(path, options) if Path(path).is_file() else {}
    rounds.run(round(max((takes[figure] for figure in takes if figure.startswith("decode")), default=0)))
    for engine in rounds.engines:
        engine.close()
    others = (others_busy() - before) / (time.perf_counter() - began) / (os.cpu_count() or 1)
    bandwidth, operations = (statistics.median(each) for each in zip(*rounds.limits or [(0.0, 0.0)], strict=True))
    rates = {figure: bandwidth if figure.startswith("decode") else operations for figure in takes}
    most = {figure: rates[figure] / takes[figure] for figure in takes if rates[figure]}
    about: dict[str, Any] = {
        "cpu": machine.cpu_name(),
        "instruction_sets": sorted(machine.cpu_features() & SETS),
        "threads": options.threads,
        "others_used": others,
        "read_bandwidth": bandwidth,
        "byte_operations": operations,
        "versions": {engine.name: engine.version for engine in rounds.engines},
    }
    print(f"{about['cpu']} ({' '.join(about['instruction_sets'])}), {options.threads} threads")
    print(f"reads {bandwidth / 1e9:.1f} GB/s, multiplies bytes at {operations / 1e12:.2f} TOPS")
    print(f"others used {100 * others:.0f} % of the processors: on a machine that does something else no figure stands")
    print("; ".join(f"{name}: {version}" for name, version in about["versions"].items()))
    show(rounds, most)
    if options.json:
        report = {"about": about, "limits": most, "once": rounds.once, "rounds": rounds.figures}
        options.json.write_text(json.dumps(report | {"absent": rounds.absent}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
