"""What decoding could reach: every token reads the weights once, and memory delivers so many bytes per second."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgellm.formats.gguf import GGUFFile

ARRAY_BYTES = 512 << 20  # several times the largest cache
PASSES = 4
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def read_bandwidth(threads: int, array_bytes: int = ARRAY_BYTES) -> float:
    """Bytes per second that `threads` threads read from memory together: the best of a few passes.

    Each searches its part of one array of zero bytes for another (`numpy.any`, which releases the interpreter lock and
    compares whole vector registers: the numpy reduction nearest to reading alone).
    """
    array = np.empty(array_bytes, np.bool_)
    array.fill(False)  # real pages, not the kernel's one page of zeros
    parts = np.array_split(array, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            started = time.perf_counter()
            list(pool.map(np.any, parts))
            best = min(best, time.perf_counter() - started)
    return array_bytes / best


def weight_bytes(path: str | Path) -> int:
    """Bytes of weights that one token of a GGUF model reads: of an embedding apart from the head one row, and of the
    experts those in use.
    """
    with GGUFFile.open(path) as file:
        total = 0.0
        architecture = file.get("general.architecture", str, "")
        experts = file.get(f"{architecture}.expert_count", int, 0)
        used = file.get(f"{architecture}.expert_used_count", int, experts)
        for tensor in file.tensors.values():
            if tensor.name == EMBEDDING and HEAD in file.tensors:
                total += tensor.nbytes / tensor.shape[0]
            elif experts and "_exps." in tensor.name:
                total += tensor.nbytes * used / experts
            else:
                total += tensor.nbytes
        return round(total)
