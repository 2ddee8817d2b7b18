"""Reuse never changes an answer: random conversations, edits, cancellations, evictions and restarts.

After every step the answer and its log-probabilities, to the last bit, are those of the same prompt computed with the
cache switched off.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_cases import Case
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from edgellm import CancelToken, Completion
from edgellm.backends.base import Backend
from edgellm.kv import store as kv_store
from edgellm.model import Model

ONLY = "distinct"
WORDS = st.lists(st.sampled_from(["hello", "world", "the", "red", "\n", "x" * 40, "é", "one two three "]), max_size=12)


class Conversations(RuleBasedStateMachine):
    """Prompts are token lists; an answer extends its prompt, as in a chat."""

    opener: Callable[[], Backend]
    follows_answers: bool  # whether a prompt may contain an answer
    prompts = Bundle("prompts")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.path = Path(self.folder.name)
        self.model = self._open()

    def _open(self) -> Model:
        before = kv_store.home
        kv_store.home = lambda *parts: self.path.joinpath(*parts)  # type: ignore[assignment]
        try:
            return Model(type(self).opener())
        finally:
            kv_store.home = before

    def _answer(self, prompt: list[int], **options: object) -> Completion:
        return self.model.generate(prompt, temperature=0, max_tokens=6, ignore_eos=True, logprobs=4, **options)

    def _check(self, prompt: list[int], cache: bool | str = True) -> list[int]:
        done = self._answer(prompt, cache=cache)
        fresh = self._answer(prompt, cache=False)
        assert fresh.usage.cached_tokens == 0
        assert done.tokens == fresh.tokens
        assert done.logprobs == fresh.logprobs
        report = done.cache
        assert report.from_live + report.from_memory + report.from_disk + report.computed == len(prompt)
        assert done.usage.cached_tokens == len(prompt) - report.computed
        return prompt + done.tokens if self.follows_answers else prompt

    @rule(target=prompts, words=WORDS)
    def begin(self, words: list[str]) -> list[int]:
        return self._check(self.model.encode("start " + " ".join(words)))

    @rule(target=prompts, base=prompts, words=WORDS)
    def go_on(self, base: list[int], words: list[str]) -> list[int]:
        prompt = base + self.model.encode(" and " + " ".join(words), bos=False)
        return self._check(prompt[: self.model.n_ctx - 8])

    @rule(target=prompts, base=prompts, cut=st.integers(1, 200), words=WORDS)
    def edit(self, base: list[int], cut: int, words: list[str]) -> list[int]:
        prompt = base[: max(1, len(base) - cut)] + self.model.encode("but " + " ".join(words), bos=False)
        return self._check(prompt[: self.model.n_ctx - 8])

    @rule(base=prompts)
    def again(self, base: list[int]) -> None:
        self._check(base[: self.model.n_ctx - 8])

    @rule(base=prompts)
    def in_private(self, base: list[int]) -> None:
        self._check(base[: self.model.n_ctx - 8], cache="memory")

    @rule(base=prompts, after=st.floats(0, 0.02))
    def cancel(self, base: list[int], after: float) -> None:
        token = CancelToken()
        timer = threading.Timer(after, token.cancel)
        timer.start()
        self.model.generate((base * 3)[: self.model.n_ctx - 80], max_tokens=60, ignore_eos=True, cancel=token)
        timer.cancel()

    @rule(first=prompts, second=prompts)
    def together(self, first: list[int], second: list[int]) -> None:
        """Requests that share passes round differently, so nothing of them is kept; they must leave no trace."""
        threads = [
            threading.Thread(target=self._answer, args=(prompt[: self.model.n_ctx - 8],), kwargs={"cache": False})
            for prompt in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @rule()
    def forget_memory(self) -> None:
        self.model._engine.call(lambda backend: self.model._engine.reuse._known.memory.clear(), needs_room=True)  # type: ignore[union-attr]

    @rule()
    def restart(self) -> None:
        self.model.close()
        self.model = self._open()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.close()
            self.folder.cleanup()


def test_reuse_never_changes_an_answer(case: Case, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.engine.reuse.LOGITS_SHARE", 0)  # logits are kept after the shortest prompt too

    class Machine(Conversations):
        pass

    Machine.opener = staticmethod(lambda: case.open(path, ctx=500))
    # Most engines compute an answer one token a pass, which rounds differently from reading it as a prompt.
    Machine.follows_answers = case.exact
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=15,
            phases=[Phase.generate],  # making a failure smaller takes minutes, and 15 steps can be read
            suppress_health_check=list(HealthCheck),
        ),
    )
