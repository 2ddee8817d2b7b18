"""llama.cpp on tiny random models: threads, sliding windows, growth, many requests."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from tiny_models import tiny

import edgellm
from edgellm.backends import open_backend
from edgellm.backends.base import Backend, Sequence, Step
from edgellm.backends.llamacpp.sequence import LlamaSequence
from edgellm.errors import BackendFailed, Closed
from edgellm.model import Model
from edgellm.params import LoadParams


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama").write(tmp_path_factory.mktemp("tiny") / "llama.gguf")


@pytest.fixture
def model(llama: Path) -> Iterator[Model]:
    with edgellm.load(llama) as opened:
        yield opened


def feed(backend: Backend, sequence: Sequence, tokens: list[int]) -> NDArray[np.float32]:
    rows = backend.forward([Step(sequence, tokens, "last")])[0]
    assert rows is not None
    return rows[0].copy()


def test_two_threads_on_one_model_one_cancelled_half_way_a_hundred_times(model: Model) -> None:
    texts = [f"hello world number {i}" for i in range(4)]
    expected = [model.generate(text, temperature=0, max_tokens=24, ignore_eos=True).tokens for text in texts]
    process = psutil.Process()
    memory = []
    for i in range(100):
        token = edgellm.CancelToken()
        done: dict[str, edgellm.Completion] = {}

        def ask(name: str, text: str, n: int, cancel: edgellm.CancelToken | None, into: dict[str, object]) -> None:
            into[name] = model.generate(text, temperature=0, max_tokens=n, ignore_eos=True, cancel=cancel)

        kept = threading.Thread(target=ask, args=("kept", texts[i % 4], 24, None, done))
        cut = threading.Thread(target=ask, args=("cut", "some other text", 300, token, done))
        kept.start()
        cut.start()
        threading.Timer(0.001 * (i % 20), token.cancel).start()
        kept.join(60)
        cut.join(60)
        assert done["kept"].tokens == expected[i % 4]
        assert done["cut"].finish_reason in ("cancelled", "length")
        if i in (30, 99):
            gc.collect()
            memory.append(process.memory_info().rss)
    assert memory[1] - memory[0] < 8 << 20
    assert model.generate(texts[0], temperature=0, max_tokens=24, ignore_eos=True).tokens == expected[0]


def test_the_sliding_window_never_cuts_saved_state(tmp_path: Path) -> None:
    """The window of this model is 16 tokens, far below the block size."""
    backend = open_backend(tiny("gemma3").write(tmp_path / "gemma3.gguf"), LoadParams())
    tokens = [5 + (i * 37) % 300 for i in range(240)]
    fresh = backend.new_sequence()
    feed(backend, fresh, tokens[:120])
    expected_early = feed(backend, fresh, tokens[120:140])
    fresh.close()
    sequence = backend.new_sequence()
    feed(backend, sequence, tokens[:200])
    expected_late = feed(backend, sequence, tokens[200:220])
    assert sequence.truncate(200)
    block = sequence.save(0, 200)
    sequence.close()
    restored = backend.new_sequence()
    restored.load([block])
    assert np.array_equal(feed(backend, restored, tokens[200:220]), expected_late)
    assert restored.truncate(120)
    assert np.array_equal(feed(backend, restored, tokens[120:140]), expected_early)
    restored.close()
    backend.close()


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_every_kv_type_saves_and_restores_exactly(tmp_path: Path, kv_type: str) -> None:
    path = tiny("llama", hidden=128).write(tmp_path / "llama.gguf")
    backend = open_backend(path, LoadParams(kv_type=kv_type))  # type: ignore[arg-type]
    tokens = [3 + i % 250 for i in range(100)]
    sequence = backend.new_sequence()
    feed(backend, sequence, tokens[:80])
    block = sequence.save(0, 80)
    expected = feed(backend, sequence, tokens[80:])
    sequence.close()
    restored = backend.new_sequence()
    restored.load([block])
    assert np.array_equal(feed(backend, restored, tokens[80:]), expected)
    backend.close()


def test_a_request_that_waits_for_room_is_parked_and_gives_the_same_answer(llama: Path) -> None:
    with edgellm.load(llama, ctx=512) as model:
        texts = ["one " * 100, "two " * 100, "three " * 60]
        assert all(len(model.encode(text)) > 256 for text in texts)  # no two of them fit in 512 cells
        alone = [model.generate(text, temperature=0, max_tokens=40, ignore_eos=True).tokens for text in texts]
        backend = model._engine.backend
        backend._max_cells = backend._cells  # type: ignore[attr-defined]
        together: dict[int, list[int]] = {}

        def ask(i: int) -> None:
            together[i] = model.generate(texts[i], temperature=0, max_tokens=40, ignore_eos=True).tokens

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert together == dict(enumerate(alone))


def test_a_sequence_that_cannot_be_saved_while_the_pool_grows_is_read_again(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.backends.llamacpp.backend.FIRST_CELLS", 256)
    with edgellm.load(llama, ctx=512) as model:
        prompt = (model.encode("one two three ") * 100)[:230]
        expected = model.generate(prompt, temperature=0, max_tokens=60, ignore_eos=True, cache=False).tokens
    with edgellm.load(llama, ctx=512) as model:
        lost = []

        def save(self: LlamaSequence, start: int, stop: int) -> bytes:
            lost.append(stop)
            raise BackendFailed("the window has moved on")

        monkeypatch.setattr("edgellm.engine.request.USUAL_ANSWER", 1)  # so that room is not made at once
        with monkeypatch.context() as patch:
            patch.setattr(LlamaSequence, "save", save)
            done = model.generate(prompt, temperature=0, max_tokens=60, ignore_eos=True, cache=False)
        assert lost == [256]
        assert done.tokens == expected


def test_closing_returns_the_memory(llama: Path) -> None:
    process = psutil.Process()

    def cycle() -> int:
        model = edgellm.load(llama)
        model.generate("hello", max_tokens=4, temperature=0)
        model.close()
        gc.collect()
        return int(process.memory_info().rss)

    for _ in range(5):
        before = cycle()
    for _ in range(15):
        after = cycle()
    assert after - before < 8 << 20


def test_close_during_a_generation(llama: Path) -> None:
    model = edgellm.load(llama)
    stream = model.stream("hello", max_tokens=400, temperature=0, ignore_eos=True)
    next(stream)
    model.close()
    with pytest.raises(Closed):
        for _ in stream:
            pass


def test_a_failed_progress_callback_stops_the_load(llama: Path) -> None:
    def stop(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgellm.load(llama, progress=stop)
    shares: list[float] = []
    edgellm.load(llama, progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    wrong = tiny("llama")
    wrong.metadata = {
        key.replace("llama.", "zorp."): "zorp" if key == "general.architecture" else value
        for key, value in wrong.metadata.items()
    }
    with pytest.raises(edgellm.errors.UnsupportedArchitecture, match="zorp"):
        edgellm.load(wrong.write(tmp_path / "zorp.gguf"))


def test_score_agrees_with_logprobs(model: Model) -> None:
    tokens = model.encode("hello world, hello the other world")
    scores = model.score(tokens)
    done = model.generate(tokens[:-1], temperature=0, max_tokens=1, logprobs=100, ignore_eos=True)
    assert done.logprobs is not None
    by_token = {token: logprob for token, _, logprob in done.logprobs[0].top}
    likeliest, _, best = done.logprobs[0].top[0]
    assert scores[-1] <= best + 1e-4
    if tokens[-1] in by_token:
        assert scores[-1] == pytest.approx(by_token[tokens[-1]], abs=1e-3)
    assert likeliest in range(model.info.n_vocab)
