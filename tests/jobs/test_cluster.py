"""A job on a Ray cluster of three machines, which all run here; one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny

import edgellm
from edgellm import CacheParams, GenerateParams, LoadParams
from edgellm.errors import InvalidModelFile, InvalidParameter, ResourceError, Unsupported
from edgellm.jobs.answers import answers
from edgellm.jobs.cluster import portions, spread
from edgellm.jobs.line import Answer, Line
from edgellm.jobs.plain import Defaults
from edgellm.jobs.shipment import Shipment, shipment_of
from edgellm.jobs.source import Source, opened

LOAD = LoadParams(cache=CacheParams(disk=0), ctx=512)
GREEDY = Defaults(GenerateParams(temperature=0, max_tokens=24, ignore_eos=True))


def lines(*texts: str) -> list[Line]:
    return [Line(at, json.dumps({"prompt": text}).encode()) for at, text in enumerate(texts, 1)]


def test_lines_that_begin_alike_travel_together() -> None:
    document = "a long document, the same for all of its questions; " * 20
    texts = [f"{name}{document}{question}" for name in "abcdef" for question in range(5)]
    found = [[line.number for line in portion] for portion in portions(lines(*texts), 8)]
    assert found == [list(range(1, 11)), list(range(11, 21)), list(range(21, 31))]
    alike = lines(*(f"{document}{at}" for at in range(40)))
    assert [len(portion) for portion in portions(alike, 8)] == [16, 16, 8]
    assert [len(portion) for portion in portions(lines(*map(str, range(10))), 4)] == [4, 4, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama").write(tmp_path_factory.mktemp("models") / "tiny.gguf")


def test_a_model_is_brought_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "elsewhere" / model.name
    moved.parent.mkdir()
    moved.write_bytes(model.read_bytes())
    shipment = shipment_of(str(moved), moved)
    assert shipment.files == ((model.name, model.stat().st_size),)
    moved.rename(moved.with_name("away.gguf"))  # as on a machine that has it not
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    asked: list[tuple[str, int, int]] = []

    def read(name: str, at: int, size: int) -> bytes:
        asked.append((name, at, size))
        return model.read_bytes()[at : at + min(size, 100_000)]

    found = shipment.arrive(read)
    assert found.read_bytes() == model.read_bytes()
    assert found.is_relative_to(tmp_path / "home")
    assert len(asked) == -(-model.stat().st_size // 100_000)
    assert shipment.arrive(read) == found
    assert len(asked) == -(-model.stat().st_size // 100_000)
    found.write_bytes(b"damaged")
    assert shipment.arrive(read).read_bytes() == model.read_bytes()
    found.unlink()
    with pytest.raises(InvalidParameter, match="ended"):
        shipment.arrive(lambda name, at, size: b"")
    with pytest.raises(InvalidParameter, match="changed"):
        shipment.arrive(lambda name, at, size: bytes(size))
    assert [each.name for each in found.parents[1].iterdir()] in ([], [found.parent.name])


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_shipment_keeps_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    shipment = Shipment("no model", "/nowhere/m.gguf", "x", "/nowhere", ((name, 3),))
    with pytest.raises(InvalidParameter, match="no name of a file"):
        shipment.arrive(lambda name, at, size: b"bad")
    assert not (tmp_path / "outside").exists()
    with pytest.raises(KeyError):
        shipment.read("other", 0, 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and three machines with a processor each."""
    pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 100 << 20}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        made.workers = [made.add_node(num_cpus=1, **small) for _ in range(3)]
        made.wait_for_nodes()
    yield made
    for node in [*made.workers, made.head_node]:
        made.remove_node(node, allow_graceful=False)  # or a process that does not end is waited for without a limit


@contextmanager
def source_of(path: Path, count: int) -> Iterator[Source]:
    rows = [{"prompt": f"{'the same beginning ' * (at % 3)}{at} hello world"} for at in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": 1.5}]))
    with closing(opened(str(path), lambda: pytest.fail("not piped"))) as file:
        yield Source(file, path.name)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_every_line_is_answered_once_though_a_machine_dies(cluster: Any, model: Path, tmp_path: Path) -> None:
    with edgellm.load(model, LOAD) as here, source_of(tmp_path / "alone.jsonl", 600) as source:
        alone = {answer.number: answer for answer in answers(source.lines(), here, GREEDY)}
    together: dict[int, Answer] = {}
    killed = False
    with source_of(tmp_path / "in.jsonl", 600) as source:
        for answer in spread(source, shipment_of(str(model), model), LOAD, GREEDY, cluster.address):
            assert answer.number not in together
            together[answer.number] = answer
            if not killed and len(together) >= 100:
                killed = True
                cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
    assert killed
    assert sorted(together) == list(range(1, 602))
    assert [number for number, answer in together.items() if answer.failed] == [601]

    def said(found: dict[int, Answer]) -> dict[int, Any]:
        return {number: answer.about.get("text", answer.about.get("error")) for number, answer in found.items()}

    assert said(together) == said(alone)
    assert {n: answer.usage.completion_tokens for n, answer in together.items()} == {
        n: answer.usage.completion_tokens for n, answer in alone.items()
    }


@pytest.mark.filterwarnings("ignore")
def test_the_command_spreads_a_job(cluster: Any, model: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source_of(given, 50):
        pass
    program = "from edgellm.cli import main; main()"
    command = [sys.executable, "-c", program, "batch", str(given), "-o", str(out), "--model", str(model)]
    command += ["--temperature", "0", "--max-tokens", "8", "--ctx", "512"]
    found = []
    for more in (["--ray", cluster.address], []):
        done = subprocess.run([*command, "--ordered", *more], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(done.stderr.splitlines()[-1])
    assert "51 lines, 1 error" in found[0]
    assert "0 lines" in found[1]  # the same job, which is done
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == list(range(1, 52))
    done = subprocess.run([*command, "--ray", "auto", "--dry-run"], capture_output=True, text=True, check=False)
    assert (done.returncode, "leave --ray out" in done.stderr) == (2, True)


@pytest.mark.filterwarnings("ignore")
def test_what_a_cluster_cannot_do_is_said(cluster: Any, model: Path, tmp_path: Path) -> None:
    shipment = shipment_of(str(model), model)
    wrong = LoadParams(cache=CacheParams(disk=0), backend="onnx")
    with source_of(tmp_path / "in.jsonl", 3) as source:
        with pytest.raises(Unsupported, match="leave the backend at auto"):
            list(spread(source, shipment, wrong, GREEDY, cluster.address))
        with pytest.raises(Unsupported, match="a machine of the cluster"):
            list(spread(source, shipment, LOAD, GREEDY, "ray://127.0.0.1:10001"))
        with pytest.raises(ResourceError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray start --head"):
            list(spread(source, shipment, LOAD, GREEDY, "127.0.0.1:1"))


@pytest.mark.filterwarnings("ignore")
def test_ray_data_maps_batches(cluster: Any, model: Path) -> None:
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"id": at, "prompt": f"hello {at}"} for at in range(40)]
        made = ray.data.from_items(rows).map_batches(
            edgellm.BatchModel,
            fn_constructor_kwargs={"model": str(model), "max_tokens": 8, "temperature": 0, "load_params": LOAD},
            compute=ray.data.ActorPoolStrategy(size=2),
            batch_size=10,
        )
        found = sorted(made.take_all(), key=lambda row: row["id"])
    finally:
        ray.shutdown()
    with edgellm.load(model, LOAD) as opened_here:
        alone = list(edgellm.batch([row["prompt"] for row in rows], opened_here, max_tokens=8, temperature=0))
    assert [row["text"] for row in found] == [row["text"] for row in alone]
    assert [row["prompt_tokens"] for row in found] == [row["usage"]["prompt_tokens"] for row in alone]


def test_batches_without_a_cluster(model: Path) -> None:
    mapper = edgellm.BatchModel(model, load_params=LOAD, max_tokens=4, temperature=0)
    messages = np.empty(2, object)
    messages[:] = [np.array([{"role": "user", "content": "hello", "name": None}], object), np.array([], object)]
    found = mapper({"messages": messages, "kept": np.array([1, 2])})
    assert list(found["kept"]) == [1, 2]
    assert "has no chat template" in found["error"][0]
    assert "messages" in found["error"][1]
    found = mapper({"prompt": np.array(["hello", "x" * 5000], object)})
    assert [bool(error) for error in found["error"]] == [False, True]
    assert list(found["completion_tokens"]) == [4, 0]
    with pytest.raises(InvalidParameter, match="prompt or messages"):
        mapper({"question": np.array(["x"], object)})


def test_a_damaged_model_is_not_sent(tmp_path: Path, model: Path) -> None:
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(InvalidModelFile):
        shipment_of(str(damaged), damaged)
