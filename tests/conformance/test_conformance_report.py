"""What a stopped prompt leaves behind, and whether the report of an answer is what the backend's passes were.

Every pass is observed. A report's numbers have to be those of the passes, and its words have to agree with its numbers,
through random sequences of prompts, stops, preemptions, evictions, damage and restarts.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from backend_cases import Case, prompt
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from edgellm import CancelToken, Completion
from edgellm.backends.base import Backend, Rows, Step
from edgellm.engine.generation import Generation
from edgellm.engine.request import Request
from edgellm.errors import Busy, Closed
from edgellm.events import CacheReport
from edgellm.kv import store as kv_store
from edgellm.model import Model
from edgellm.params import GenerateParams

ONLY = "distinct"
SHORTEST = 8  # tokens of a pass over a prompt, of any backend
AGAIN = SHORTEST + 4 - 1  # known tokens that a pass may have to compute again
PARAMS = GenerateParams(temperature=0, max_tokens=3, ignore_eos=True)
LENGTH, STOPPED_IN = 250, 3  # tokens of a prompt, and the pass of at most 64 in which its reading is stopped


class Watch:
    """The passes of a model. computed: of each request the tokens of its prompt, computed whole."""

    def __init__(self, model: Model) -> None:
        self.model, self.engine = model, model._engine
        self.computed: dict[Request, int] = {}
        self.due: dict[int, Callable[[], object]] = {}  # what is done in which of the next passes
        self.requests: list[Generation] = []  # that `held` has submitted
        self._forward = self.engine.backend.forward
        self.engine.backend.forward = self._watched  # type: ignore[method-assign]

    def _watched(self, steps: list[Step]) -> list[Rows | None]:
        starts = {id(step.sequence): step.sequence.length for step in steps}
        action = self.due.pop(1, None)
        self.due = {number - 1: later for number, later in self.due.items()}
        if action is not None:
            action()
        rows = self._forward(steps)
        for request in self.engine._seats.running:
            if id(request.sequence) in starts:
                assert request.sequence is not None
                end, start = len(request.prompt), starts[id(request.sequence)]
                read = min(end, request.sequence.length) - min(end, start)
                self.computed[request] = self.computed.get(request, 0) + read
        return rows

    def waits_for_a_stop(self) -> threading.Event:
        """Set when a pass has begun that goes on when its request is stopped."""

        def wait() -> None:
            reached.set()
            while self.engine._seats.running[0].stop_reason is None:
                time.sleep(0.001)

        reached = threading.Event()
        self.due[STOPPED_IN] = wait
        return reached

    def of(self, generation: Generation) -> Request | None:
        """What the engine has of a generation; None once it is done."""
        seats = self.engine._seats
        return next((each for each in (*seats.running, *seats.waiting) if each.generation is generation), None)

    def held(self, *submit: Callable[[], Generation]) -> list[Generation]:
        """Requests that the engine sees at once."""
        gate, entered = threading.Event(), threading.Event()
        hold = partial(self.engine.call, lambda backend: (entered.set(), gate.wait()), needs_room=True)
        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait()
        self.requests = [each() for each in submit]
        gate.set()
        thread.join()
        return self.requests


@pytest.fixture
def watch(case: Case, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    model = Model(case.open(path))
    yield Watch(model)
    model.close()


# What is read before a stop is known afterwards


def by_token(watch: Watch, tokens: list[int]) -> None:
    cancel = CancelToken()
    watch.due[STOPPED_IN] = cancel.cancel
    assert watch.model.generate(tokens, PARAMS, cancel=cancel).finish_reason == "cancelled"


def by_time(watch: Watch, tokens: list[int]) -> None:
    watch.due[STOPPED_IN] = lambda: watch.engine._seats.running[0].generation.cancel("timeout")
    assert watch.model.generate(tokens, PARAMS).finish_reason == "timeout"


def by_ctrl_c(watch: Watch, tokens: list[int]) -> None:
    def press(done: int, total: int) -> None:
        reached.wait()
        raise KeyboardInterrupt

    reached = watch.waits_for_a_stop()
    with pytest.raises(KeyboardInterrupt):
        list(watch.model.stream(tokens, PARAMS, progress=press))


def by_task(watch: Watch, tokens: list[int]) -> None:
    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await watch.model.agenerate(tokens, PARAMS, progress=lambda done, total: reached.wait() and task.cancel())

    reached = watch.waits_for_a_stop()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def while_parked(watch: Watch, tokens: list[int]) -> None:
    """Preempted for lack of room, and cancelled before it comes back."""

    def each() -> None:
        parked, watch.due[1] = watch.of(watch.requests[1]), each
        if parked is None:
            return
        if parked.read >= 64 and not parked.parked and not parked.done:
            raise Busy("the KV cache is full")
        if parked.parked:
            parked.generation.cancel()

    watch.due[1] = each
    other = prompt(LENGTH, seed=9)
    first, parked = watch.held(
        lambda: watch.model.submit(other, replace(PARAMS, max_tokens=20)), lambda: watch.model.submit(tokens, PARAMS)
    )
    assert (first.result().finish_reason, parked.result().finish_reason) == ("length", "cancelled")


def by_close(watch: Watch, tokens: list[int]) -> None:
    closing = threading.Thread(target=watch.model.close)

    def close() -> None:
        closing.start()
        while watch.engine._open:
            time.sleep(0.001)

    watch.due[STOPPED_IN] = close
    with pytest.raises(Closed):
        watch.model.generate(tokens, PARAMS)
    closing.join()


@pytest.mark.parametrize(
    ("stop", "where"),
    [
        *((by_token, where) for where in ("live", "memory", "disk")),
        *((stop, "live") for stop in (by_time, by_ctrl_c, by_task)),
        *((while_parked, where) for where in ("memory", "disk")),
        (by_close, "disk"),
    ],
)
def test_what_was_read_before_a_stop_is_known(
    case: Case, path: Path, watch: Watch, stop: Callable[[Watch, list[int]], None], where: str
) -> None:
    tokens, model = prompt(LENGTH), watch.model
    stop(watch, tokens)
    [read] = [read for request, read in watch.computed.items() if request.prompt == tokens]
    if where == "memory":
        for _ in range(2):  # the first may come before the request has ended
            model._engine.call(lambda backend: None, needs_room=True)  # frees the live sequence
    elif where == "disk":
        model.close()
        model = Model(case.open(path))
        watch = Watch(model)
    done = model.generate(tokens, PARAMS)
    report = done.cache
    assert 64 <= read < LENGTH
    assert report.from_live + report.from_memory + report.from_disk + report.computed == LENGTH
    if model.info.can_truncate:
        assert done.usage.cached_tokens == model._engine.backend.pass_shape.reusable(read, LENGTH)
        if stop is not while_parked:
            assert getattr(report, f"from_{where}") == done.usage.cached_tokens
        if report.from_live:
            assert report.reason.startswith(f"the prompt is known up to token {read}, where the request before")
        else:
            assert report.reason == "the prompt goes on where the known text ends"
    model.close()


# The report is what the passes were


def check(done: Completion, computed: int, n_prompt: int) -> None:
    """computed: tokens of the prompt that passes computed for this answer."""
    report, usage = done.cache, done.usage
    cached = report.from_live + report.from_memory + report.from_disk
    *_, undone = re.findall(r"(\d+) tokens were computed in vain", report.reason) or ["0"]
    assert usage.prompt_tokens == n_prompt
    assert usage.cached_tokens == cached
    assert report.computed + int(undone) == computed
    stopped = re.search(r"reading the prompt was stopped (?:at token (\d+)|before it began)$", report.reason)
    if stopped:
        assert done.finish_reason == "cancelled"
        assert cached + report.computed == int(stopped[1] or 0) < n_prompt
    else:
        assert cached + report.computed == n_prompt
    assert (done.timings.prefill_tokens_per_second > 0) == (computed > 0)
    assert words_agree(report.reason.split("; ")[0], report, cached, n_prompt), report
    again = re.search(r"(?:its last|all) (\d+) (?:known )?tokens are computed again", report.reason)
    if again and not stopped:
        assert 0 < int(again[1]) <= min(AGAIN, report.computed)
    if "checkpoint" in report.reason:
        assert f"the nearest one at token {cached}" in report.reason


def words_agree(words: str, report: CacheReport, cached: int, n_prompt: int) -> bool:
    """Whether the first reason of a report can be the reason for its numbers."""
    if report.broke_at is not None:
        assert report.expected[:1] != report.found[:1] or "\ufffd" in (report.expected + report.found)[:2]
    if words == "the whole prompt is known":
        more = report.reason.split("; ")[1:]
        return report.computed == 0 if not more else "computed again" in more[0] or "checkpoint" in more[0]
    if words in ("nothing that begins like this prompt is known", "the cache was switched off"):
        return cached == 0 and report.broke_at is None
    if words == "the prompt goes on where the known text ends":
        return cached < n_prompt and report.broke_at is None
    if at := re.fullmatch(r"the prompt is known up to token (\d+), where .* reading it", words):
        return cached <= int(at[1]) <= cached + AGAIN and report.from_live == cached > 0
    if at := re.fullmatch(r".* (?:differs|date or time) at token (\d+)", words):
        assert report.broke_at == int(at[1])
        return cached <= int(at[1]) and (int(at[1]) - cached <= AGAIN or "checkpoint" in report.reason)
    if words == "a stored block was damaged and is computed again":
        return cached < n_prompt  # which may be a token or two: blocks that begin inside of others end where they do
    if words == "the known state could not be cut to where this prompt leaves it":
        return report.computed > SHORTEST
    if re.fullmatch(r"the state of \d+ tokens was lost while the KV cache grew", words):
        return cached == 0
    return words.startswith("reading the prompt was stopped") and cached == report.computed == 0


class Reports(RuleBasedStateMachine):
    """Prompts are pieces of each other, so that they begin alike and part anywhere."""

    opener: Callable[[], Backend]
    steps = st.integers(1, 8)
    caches = st.sampled_from([True, True, True, "memory", False])
    pieces = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 130)), min_size=1, max_size=4)

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.known = [prompt(100)]
        self._open()

    def _open(self) -> None:
        before = kv_store.home
        kv_store.home = lambda *parts: Path(self.folder.name, *parts)  # type: ignore[assignment]
        try:
            self.watch = Watch(Model(type(self).opener()))
        finally:
            kv_store.home = before

    def _ask(self, *prompts: tuple[list[int], bool | str]) -> list[Completion]:
        model = self.watch.model
        options = [(tokens[: model.n_ctx - 8], replace(PARAMS, cache=cache)) for tokens, cache in prompts]
        submit = [partial(model.submit, tokens, params) for tokens, params in options]
        requests = self.watch.held(*submit) if len(submit) > 1 else [submit[0]()]  # `held` frees the live sequence
        answers = [request.result() for request in requests]
        for request, done, (tokens, _) in zip(requests, answers, options, strict=True):
            [computed] = [n for each, n in self.watch.computed.items() if each.generation is request] or [0]
            check(done, computed, len(tokens))
            self.known = [*self.known, [*tokens, *done.tokens]][-6:]
        return answers

    def _prompt(self, which: int, cut: int, pieces: list[tuple[int, int]]) -> list[int]:
        base = self.known[which % len(self.known)]
        return base[: max(0, len(base) - cut)] + [t for seed, n in pieces for t in prompt(n, seed)]

    @rule(which=st.integers(0, 5), cut=st.integers(0, 300), pieces=pieces, cache=caches)
    def ask(self, which: int, cut: int, pieces: list[tuple[int, int]], cache: bool | str) -> None:
        self._ask((self._prompt(which, cut, pieces), cache))

    @rule(which=st.integers(0, 5), cut=st.integers(0, 40), cache=caches)
    def again(self, which: int, cut: int, cache: bool | str) -> None:
        self._ask((self._prompt(which, cut, []) or [5], cache))

    @rule(which=st.integers(0, 5), cut=st.integers(0, 100), pieces=pieces, step=steps, late=st.booleans())
    def stop(self, which: int, cut: int, pieces: list[tuple[int, int]], step: int, late: bool) -> None:
        """In a pass; `late`: as it ends."""

        def cancel() -> None:
            for request in self.watch.engine._seats.running:
                if late:
                    request.generation.stop_reason = "cancelled"
                else:
                    request.generation.cancel()

        self.watch.due[step] = cancel
        self._ask((self._prompt(which, cut, pieces), True))
        self.watch.due.clear()

    @rule(
        parts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 200), pieces), min_size=2, max_size=4),
        data=st.data(),
    )
    def together(self, parts: list[tuple[int, int, list[tuple[int, int]]]], data: st.DataObject) -> None:
        """Several at once, of which some are stopped, preempted or disturbed by an interruption."""
        watch, engine = self.watch, self.watch.engine

        def full() -> None:
            if len(engine._seats.running) > 1:
                raise Busy("the KV cache is full")

        def cancel(at: int) -> None:
            watch.requests[at % len(watch.requests)].cancel()

        for _ in range(data.draw(st.integers(0, 3))):
            actions = [partial(cancel, data.draw(st.integers(0, 3))), engine.backend.interrupt, full]
            watch.due[data.draw(st.integers(1, 14))] = actions[data.draw(st.integers(0, 2))]
        self._ask(*((self._prompt(*part), data.draw(self.caches)) for part in parts))
        watch.due.clear()

    @rule(budget=st.sampled_from([0, 10_000, 100_000, 1 << 30]))
    def memory(self, budget: int) -> None:
        def shrink(_: Backend) -> None:
            known = self.watch.engine.reuse._known
            assert known is not None
            known.memory.clear()
            known.memory.budget = budget

        self.watch.engine.call(shrink)

    @rule()
    def forget_live(self) -> None:
        self.watch.engine.call(lambda backend: None, needs_room=True)

    @rule(damaged=st.none() | st.integers(0, 20))
    def restart(self, damaged: int | None) -> None:
        self.watch.model.close()
        files = sorted(Path(self.folder.name).rglob("*.kv"))
        if damaged is not None and files:
            file = files[damaged % len(files)]
            file.write_bytes(file.read_bytes()[:-1] + b"?")
        self._open()

    def teardown(self) -> None:
        if hasattr(self, "watch"):
            self.watch.model.close()
            self.folder.cleanup()


def test_a_report_is_what_the_passes_were(case: Case, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.engine.reuse.LOGITS_SHARE", 1)  # logits are kept after short prompts too

    class Machine(Reports):
        pass

    Machine.opener = staticmethod(lambda: case.open(path, ctx=500))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=40 if case.name == "echo" else 6,
            stateful_step_count=20,
            phases=[Phase.generate],  # making a failure smaller takes minutes, and 20 steps can be read
            suppress_health_check=list(HealthCheck),
        ),
    )
