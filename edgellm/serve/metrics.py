"""Metrics: what is counted, for Prometheus. https://prometheus.io/docs/instrumenting/exposition_formats/"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgellm import Completion, machine
from edgellm.serve.models import Models

if TYPE_CHECKING:
    from edgellm.serve.ask import Answering

WATCH_SECONDS = 0.05  # between two looks at how late the event loop is
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Of one server."""

    def __init__(self, models: Models) -> None:
        self._models = models
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "edgellm_requests", "Requests that were answered", ["path", "status"], registry=registry
        )
        self._tokens = Counter(
            "edgellm_tokens",
            "Tokens of prompts, by where their state came from, and of answers",
            ["model", "source"],
            registry=registry,
        )
        self._first = Histogram(
            "edgellm_first_token_seconds", "To the first token", ["model"], buckets=SECONDS, registry=registry
        )
        self._whole = Histogram(
            "edgellm_answer_seconds", "To the end of an answer", ["model"], buckets=SECONDS, registry=registry
        )
        self._delay = Histogram(
            "edgellm_event_loop_delay_seconds",
            "How late the server's event loop came to what was due",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )
        registry.register(_Now(models))

    async def watch(self) -> None:
        """Measure the event loop's delay, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + WATCH_SECONDS
            await asyncio.sleep(WATCH_SECONDS)
            self._delay.observe(max(0.0, loop.time() - due))

    def answered(self, answering: Answering, done: Completion) -> None:
        cache, resident = done.cache, self._models.resident(answering.listed)
        model = answering.listed.name if resident is None else resident.listed.name  # clients may make up other names
        tiers = {"live": cache.from_live, "memory": cache.from_memory, "disk": cache.from_disk}
        for source, count in {**tiers, "computed": cache.computed, "answer": len(done.tokens)}.items():
            self._tokens.labels(model, source).inc(count)
        self._first.labels(model).observe(done.timings.ttft_ms / 1e3)
        self._whole.labels(model).observe((done.timings.ttft_ms + done.timings.decode_ms) / 1e3)

    def replied(self, path: str, status: int) -> None:
        """path: of the route. status: 0 where nothing was sent, because the client had gone."""
        self._requests.labels(path, str(status or 499)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Now(Collector):
    """What is so when it is asked for."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        memory = machine.memory()
        available = GaugeMetricFamily("edgellm_memory_available_bytes", "Of this machine or container")
        available.add_metric([], memory.available)
        yield available
        requests = GaugeMetricFamily("edgellm_generations", "Generations by state", labels=["model", "state"])
        passes = CounterMetricFamily("edgellm_passes", "Passes of the engine", labels=["model", "kind"])
        seconds = CounterMetricFamily("edgellm_pass_seconds", "Time in passes", labels=["model", "kind"])
        tokens = CounterMetricFamily("edgellm_pass_tokens", "Tokens that went into passes", labels=["model", "kind"])
        for resident in self._models.residents():
            name, activity = resident.listed.name, resident.model.activity()
            requests.add_metric([name, "running"], activity.running)
            requests.add_metric([name, "waiting"], activity.waiting)
            for kind, done in (("prefill", activity.prefill), ("decode", activity.decode)):
                passes.add_metric([name, kind], done.passes)
                seconds.add_metric([name, kind], done.seconds)
                tokens.add_metric([name, kind], done.tokens)
        yield from (requests, passes, seconds, tokens)
