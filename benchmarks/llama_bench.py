"""The programs of llama.cpp and of ik_llama.cpp as a contestant of engines.py; they need nothing of edgellm."""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any


class LlamaBench:
    """llama-bench, and llama-batched-bench and llama-cli beside it. Each measurement is a process, whose loading does
    not count. llama-bench feeds random tokens of its own and looks at no logits, so its decode chooses nothing.

    program: llama-bench and options that every one of its measurements gets, such as "-rtr 1 -fa 1"; the two others get
    those of them that they know. What fails raises OSError or ValueError, as does what is not as long as it was asked.
    """

    def __init__(self, name: str, model: str, program: str, options: argparse.Namespace) -> None:
        self.name, self._asked = name, options
        command = shlex.split(program)
        self._program, self._options = Path(command[0]).absolute(), command[1:]
        self._common = ["-m", os.path.abspath(model), "-t", str(options.threads)]
        self._scratch = tempfile.gettempdir()  # where they write their logs
        [found], _peak = self._bench("-p", "16", "-n", "0")
        self.version = str(found["build_commit"])

    def prefill(self, _rng: random.Random) -> dict[str, float]:
        size = self._asked.prompt
        return {f"prefill {size}": self._speed(size, 0)[0]}

    def depth(self, _rng: random.Random) -> dict[str, float]:
        depth = self._asked.depth
        decode, peak = self._speed(depth, self._asked.tokens)
        return {f"prefill {depth}": self._speed(depth, 0)[0], f"decode at {depth}": decode, "peak": peak / 1e6}

    def shallow(self, _rng: random.Random) -> dict[str, float]:
        depth = self._asked.shallow
        return {f"decode at {depth}": self._speed(depth, self._asked.tokens)[0]}

    def streams(self, _rng: random.Random) -> dict[str, float]:
        depth, count, streams = self._asked.shallow, self._asked.tokens, self._asked.streams
        program = self._program.with_name("llama-batched-bench")
        sizes = {"-npp": depth, "-ntg": count, "-npl": streams, "-c": streams * (depth + count + 8)}
        words = [word for flag, size in sizes.items() for word in (flag, str(size))]
        said, _peak = self._run([str(program), *self._common, *words, *self._switches()], both=True)
        lines = [line for line in said.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in lines]
        head = next((row for row in rows if "S_TG t/s" in row), None)
        if head is None or len(rows[-1]) != len(head):
            raise ValueError(f"{program.name} printed no table")
        row = dict(zip(head, rows[-1], strict=True))
        if (row["PP"], row["TG"], row["B"]) != (str(depth), str(count), str(streams)):
            raise ValueError(f"{program.name} measured {row}")
        return {f"{streams} streams": float(row["S_TG t/s"])}

    def start(self, _rng: random.Random) -> dict[str, float]:
        """From the start of llama-cli to the first byte of its answer."""
        program = self._program.with_name("llama-cli")
        command = [str(program), *self._common, "-p", "The river", "-n", "4", "--temp", "0", "--no-display-prompt"]
        silent: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self._scratch}
        started = time.perf_counter()
        with subprocess.Popen([*command, *self._switches()], stdout=subprocess.PIPE, bufsize=0, **silent) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            taken = time.perf_counter() - started
            process.stdout.read()
        if not first or process.returncode:
            raise OSError(f"{program.name} gave no answer (exit code {process.returncode})")
        return {"first token": 1e3 * taken}

    def restart(self, _rng: random.Random) -> dict[str, float]:
        return {}  # nothing is kept

    def forks(self, _rng: random.Random) -> dict[str, float]:
        return {}  # its processes have none

    def contention(self, _rng: random.Random) -> dict[str, float]:
        return {}  # its processes could not be made to begin together

    def close(self) -> None:
        pass

    def _speed(self, prompt: int, count: int) -> tuple[float, int]:
        """Tokens per second: of `count` tokens behind a prompt, or of a prompt alone; and the most bytes resident."""
        sizes = ["-p", "0", "-n", "0", "-gp", f"{prompt},{count}"] if count else ["-p", str(prompt), "-n", "0"]
        [found], peak = self._bench(*sizes)
        if (found["n_prompt"], found["n_gen"]) != (prompt, count):
            raise ValueError(f"llama-bench measured {found['n_prompt']} and {found['n_gen']} tokens")
        return float(found["avg_ts"]), peak

    def _bench(self, *sizes: str) -> tuple[list[dict[str, Any]], int]:
        said, peak = self._run([str(self._program), *self._common, "-r", "1", "-o", "json", *self._options, *sizes])
        return json.loads(said[said.index("[") :]), peak

    def _run(self, command: list[str], *, both: bool = False) -> tuple[str, int]:
        """What a program writes to stdout (both: or to stderr), and the most bytes that it had resident."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if both else errors,
                text=True,
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
            )
            assert process.stdout is not None
            said = process.stdout.read()
            _pid, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                errors.seek(0)
                raise OSError(f"{command[0]} ended with {process.returncode}: {errors.read()[-300:].strip()}")
        return said, 1024 * used.ru_maxrss

    def _switches(self) -> list[str]:
        """llama-bench's options as the other programs spell them."""
        pairs = dict(zip(self._options[::2], self._options[1::2], strict=True))
        spelled = {"-fa": ["-fa", "on"], "-rtr": ["-rtr"]}
        return [word for flag, words in spelled.items() if pairs.get(flag) == "1" for word in words]
