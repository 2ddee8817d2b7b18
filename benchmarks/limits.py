"""What the machine gives to loops that do nothing else, for engines.py to hold engines against.

python benchmarks/limits.py [MEGABYTES…]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from edgellm import machine
from edgellm.bench.bandwidth import read_bandwidth


def limits(read_bytes: int, threads: int) -> tuple[float, float]:
    """Bytes per second that so many threads read together, of as many bytes, again and again: the better of a compiled
    loop and numpy. And operations per second of the widest product of bytes, two for each pair that is multiplied and
    added; 0 without a compiler or such an instruction.
    """
    found = max(read_bandwidth(threads, read_bytes) for _ in range(3))
    program = _program()
    if program is None:
        return found, 0.0
    done = subprocess.run([program, str(read_bytes), str(threads)], capture_output=True, text=True, check=True)
    read, operations = map(float, done.stdout.split())
    return max(found, read), operations


@cache
def _program() -> Path | None:
    """limits.cpp, compiled for this processor."""
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    program = Path(folder.name) / "limits"
    options = ["-std=c++20", "-O3", "-march=native", "-pthread", "-w", "-o", str(program)]
    command = [compiler, str(Path(__file__).with_suffix(".cpp")), *options]
    return program if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0 else None


_kept: list[tempfile.TemporaryDirectory[str]] = []  # until this process ends


def main() -> None:
    for megabytes in map(float, sys.argv[1:] or ["90", "600", "1200"]):
        for threads in sorted({1, machine.usable_cores()}):
            read, operations = limits(int(1e6 * megabytes), threads)
            print(
                f"{threads} threads: {read / 1e9:.1f} GB/s of {megabytes:g} MB, {operations / 1e12:.2f} TOPS of bytes"
            )


if __name__ == "__main__":
    main()
