"""Vectors of texts, where the model gives any."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from backend_cases import Case, prompt

import edgellm
from edgellm.backends.base import Backend
from edgellm.errors import Closed, ContextOverflow, Interrupted, InvalidParameter
from edgellm.model import Model

ONLY = "embeds"
LENGTHS = [5, 60, 1, 17, 100, 64, 2, 33, 65, 8, 9, 120, 3]
TEXTS = [prompt(length, seed=i) for i, length in enumerate(LENGTHS)]


def test_a_text_has_one_vector_whatever_it_is_asked_with(case: Case, opened: Backend) -> None:
    vectors = opened.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), opened.info.n_embd)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    again = opened.embed(TEXTS)
    assert np.array_equal(vectors, again)
    one_by_one = np.concatenate([opened.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(one_by_one, vectors, rtol=0, atol=1e-3 * np.abs(vectors).max())
    backwards = opened.embed(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(backwards, vectors, rtol=0, atol=1e-3 * np.abs(vectors).max())
    if case.unit:
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_another_text_has_another_vector(opened: Backend) -> None:
    text = prompt(40)
    changed = [[*text[:at], 251 - text[at], *text[at + 1 :]] for at in (0, 20, 39)]
    vectors = opened.embed([text, *changed])
    assert all(np.abs(vector - vectors[0]).max() > 1e-4 for vector in vectors[1:])


def test_a_text_as_long_as_the_context(opened: Backend) -> None:
    assert np.isfinite(opened.embed([prompt(opened.n_ctx), prompt(3)])).all()


def test_what_has_no_vector_is_refused_and_nothing_is_cut(model: Model) -> None:
    n_ctx = model.n_ctx
    with pytest.raises(ContextOverflow) as error:
        model.embed([prompt(3), prompt(n_ctx + 1)])
    assert (error.value.needed, error.value.n_ctx) == (n_ctx + 1, n_ctx)
    for bad in ([], [model.info.n_vocab], [-1], [5, 1 << 40]):
        with pytest.raises(InvalidParameter):
            model.embed([prompt(3), bad])
    assert model.embed([]).shape == (0, model.info.n_embd)
    many = model.embed([prompt(4, seed=i) for i in range(150)])
    assert many.shape == (150, model.info.n_embd)
    assert np.abs(many[149] - model.embed([prompt(4, seed=149)])[0]).max() < 1e-3


def test_an_interruption_stops_it_once(case: Case, path: Path) -> None:
    backend = case.open(path)
    expected = backend.embed(TEXTS)
    if backend.name != "echo":  # which computes them within no pass
        backend.interrupt()
        with pytest.raises(Interrupted):
            backend.embed(TEXTS)
    assert np.array_equal(backend.embed(TEXTS), expected)
    backend.close()


def test_closing_ends_it(case: Case, path: Path) -> None:
    model = edgellm.load(path, case.params)
    texts = TEXTS * 400
    timer = threading.Timer(0.05, model.close)

    def embed_on_and_on() -> None:
        while True:
            model.embed(texts)

    timer.start()
    with pytest.raises(Closed):
        embed_on_and_on()
    timer.join()
