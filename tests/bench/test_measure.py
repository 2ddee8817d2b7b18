from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from edgellm.bench import measure
from edgellm.bench.contestants import BARE_LOOP, EDGELLM, Candidate
from edgellm.bench.measure import Bench, Metric, Sizes
from edgellm.errors import BackendFailed, Unsupported

SIZES = Sizes(prefill=16, depth=32, decode=4)
SLOW = Candidate("slow", EDGELLM.build, "a fake")


class Fake:
    """A worker that answers at once and claims the times it is told. `speeds`: tokens per second by contestant."""

    def __init__(self, log: list[Any], speeds: Mapping[str, float], n_ctx: int = 512, broken: str = "") -> None:
        self.log, self.speeds, self.n_ctx, self.broken = log, speeds, n_ctx, broken
        self.closed: list[str] = []
        self.started: list[str] = []

    def __call__(self, name: str, path: str, n_ctx: int, threads: int) -> Any:
        self.started.append(name)
        return FakeWorker(self, name)


class FakeWorker:
    def __init__(self, all: Fake, name: str) -> None:
        self.all, self.name = all, name
        self.sent: list[Any] = [None]

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def receive(self, limit: float | None = None) -> dict[str, Any]:
        message = self.sent.pop(0)
        if message is None:
            return {"settings": {"n_ctx": self.all.n_ctx}}
        if "write" in message:
            return {"prompt": {"tokens": [message["write"]["seed"]] * message["write"]["size"], "text": ""}}
        prompt, new = len(message["prompt"]["tokens"]), message["new_tokens"]
        self.all.log.append((self.name, prompt, message["prompt"]["tokens"][0]))
        if self.name == self.all.broken:
            raise BackendFailed("it broke")
        speed = self.all.speeds[self.name]
        sample = {"first_s": prompt / speed, "rest_s": (new - 1) / speed, "prompt": prompt, "produced": new}
        return {"sample": {**sample, "answer": [1] * new}, "peak_bytes": 5_000_000, "idle_cpu_s": 0.1, "idle_s": 1.0}

    def ask(self, message: Any, limit: float | None = None) -> dict[str, Any]:
        self.send(message)
        return self.receive(limit)

    def close(self) -> None:
        self.all.closed.append(self.name)


@pytest.fixture(autouse=True)
def fixed_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "read_bandwidth", lambda threads: 1e9)


def run(fake: Fake, rounds: int = 2) -> Bench:
    bench = Bench("model.gguf", [EDGELLM, BARE_LOOP, SLOW], SIZES, 2, launch=fake)
    list(bench.rounds(rounds))
    return bench


def test_all_answer_the_same_prompt_in_rotating_order() -> None:
    log: list[Any] = []
    run(Fake(log, {"edgellm": 100, "bare loop": 50, "slow": 10}))
    rounds = [log[i : i + 12] for i in range(0, len(log), 12)]  # 4 cases, 3 contestants
    assert [[name for name, *_ in one[:3]] for one in rounds] == [
        ["edgellm", "bare loop", "slow"],
        ["bare loop", "slow", "edgellm"],
        ["slow", "edgellm", "bare loop"],
    ]
    assert [prompt for _, prompt, _ in rounds[0]] == [8] * 3 + [16] * 3 + [32] * 3 + [8] * 3
    seeds = [one[case * 3][2] for one in rounds for case in range(3)]
    assert len(set(seeds)) == len(seeds)  # nobody ever sees a prompt twice
    assert all(len({seed for *_, seed in one[at : at + 3]}) == 1 for one in rounds for at in (0, 3, 6, 9))


def test_warm_up_is_discarded_and_ratios_are_within_rounds() -> None:
    bench = run(Fake([], {"edgellm": 100, "bare loop": 50, "slow": 10}))
    assert {sample["round"] for sample in bench.samples} == {1, 2}
    assert len(bench.bandwidths) == 2
    by_title = {metric.title: metric for metric in bench.metrics()}
    assert by_title["prefill, 16 tokens"].values["edgellm"] == pytest.approx([100, 100])
    assert by_title["decode, depth 32"].values["bare loop"] == pytest.approx([50, 50])
    assert by_title["decode, depth 0"].ratios("slow") == pytest.approx([10, 10])
    assert by_title["peak memory at 32 tokens"].median("slow") == 5
    assert bench.same_answers() == {"bare loop": True, "slow": True}
    assert bench.idle_shares() == pytest.approx({"edgellm": 0.1, "bare loop": 0.1, "slow": 0.1})


def test_the_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    metric = Metric("t", "u", values={"edgellm": [10, 40, 30], "other": [10, 20, 40]})
    ratio = metric.to_dict()["of"]["other"]["ratio"]
    assert ratio == {"median": 1.0, "low": 0.75, "high": 2.0, "values": [1.0, 2.0, 0.75]}
    assert metric.to_dict()["of"]["edgellm"] == {"median": 30, "values": [10, 40, 30]}


def test_where_less_is_better_the_ratio_is_turned_round() -> None:
    assert Metric("t", "ms", lower=True, values={"edgellm": [100], "other": [250]}).ratios("other") == [2.5]


def test_a_contestant_without_a_figure_has_no_ratio() -> None:
    metric = Metric("t", "u", values={"edgellm": [10.0], "other": [None]})
    assert metric.ratios("other") == []
    assert metric.to_dict()["of"]["other"]["ratio"]["median"] is None


def test_a_contestant_that_fails_is_left_out_with_its_reason() -> None:
    fake = Fake([], {"edgellm": 100, "bare loop": 50}, broken="slow")
    bench = run(fake)
    assert bench.absent == {"slow": "it broke"}
    assert bench.names == ["edgellm", "bare loop"]
    assert "slow" in fake.closed
    assert {sample["contestant"] for sample in bench.samples} == {"edgellm", "bare loop"}
    assert [len(metric.values["edgellm"]) for metric in bench.metrics()] == [2] * 7


def test_a_failure_of_edgellm_is_an_error() -> None:
    with pytest.raises(BackendFailed, match="it broke"):
        run(Fake([], {"bare loop": 50, "slow": 10}, broken="edgellm"))


def test_a_context_too_small_is_refused_and_nothing_runs() -> None:
    fake = Fake([], {}, n_ctx=36)
    with pytest.raises(Unsupported, match="context of 36 tokens here, and this measurement needs 37"):
        Bench("model.gguf", [EDGELLM, BARE_LOOP], SIZES, 2, launch=fake)
    assert sorted(fake.closed) == sorted(fake.started) == ["bare loop", "edgellm"]


def test_the_context_holds_the_longest_prompt_and_its_answer() -> None:
    assert SIZES.n_ctx == 256
    assert measure.FULL.n_ctx == 2304
