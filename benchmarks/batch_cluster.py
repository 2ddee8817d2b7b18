"""A job on a Ray cluster of two machines with a processor each, beside one of one; all of them run here.

    python benchmarks/batch_cluster.py MODEL [--lines 400] [--rounds 3]

MODEL: a path. Each machine is a node of `ray.cluster_utils.Cluster` that gives one processor, so its worker computes
with one thread; two cannot be faster than two busy processors of this machine are. Told are the seconds from the first
answer to the last, with one and with two, and their ratio for each round, in turns. Needs `edgellm[ray]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from edgellm import CacheParams, GenerateParams, LoadParams
from edgellm.jobs.cluster import spread
from edgellm.jobs.plain import Defaults
from edgellm.jobs.shipment import shipment_of
from edgellm.jobs.source import Source, opened

SMALL = {"object_store_memory": 200 << 20}


def machines(count: int) -> Any:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    for _ in range(count):
        made.add_node(num_cpus=1, **SMALL)
    made.wait_for_nodes()
    return made


def seconds(path: Path, model: Path, address: str) -> float:
    load = LoadParams(cache=CacheParams(disk=0))
    defaults = Defaults(GenerateParams(temperature=0, max_tokens=32, ignore_eos=True))
    first, count = 0.0, 0
    with closing(opened(str(path), lambda: path.open("rb"))) as file:
        source = Source(file, path.name)
        for answer in spread(source, shipment_of(str(model), model), load, defaults, address):
            assert not answer.failed, answer
            first = first or time.monotonic()
            count += 1
    assert count == source.total
    return time.monotonic() - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    clusters = {count: machines(count) for count in (1, 2)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        rows = [{"prompt": f"Question {at}: what comes after {at * 7}, and why?"} for at in range(options.lines)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ratios = []
        for at in range(options.rounds):
            order = (1, 2) if at % 2 else (2, 1)
            taken = {count: seconds(path, options.model, clusters[count].address) for count in order}
            ratios.append(taken[1] / taken[2])
            print(f"one {taken[1]:.1f} s, two {taken[2]:.1f} s: {ratios[-1]:.2f}", flush=True)
    print(f"two machines beside one: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times")
    for cluster in clusters.values():
        for node in [*cluster.worker_nodes, cluster.head_node]:
            cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    main()
