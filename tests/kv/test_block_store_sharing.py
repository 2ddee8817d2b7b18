"""The disk tier shared by several processes and threads, some of which are killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kv_store import ROOT, files, match, opened, payload

from edgellm.kv.blocks import chain

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_store.py"
PARTNER = """
import random, sys
from pathlib import Path
from typing import Any
from edgellm.kv.store import BlockStore
from edgellm.kv.blocks import chain, root_key
import hashlib
root, seed = root_key("store"), int(sys.argv[2])
random.seed(seed)
store = BlockStore(Path(sys.argv[1]), budget=int(sys.argv[3]))
names = [*range(20), *range(100 * seed, 100 * seed + 10)]
random.shuffle(names)
for name in names:
    for block in chain(root, [1, 2, 3, 4, 5, 6, 7, 8, name, name], 4):
        store.write(block, hashlib.shake_128(block.key).digest(1000), label="m", words="w")
        for child in store.children(block.parent):
            found = store.read(child.key)
            assert found in (None, hashlib.shake_128(child.key).digest(1000))
assert store.flush(60)
assert store.problem is None, store.problem
assert store.rejected == [], store.rejected
store.close()
"""


@pytest.mark.parametrize("budget", [10**9, 9000])
def test_processes_share_a_store(folder: Path, budget: int) -> None:
    partners = [
        subprocess.Popen([sys.executable, "-c", PARTNER, str(folder), str(seed), str(budget)], stderr=subprocess.PIPE)
        for seed in (1, 2, 3)
    ]
    errors = [partner.communicate(timeout=120)[1].decode() for partner in partners]
    assert errors == ["", "", ""]
    with opened(folder, budget) as stored:
        assert stored.stats().blocks == len(files(folder))
        assert list(folder.glob("*/*.tmp")) == []
        if budget > 9000:
            assert len(files(folder)) == 2 + 20 + 30
        else:
            assert stored.stats().nbytes <= budget


def test_threads_share_a_store(folder: Path) -> None:
    wrong: list[bytes] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
            for block in chain(ROOT, tokens, 4):
                stored.write(block, payload(block.key), label="m", words="w")
            keys, _ = match(stored, tokens)
            wrong.extend(key for key in keys if stored.read(key) not in (None, payload(key)))
            stored.touch(keys)

    with opened(folder, budget=30_000) as stored:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stored.flush(60)
        assert stored.problem is None
        assert stored.stats().nbytes <= 30_000
    assert wrong == []


def test_killed_writers_leave_a_clean_store(tmp_path: Path) -> None:
    program = [sys.executable, str(BENCHMARK), "--kills", "15", "--folder", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["kills"] == 15
    assert report["blocks_at_end"] > 0
