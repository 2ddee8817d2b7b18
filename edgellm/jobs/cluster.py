"""spread: a job on the machines of a Ray cluster, by Ray Data: placement, retries and its dashboard are Ray's.

    Source ──▶ portions of lines ──▶ object store ──▶ Worker, one a machine or GPU: `answers` ──▶ Output
                                                         ▲ model: its own, or from Depot, once

A portion has the lines whose prompts begin alike, so a beginning is read by few machines. What a machine that is gone
was at work on is answered anew by others; a line is written once. https://docs.ray.io/en/latest/data/data.html
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import edgellm
from edgellm import LoadParams, Model
from edgellm.errors import EdgeLLMError, ResourceError, Unsupported
from edgellm.events import Usage
from edgellm.jobs.answers import ALIKE, answers, common
from edgellm.jobs.line import Answer, Flaw, Line, beginning, parsed
from edgellm.jobs.plain import Defaults
from edgellm.jobs.shipment import Shipment
from edgellm.jobs.source import Source

PORTION = 128  # lines that travel together, about; those of a beginning twice as many
PATIENCE = 10.0  # seconds for a connection to the cluster
SHARES = 4  # portions for each worker, where there are few lines
USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Workers:
    """How many, and what each may use."""

    count: int
    cpus: float
    gpus: float


class Worker:
    """Answers portions on one machine. Made by Ray, of what `spread` was given."""

    def __init__(self, shipment: Shipment, depot: Any, load: LoadParams, defaults: Defaults) -> None:
        import ray

        def read(name: str, at: int, size: int) -> bytes:
            piece: bytes = ray.get(depot.read.remote(name, at, size))
            return piece

        self._defaults = defaults
        self._model: Model | EdgeLLMError
        try:
            self._model = edgellm.load(shipment.arrive(read), load)
        except EdgeLLMError as error:
            self._model = error

    def __call__(self, portion: Any) -> Any:
        """portion: a table with "number" and "text" of lines. A table with the answers, in order of completion; or
        with the error that keeps all of them from being answered, of which Ray would keep the words alone."""
        import pyarrow

        given = zip(portion["number"].to_pylist(), portion["text"].to_pylist(), strict=True)
        try:
            if not isinstance(self._model, Model):
                raise self._model
            with closing(answers((Line(*each) for each in given), self._model, self._defaults)) as found:
                rows = [_row(answer) for answer in found]
        except EdgeLLMError as error:
            rows = [_row(Answer(0, {"error": base64.b64encode(pickle.dumps(error)).decode()}))]
        return pyarrow.Table.from_pylist(rows)


class Depot:
    """Reads the model's files on the machine of whoever asked."""

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment

    def read(self, name: str, at: int, size: int) -> bytes:
        """See `Shipment.read`."""
        return self._shipment.read(name, at, size)


def spread(source: Source, shipment: Shipment, load: LoadParams, defaults: Defaults, address: str) -> Generator[Answer]:
    """The answers to what is left of a source, from the cluster at `address` ("auto": the one that this machine belongs
    to), in order of completion.

    Raises Unsupported without the package, ResourceError for a cluster that is not there or fails, InputChanged, and
    what `Shipment.arrive`, `edgellm.load` and `answers` raise on a machine. Close it to stop.
    """
    if not source.todo:
        return
    with _connected(address) as ray, _said(address):
        workers = _workers(ray, load)
        depot = _depot(ray, shipment)
        here = replace(load, threads=load.threads or max(1, int(workers.cpus)))
        size = max(1, min(PORTION, -(-source.todo // (workers.count * SHARES))))
        tables = [ray.put(_table(portion)) for portion in portions(source.lines(), size)]
        given = ray.data.from_arrow_refs(tables)
        answered = given.map_batches(
            Worker,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(shipment, depot, here, defaults),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers.count, initial_size=workers.count),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
        )
        for table in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from map(_answer, table.to_pylist())


def portions(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """Lines in lists of about `size`, those that begin alike together as far as twice as many are enough."""
    portion: list[Line] = []
    last = b""
    for line in lines:
        begins = _beginning(line)
        full = len(portion) >= size and common(begins, last) < ALIKE
        if full or len(portion) >= 2 * size:
            yield portion
            portion = []
        portion.append(line)
        last = begins
    if portion:
        yield portion


def _beginning(line: Line) -> bytes:
    try:
        return beginning(parsed(line.text))
    except Flaw:
        return b""


def _table(portion: list[Line]) -> Any:
    import pyarrow

    return pyarrow.table({"number": [line.number for line in portion], "text": [line.text for line in portion]})


def _row(answer: Answer) -> dict[str, Any]:
    usage = {name: getattr(answer.usage, name) for name in USAGE}
    return {"number": answer.number, "text": answer.text, "failed": answer.failed, **usage}


def _answer(row: Mapping[str, Any]) -> Answer:
    usage, about = Usage(**{name: row[name] for name in USAGE}), json.loads(row["text"])
    if not row["number"]:
        error: EdgeLLMError = pickle.loads(base64.b64decode(about["error"]))
        raise error
    return Answer(row["number"], about, usage, row["failed"])


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected: as it is where the program did that already, else for as long as this lasts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or its C++ writes of restarts to the terminal
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Unsupported(f"clusters are Ray's, which needs {error.name}: pip install 'edgellm[ray]'") from error
    if address.startswith("ray://"):
        raise Unsupported("--ray: run this on a machine of the cluster, with auto or HOST:PORT of its head")
    mine = not ray.is_initialized()
    if mine:
        try:
            _look(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            why = str(error).partition("\n")[0][:300]
            raise ResourceError(
                f"no Ray cluster at {address} ({why}); `ray start --head` begins one, and other machines join it with "
                "`ray start --address=HOST:PORT`"
            ) from error
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        context.enable_progress_bars = before
        if mine:
            ray.shutdown()


def _look(address: str) -> None:
    """Whether anybody listens there: Ray would try for minutes. Raises OSError, ValueError."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


@contextmanager
def _said(address: str) -> Iterator[None]:
    """What Ray raises, as errors of ours."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ResourceError(f"the Ray cluster at {address} failed: {lines[0][:200]} … {lines[-1][:300]}") from error


def _workers(ray: Any, load: LoadParams) -> Workers:
    """One for each machine, or for each GPU where there are some; a large machine counts as several small ones."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(each["GPU"]) for each in alive if each.get("GPU", 0) >= 1] if load.gpu_layers != 0 else []
    having = [each for each in alive if each.get("CPU", 0) >= 1 and (not gpus or each.get("GPU", 0) >= 1)]
    if not having:
        raise ResourceError("the Ray cluster has no machine with a processor to give")
    if gpus:
        return Workers(sum(gpus), max(1.0, min(each["CPU"] / each["GPU"] for each in having) // 1), 1.0)
    least = min(each["CPU"] for each in having)
    return Workers(sum(int(each["CPU"] // least) for each in having), least, 0.0)


def _depot(ray: Any, shipment: Shipment) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Depot).options(num_cpus=0, scheduling_strategy=place, max_concurrency=8).remote(shipment)
