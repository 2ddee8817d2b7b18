"""Products of GGUF's types by themselves, beside what the memory and the instructions of this machine allow.

python benchmarks/kernels.py [--types Q4_0 Q4_K Q8_0] [--columns 2048] [--threads 2] [--set avx512_vnni] [--json FILE]

One row of X at a time over matrices that no cache holds: GB/s beside reading as many bytes. A few rows: how many times
as long as one. Many: TOPS beside the instruction that multiplies bytes, alone. All in turn, in every round; what counts
are the ratios within a round, their median and range. Times are those of the processor in each thread, so that a busy
machine takes less of the truth; memory that others read at the same time is still missing. Needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from edgellm import _native

MEMORY = 192 << 20  # bytes of a matrix that no cache holds
FEW = (1, 2, 3, 4, 6, 8, 12, 16)
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2)}
SCALES_AT |= {"Q5_1": (0, 2)}


class Limits:
    """thread_limits.cpp, compiled for this machine."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "limits.so"
            source = Path(__file__).with_name("thread_limits.cpp")
            flags = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC"]
            subprocess.run(["c++", *flags, "-o", str(library), str(source)], check=True)
            self._library = ctypes.CDLL(str(library))
        self._library.multiply_bytes.restype = ctypes.c_size_t

    def read(self, data: NDArray[np.uint8]) -> None:
        self._library.read_memory(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes))

    def multiply(self, count: int) -> int:
        data = np.ones(128, np.uint8)
        return int(self._library.multiply_bytes(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(count)))


def random_matrix(name: str, rows: int, columns: int, threads: int) -> _native.KernelMatrix:
    kind = GGMLQuantizationType[name]
    numbers, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    if name in ("F16", "BF16", "F32"):
        one = (rng.random((64, columns)) - 0.5).astype(np.float32)
        some = one.astype(np.float16) if name == "F16" else one if name == "F32" else (one.view(np.uint32) >> 16)
        block = (some.astype(np.uint16) if name == "BF16" else some).view(np.uint8).reshape(64, -1)
    else:
        blocks = rng.integers(0, 256, (64, columns // numbers, size), np.uint8)
        for at in SCALES_AT.get(name, (0,)):
            blocks[:, :, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        block = blocks.reshape(64, -1)
    order = np.arange(rows, dtype=np.int64) % 64
    return _native.KernelMatrix(int(kind), rows, columns, block.ravel(), order, threads)


class Threads:
    """So many threads that begin a piece of work together; the time is that of the slowest, of its processor."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count)

    def time(self, work: Callable[[int], object]) -> float:
        def one(index: int) -> float:
            start = time.thread_time()
            work(index)
            return time.thread_time() - start

        return max(self._pool.map(one, range(self.count)))


def measure(
    name: str, columns: int, instructions: str, threads: Threads, limits: Limits, rounds: int, many: int
) -> dict[str, list[float]]:
    """GB/s, TOPS and times of every round."""
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    rows = MEMORY // (columns // numbers * size) // 64 * 64
    large, small = random_matrix(name, rows, columns, threads.count), random_matrix(name, 2048, columns, threads.count)
    memory = np.ones(large.bytes // threads.count, np.uint8)
    memories = [memory, *(memory.copy() for _ in range(threads.count - 1))]
    rng = np.random.default_rng(1)
    x = {n: rng.standard_normal((n, columns)).astype(np.float32) for n in (*FEW, many)}

    def product(matrix: _native.KernelMatrix, n: int) -> float:
        y = np.empty((n, rows if matrix is large else 2048), np.float32)
        y.fill(0)
        tiles = matrix.tiles // 2

        def work(i: int) -> None:
            first, last = (2 * (tiles * part // threads.count) for part in (i, i + 1))
            _native.multiply(instructions, matrix, x[n], y, first=first, last=last)

        return threads.time(work)

    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        found.setdefault("read", []).append(large.bytes / threads.time(lambda i: limits.read(memories[i])) / 1e9)
        times = {n: product(large, n) for n in FEW}
        found.setdefault("decode", []).append(large.bytes / times[1] / 1e9)
        for n in FEW:
            found.setdefault(f"T({n})/T(1)", []).append(times[n] / times[1])
        operations = threads.count * limits.multiply(0x100000)
        found.setdefault("limit", []).append(operations / threads.time(lambda _: limits.multiply(0x100000)) / 1e12)
        found.setdefault("prefill", []).append(2 * many * 2048 * columns / product(small, many) / 1e12)
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q4_K", "Q6_K", "Q8_0"])
    parser.add_argument("--columns", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set", default=_native.kernel_sets()[0], help="the kernels: " + " ".join(_native.kernel_sets())
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=512, help="of a prompt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads, limits, all_found = Threads(options.threads), Limits(), {}
    print(f"{_native.cpu_name()}, {options.threads} threads, {options.set}")
    for name in options.types:
        for columns in options.columns:
            found = measure(name, columns, options.set, threads, limits, options.rounds, options.rows)
            all_found[f"{name} {columns}"] = found
            decode = [a / b for a, b in zip(found["decode"], found["read"], strict=True)]
            prefill = [a / b for a, b in zip(found["prefill"], found["limit"], strict=True)]
            print(f"{name}, {columns} columns")
            print(f"  1 row     {spread(found['decode'])} GB/s of {spread(found['read'])}: {spread(decode)}")
            print(
                f"  {options.rows} rows  {spread(found['prefill'])} TOPS of {spread(found['limit'])}: {spread(prefill)}"
            )
            few = (f"{n}: {statistics.median(found[f'T({n})/T(1)']):.2f}" for n in FEW[1:])
            print("  T(n)/T(1) " + ", ".join(few), flush=True)
    if options.json:
        options.json.write_text(json.dumps(all_found))


if __name__ == "__main__":
    main()
