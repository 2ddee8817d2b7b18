"""llama.cpp on tiny random models: threads, sliding windows, growth, many requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import tiny

import edgellm
from edgellm.backends import open_backend
from edgellm.backends.base import Backend, Sequence, Step
from edgellm.backends.llamacpp.sequence import LlamaSequence
from edgellm.errors import BackendFailed
from edgellm.model import Model
from edgellm.params import LoadParams


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama").write(tmp_path_factory.mktemp("tiny") / "llama.gguf")


@pytest.fixture
def model(llama: Path) -> Iterator[Model]:
    with edgellm.load(llama, backend="llamacpp") as opened:
        yield opened


def feed(backend: Backend, sequence: Sequence, tokens: list[int]) -> NDArray[np.float32]:
    rows = backend.forward([Step(sequence, tokens, "last")])[0]
    assert rows is not None
    return rows[0].copy()


def test_a_request_parked_for_room_gives_the_same_answer(llama: Path) -> None:
    with edgellm.load(llama, backend="llamacpp", ctx=512) as model:
        texts = ["one " * 100, "two " * 100, "three " * 60]
        assert all(len(model.encode(text)) > 256 for text in texts)  # no two of them fit in 512 cells
        alone = [model.generate(text, temperature=0, max_tokens=40, ignore_eos=True).tokens for text in texts]
        backend = model._engine.backend
        backend.pool.max_cells = backend.pool.cells  # type: ignore[attr-defined]
        together: dict[int, list[int]] = {}

        def ask(i: int) -> None:
            together[i] = model.generate(texts[i], temperature=0, max_tokens=40, ignore_eos=True).tokens

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert together == dict(enumerate(alone))


def test_an_unsaved_sequence_is_read_again_if_the_pool_grows(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.backends.llamacpp.pool.FIRST_CELLS", 256)
    with edgellm.load(llama, backend="llamacpp", ctx=512) as model:
        prompt = (model.encode("one two three ") * 100)[:230]
        expected = model.generate(prompt, temperature=0, max_tokens=60, ignore_eos=True, cache=False).tokens
    with edgellm.load(llama, backend="llamacpp", ctx=512) as model:
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


def test_a_failed_progress_callback_stops_the_load(llama: Path) -> None:
    def stop(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgellm.load(llama, backend="llamacpp", progress=stop)
    shares: list[float] = []
    edgellm.load(llama, backend="llamacpp", progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    wrong = tiny("llama")
    wrong.metadata = {
        key.replace("llama.", "zorp."): "zorp" if key == "general.architecture" else value
        for key, value in wrong.metadata.items()
    }
    with pytest.raises(edgellm.errors.UnsupportedArchitecture, match="zorp"):
        edgellm.load(wrong.write(tmp_path / "zorp.gguf"), backend="llamacpp")


def test_a_block_of_a_model_of_another_shape_is_refused(llama: Path, tmp_path: Path) -> None:
    blocks: list[bytes] = []
    for path in (tiny("llama", layers=3, hidden=32).write(tmp_path / "other.gguf"), llama):
        backend = open_backend(path, LoadParams(backend="llamacpp", ctx=256))
        sequence = backend.new_sequence()
        for block in blocks:
            with pytest.raises(BackendFailed):
                sequence.load([block])
            assert sequence.length == 0
        feed(backend, sequence, [3 + i for i in range(40)])
        blocks.append(sequence.save(0, 40))
        backend.close()
