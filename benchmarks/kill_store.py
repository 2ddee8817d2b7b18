"""Kill processes that write to a block store, again and again, and look at what they left.

    python benchmarks/kill_store.py [--kills 200] [--seed 0] [--folder DIR]

Every round starts one or two writers on the same small store (so that they write, evict, extend and touch all the
time), kills them at a random moment with SIGKILL, and opens the store again: it must start without a problem, rows and
files must agree, no temporary file may be left, and every block must read back as the bytes that belong to its key.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgellm.kv.blocks import Block, chain, root_key
from edgellm.kv.store import BlockStore

ROOT = root_key("kill_store")
BUDGET = 24_000_000  # bytes


def payload(block_key: bytes) -> bytes:
    """100 kB to 2 MB that follow from the key."""
    return hashlib.shake_128(block_key).digest(100_000 + int.from_bytes(block_key[:3], "little") % 1_900_000)


def conversation(number: int, length: int) -> list[Block]:
    """The first `length` tokens of one of 40 conversations, which share a beginning in groups of eight."""
    shared = np.random.default_rng(number % 5).integers(0, 50_000, 300)
    own = np.random.default_rng(1000 + number).integers(0, 50_000, 1700)
    return chain(ROOT, np.concatenate([shared, own])[:length])


def write_forever(folder: Path, seed: int) -> None:
    """A writer: turns of random conversations, until killed."""
    random.seed(seed)
    store = BlockStore(folder, budget=BUDGET)
    print("ready", flush=True)
    while True:
        blocks = conversation(random.randrange(40), random.randrange(1, 2000))
        store.touch(block.key for block in blocks)
        for block in blocks:
            if not store.has(block.key):
                store.write(block, payload(block.key), label="test", words=f"conversation {len(blocks)}")
        for block in blocks:
            found = store.read(block.key)
            if found is not None and found != payload(block.key):
                print("wrong", flush=True)
        if store.problem or store.rejected:
            print("trouble:", store.problem, store.rejected, flush=True)
        store.flush(0.05)


def inspect(folder: Path) -> tuple[list[str], int, float]:
    """What is wrong with a store whose writers are gone; blocks in it; seconds until it was open and repaired."""
    left = len(list(folder.glob("*/*.tmp")))
    began = time.perf_counter()
    store = BlockStore(folder, budget=BUDGET)
    if not store.flush(60):
        return ["the start did not end"], left, 0.0
    seconds = time.perf_counter() - began
    wrong = [f"problem: {store.problem}"] if store.problem else []
    wrong += [f"left: {path.name}" for path in folder.glob("*/*.tmp")]
    files = {path.stem for path in folder.glob("*/*.kv")}
    known, level = set(), [ROOT]
    while level:
        children = [child for parent in level for child in store.children(parent)]
        level = [child.key for child in children]
        for child in children:
            known.add(child.key.hex())
            if store.read(child.key) != payload(child.key):
                wrong.append(f"block {child.key.hex()[:8]}: {store.rejected or 'wrong bytes'}")
    if files != known:
        wrong.append(f"{len(files - known)} files cannot be reached, {len(known - files)} rows have no file")
    if store.stats().blocks != len(files):
        wrong.append(f"{store.stats().blocks} rows for {len(files)} files")
    if store.stats().nbytes > BUDGET + 3 * 2_100_000:  # a writer may die between a row and the eviction
        wrong.append(f"{store.stats().nbytes} bytes are more than the budget")
    store.close()
    return wrong, left, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--write", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write_forever(options.folder, options.write)
    rng = random.Random(options.seed)
    wrong: list[str] = []
    kills = leftovers = 0
    starts = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "kv"
        while kills < options.kills:
            writers = []
            for _ in range(min(rng.choice([1, 2]), options.kills - kills)):
                program = [sys.executable, __file__, "--folder", str(folder), "--write", str(rng.randrange(1 << 30))]
                writers.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True))
            if rng.random() < 0.8:  # else the kill may come while the store opens
                said = [writer.stdout.readline() if writer.stdout else "" for writer in writers]
                wrong += [f"a writer said {line!r}" for line in said if line != "ready\n"]
            time.sleep(rng.uniform(0.0, 0.6))
            for writer in writers:
                writer.kill()
            for writer in writers:
                rest, _ = writer.communicate()
                wrong += [line for line in rest.splitlines() if line != "ready"]
            kills += len(writers)
            found, left, seconds = inspect(folder)
            wrong += [f"after {kills} kills: {text}" for text in found]
            leftovers += left
            starts.append(seconds)
        blocks = len(list(folder.glob("*/*.kv")))
    print(
        json.dumps(
            {
                "kills": kills,
                "starts": len(starts),
                "wrong": wrong,
                "temporary_files_removed": leftovers,
                "blocks_at_end": blocks,
                "slowest_start_ms": round(1000 * max(starts), 1),
            }
        )
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
