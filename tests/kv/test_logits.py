"""The logits after a prompt are kept, so that the very same prompt costs nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tiny_models import tiny

import edgellm
from edgellm.engine.request import Request
from edgellm.engine.reuse import Reuse
from edgellm.errors import Busy
from edgellm.kv.prefixes import PrefixCache
from edgellm.kv.store import BlockStore, store_path
from edgellm.model import Model


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    return tiny("llama").write(tmp_path / "model.gguf")


def ask(model: Model, prompt: list[int], **options: object) -> edgellm.Completion:
    return model.generate(prompt, temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, **options)  # type: ignore[arg-type]


def load(path: Path) -> Model:
    return edgellm.load(path, ctx=500, micro_batch=64, backend="llamacpp")  # whose passes have 8 tokens or more


def text(model: Model, count: int) -> list[int]:
    return (model.encode("hello world, one two three ") * count)[:count]


def test_the_same_prompt_costs_nothing_in_any_tier(path: Path) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)
        live = ask(model, prompt)
        model._engine.call(lambda backend: None, needs_room=True)  # nothing stays live
        memory = ask(model, prompt)
        fresh = ask(model, prompt, cache=False)
        one_longer = ask(model, [*prompt, 70])
    with load(path) as model:
        disk = ask(model, prompt)
    assert [done.cache.computed for done in (first, live, memory, disk)] == [300, 0, 0, 0]
    assert (live.cache.from_live, memory.cache.from_memory, disk.cache.from_disk) == (300, 300, 300)
    assert live.cache.reason == "the whole prompt is known"
    assert first.logprobs == live.logprobs == memory.logprobs == disk.logprobs == fresh.logprobs
    assert one_longer.cache.computed == 9
    assert (live.usage.prompt_tokens, live.usage.cached_tokens) == (300, 300)


def test_other_samples_of_the_same_prompt_cost_nothing_either(path: Path) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        options = {"temperature": 1.0, "max_tokens": 8, "ignore_eos": True}
        model.generate(prompt, max_tokens=1)
        done = [model.generate(prompt, seed=seed, **options) for seed in (1, 2, 1)]
        fresh = model.generate(prompt, seed=1, cache=False, **options)
        assert [one.cache.computed for one in done] == [0, 0, 0]
        assert done[0].tokens == done[2].tokens == fresh.tokens != done[1].tokens


def test_logits_are_kept_only_if_small_beside_the_state(path: Path) -> None:
    with load(path) as model:
        short = text(model, 40)
        ask(model, short)
        assert ask(model, short).cache.computed == 8


def test_private_logits_are_in_no_listing(path: Path) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        ask(model, prompt, cache="memory")
        assert ask(model, prompt, cache="memory").cache.computed == 0
        assert ask(model, prompt).cache.computed == 300
    store = BlockStore(store_path())
    [entry] = store.conversations()
    assert entry.tokens == 305  # of prompt and answer but for the last token, which was sampled and not fed
    store.close()


def test_damaged_logits_are_computed_again(path: Path) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)
    size = 4 * first_vocab(path)
    [file] = [f for f in store_path().glob("??/*.kv") if abs(f.stat().st_size - size) < 400]
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with load(path) as model:
        again = ask(model, prompt)
        assert (again.cache.from_disk, again.cache.computed) == (292, 8)
        assert again.logprobs == first.logprobs


def test_the_first_token_comes_before_the_state_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)
    loaded: list[int] = []
    load_deferred = Reuse.load_deferred

    def slowly(self: Reuse, request: Request) -> None:
        assert request.sequence is not None
        assert request.sequence.length == 0
        assert seen.wait(10)  # the reader has the first token by now
        load_deferred(self, request)
        loaded.append(request.sequence.length)

    monkeypatch.setattr(Reuse, "load_deferred", slowly)
    seen = threading.Event()
    with load(path) as model:
        chunks = model.stream(prompt, temperature=0, max_tokens=6, ignore_eos=True)
        tokens = list(next(chunks).tokens)
        assert tokens == first.tokens[: len(tokens)]
        assert not loaded
        seen.set()
        for chunk in chunks:
            tokens += chunk.tokens
        assert tokens == first.tokens
        assert loaded == [300]
        assert model.generate(text(model, 299), max_tokens=1).cache.from_live > 250  # and the state is there


def test_nothing_is_sampled_twice_without_room_for_state(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)
    parked: list[Request] = []
    load_deferred = Reuse.load_deferred
    with load(path) as model:
        engine = model._engine

        def no_room(self: Reuse, request: Request) -> None:
            if parked:
                load_deferred(self, request)
            else:
                parked.append(request)
                request.deferred, request.reused = None, 0
                assert engine._seats.park(request)  # which has no state to save
                engine._seats.waiting.append(request)

        monkeypatch.setattr(Reuse, "load_deferred", no_room)
        again = ask(model, prompt)
    assert parked
    assert again.logprobs == first.logprobs


def test_what_had_no_room_is_computed_and_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)

    def full(*_: object) -> None:
        raise Busy("no cells")

    monkeypatch.setattr(PrefixCache, "load", full)
    with load(path) as model:
        again = ask(model, prompt)
    assert again.logprobs == first.logprobs
    assert (again.cache.computed, again.cache.from_disk, again.usage.cached_tokens) == (300, 0, 0)
    assert again.cache.reason == "there was no room for the known state"


def test_one_token_of_a_known_prompt_loads_no_state(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)
    monkeypatch.setattr(PrefixCache, "load", None)
    with load(path) as model:
        one = model.generate(prompt, temperature=0, max_tokens=1)
        assert one.tokens == first.tokens[:1]
        assert (one.cache.from_disk, one.cache.computed, one.usage.cached_tokens) == (300, 0, 300)


def test_damaged_state_behind_whole_logits_is_computed_again(path: Path) -> None:
    with load(path) as model:
        prompt = text(model, 300)
        first = ask(model, prompt)
    size = 4 * first_vocab(path)
    files = [f for f in store_path().glob("??/*.kv") if abs(f.stat().st_size - size) >= 400]
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with load(path) as model:
        again = ask(model, prompt)
        assert again.logprobs == first.logprobs
        assert again.cache.computed == 300
        assert again.cache.reason == "a stored block was damaged and is computed again"
        assert ask(model, prompt, cache=False).logprobs == first.logprobs


def first_vocab(path: Path) -> int:
    return edgellm.inspect(path).n_vocab
