"""A model that was closed, collected, or left behind by a fork: every handle to it says Closed, at any moment."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backend_cases import Case, prompt

import edgellm
from edgellm.backends.base import Backend
from edgellm.engine.engine import Engine
from edgellm.errors import Closed, EdgeLLMError
from edgellm.events import Completion
from edgellm.model import Model

ROUNDS = 6  # of a race
TEXT = "some words of a text "

Use = Callable[[], object]


def uses(case: Case, model: Model) -> dict[str, Use]:
    """What can be asked of a model and of the handles it gave, which are made here, in the middle of their work."""
    asked: dict[str, Use] = {
        "encode": lambda: model.encode(TEXT),
        "encode nothing": lambda: model.encode("", bos=False),
        "decode": lambda: model.decode([5, 6]),
        "decode nothing": lambda: model.decode([]),
        "count": lambda: model.count_tokens(TEXT),
    }
    if case.embeds:
        asked |= {"embed": lambda: model.embed(TEXT), "embed nothing": lambda: model.embed([])}
    if not case.generates:
        return asked
    ids = prompt(20)
    begun, unused = model.stream(ids, max_tokens=200, ignore_eos=True), model.stream(ids, max_tokens=200)
    next(begun)
    request = model.submit(ids, edgellm.GenerateParams(max_tokens=200, ignore_eos=True))
    rows, no_rows = model.logits(prompt(200)), model.logits(ids)  # the first ones come in several slices
    next(rows)
    tiny: dict[str, Any] = {"max_tokens": 1}
    asked |= {
        "score": lambda: model.score(TEXT),
        "score one": lambda: model.score([5]),
        "logits": lambda: list(model.logits(TEXT)),
        "generate": lambda: model.generate(TEXT, **tiny),
        "generate tokens": lambda: model.generate(ids, **tiny),
        "stream": lambda: list(model.stream(TEXT, **tiny)),
        "agenerate": lambda: asyncio.run(model.agenerate(TEXT, **tiny)),
        "chat": model.chat,
        "load_chat": lambda: model.load_chat("none"),
        "a stream that began": lambda: list(begun),
        "a stream that did not": lambda: list(unused),
        "a request": request.result,
        "a request again": request.result,
        "rows that began": lambda: list(rows),
        "rows that did not": lambda: list(no_rows),
    }
    if model.info.chat_template is not None:
        chat, answered = model.chat("Be kind."), model.chat()
        answered.send("a", max_tokens=2)
        answers = answered.stream("b", max_tokens=200, ignore_eos=True)
        next(answers)
        asked |= {
            "send": lambda: chat.send("x", **tiny),
            "chat stream": lambda: list(chat.stream("x", **tiny)),
            "a chat stream that began": lambda: list(answers),
            "regenerate": lambda: answered.regenerate(**tiny),
            "edit": lambda: answered.edit(0, "c", **tiny),
            "fork": chat.fork,
        }
    return asked


def wrong(asked: dict[str, Use]) -> dict[str, str]:
    """What does not say Closed, and what it does. An answer that was complete before may still be read."""
    found = {}
    for name, use in asked.items():
        try:
            given = use()
            last = given[-1] if isinstance(given, list) and given else None
            complete = given if isinstance(given, Completion) else getattr(last, "completion", None)
            if complete is None or not name.startswith("a "):
                found[name] = f"gives {given!r}"[:200]
        except Closed:
            pass
        except Exception as error:
            found[name] = repr(error)
    return found


def test_every_handle_of_a_closed_model_says_so(case: Case, model: Model) -> None:
    asked = uses(case, model)
    model.close()
    assert wrong(asked) == {}
    elsewhere: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: elsewhere.append(wrong(asked)))
    thread.start()
    thread.join()
    stateless = {"a stream that began", "a stream that did not", "rows that began", "rows that did not",
                 "a chat stream that began"}  # fmt: skip
    assert elsewhere[0].keys() <= stateless  # iterators that have ended
    assert model.info.n_vocab > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_every_handle_says_so_in_a_forked_child(case: Case, model: Model) -> None:
    asked = uses(case, model)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 and later warn of forking with threads; that is the point here
        child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.write(writer, json.dumps(wrong(asked)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert json.loads(said) == {}
    assert model.encode(TEXT) == model.encode(TEXT)  # and here it goes on


def test_a_tokenizer_ends_with_its_backend(case: Case, path: Path) -> None:
    backend = case.open(path)
    tokenizer = backend.tokenizer
    assert tokenizer.encode(TEXT)
    tokenizer.piece(5)
    backend.close()
    backend.close()
    for use in (lambda: tokenizer.encode(TEXT), lambda: tokenizer.encode(""), lambda: tokenizer.piece(5)):
        with pytest.raises(Closed):
            use()


def test_what_a_collected_model_leaves_behind_says_so(case: Case, path: Path) -> None:
    model = edgellm.load(path, case.params)
    engine = model._engine
    del model
    gc.collect()
    engine._thread.join(60)
    assert not engine._thread.is_alive()
    for use in (lambda: engine.backend.tokenizer.encode(TEXT), lambda: engine.call(lambda backend: None)):
        with pytest.raises(Closed):
            use()


def test_a_model_may_be_collected_on_its_engines_thread(case: Case, path: Path) -> None:
    def abandoned() -> tuple[Engine, Any]:
        model: Any = edgellm.load(path, case.params)
        model.itself = model  # so that the collector ends it, at a moment of its own
        return model._engine, model.stream(prompt(20), ignore_eos=True) if case.generates else None

    gc.disable()
    try:
        engine, stream = abandoned()
        del stream
        for _ in range(600):  # the request that nobody reads any more holds the model until the engine has dropped it
            with suppress(Closed):
                engine.call(lambda backend: gc.collect())
            engine._thread.join(0.01)
            if not engine._thread.is_alive():
                break
    finally:
        gc.enable()
    assert not engine._thread.is_alive()


def test_closing_while_others_use_it_ends_them_with_closed(case: Case, path: Path) -> None:
    long = TEXT * 400

    def work(model: Model, started: threading.Barrier, ends: list[BaseException | None]) -> None:
        started.wait()
        try:
            while True:
                tokens = model.encode(long)
                model.decode(tokens[:50])
                if case.generates:
                    model.generate(tokens[:3], max_tokens=1)
        except BaseException as error:
            ends.append(error)

    for at in range(ROUNDS):
        model, started = edgellm.load(path, case.params, cache=edgellm.CacheParams(memory=0, disk=0)), None
        ends: list[BaseException | None] = []
        started = threading.Barrier(4)
        threads = [threading.Thread(target=work, args=(model, started, ends)) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait()
        threading.Event().wait(0.004 * at)
        model.close()
        for thread in threads:
            thread.join(60)
        assert [type(end) for end in ends] == [Closed] * 3, ends
        with pytest.raises(EdgeLLMError):
            model.encode(TEXT)


def test_tokens_are_the_same_from_many_threads(opened: Backend) -> None:
    texts = [TEXT * count for count in range(1, 9)]
    expected = [opened.tokenizer.encode(text) for text in texts]
    found: list[list[int]] = [[]] * len(texts)

    def read(at: int) -> None:
        for _ in range(5):
            found[at] = opened.tokenizer.encode(texts[at])

    threads = [threading.Thread(target=read, args=(at,)) for at in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
