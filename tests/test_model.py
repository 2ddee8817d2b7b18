"""Model on the echo backend: the public Python interface."""

from __future__ import annotations

import asyncio
import gc
import inspect
import queue
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import edgellm
from edgellm.backends.base import Buffer
from edgellm.backends.echo import BOS, EchoBackend, EchoSequence
from edgellm.errors import Closed, ContextOverflow, EdgeLLMError, InvalidParameter, ModelNotFound, Unsupported
from edgellm.kv.blocks import Block
from edgellm.kv.store import BlockStore, store_path
from edgellm.model import Model
from edgellm.params import CacheParams


@pytest.fixture
def model() -> Iterator[Model]:
    with edgellm.load("anything", backend="echo", ctx=256) as opened:
        yield opened


def test_every_public_name_is_there() -> None:
    for name in edgellm.__all__:
        assert getattr(edgellm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgellm.nothing  # noqa: B018


def test_help_tells_of_the_options_of_every_call() -> None:
    """They are keywords that a signature does not list."""
    methods = [each for kind in (Model, edgellm.Chat) for each in vars(kind).values() if inspect.isfunction(each)]
    takers = [each for each in methods if "**options" in str(inspect.signature(each))]
    assert {each.__name__ for each in takers} >= {"generate", "astream", "send", "edit"}
    assert [each.__name__ for each in takers if "options" not in (each.__doc__ or "")] == []
    assert "`cancel`" in str(Model.generate.__doc__)


def test_generate_and_stream_say_the_same(model: Model) -> None:
    done = model.generate("the same text", temperature=0)
    assert str(done) == done.text == "the same text"
    assert "".join(chunk.text for chunk in model.stream("the same text", temperature=0)) == done.text
    assert done.backend == "echo"


def test_token_ids_are_accepted_where_text_is(model: Model) -> None:
    ids = model.encode("ids")
    assert ids == [BOS, *b"ids"]
    assert model.generate(ids, temperature=0).text == "ids"
    assert model.generate(np.array(ids), temperature=0).text == "ids"
    assert model.decode(ids) == "ids"
    assert model.decode(ids, special=True) == "<|bos|>ids"
    assert model.count_tokens("ids") == 4
    with pytest.raises(InvalidParameter, match="prompt: 'no' is no token id"):
        model.generate(["no"], temperature=0)  # type: ignore[list-item]


def test_options_travel_as_keywords_or_as_one_object(model: Model) -> None:
    params = edgellm.GenerateParams(temperature=0, max_tokens=4)
    assert len(model.generate("abcdefgh", params).tokens) == 4
    assert len(model.generate("abcdefgh", params, max_tokens=2).tokens) == 2
    with pytest.raises(InvalidParameter, match="unknown option 'max_token'; GenerateParams has: max_tokens"):
        model.generate("a", max_token=3)
    with pytest.raises(InvalidParameter, match="unknown option 'n_ctx'; LoadParams has: ctx"):
        edgellm.load("x", n_ctx=5)
    with pytest.raises(InvalidParameter, match="temperature=-1"):
        model.generate("a", temperature=-1)
    with pytest.raises(InvalidParameter, match="no turns"):
        model.generate("a", overflow="drop-oldest")


def test_of_a_character_that_is_cut_nothing_is_said(model: Model) -> None:
    """A token is a byte here."""
    for most in range(1, 10):
        chunks = list(model.stream("<é😀>", temperature=0, max_tokens=most))
        said = "<é😀>".encode()[: most - 1].decode("utf-8", "ignore")  # the first token is a control token
        assert ("".join(each.text for each in chunks), chunks[-1].completion.text) == (said, said)  # type: ignore[union-attr]


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    first = model.generate("seeded", temperature=5.0, top_k=0, top_p=1, min_p=0, max_tokens=20, seed=7)
    again = model.generate("seeded", temperature=5.0, top_k=0, top_p=1, min_p=0, max_tokens=20, seed=7)
    other = model.generate("seeded", temperature=5.0, top_k=0, top_p=1, min_p=0, max_tokens=20, seed=8)
    drawn = model.generate("seeded", temperature=5.0, top_k=0, top_p=1, min_p=0, max_tokens=20)
    repeated = model.generate("seeded", temperature=5.0, top_k=0, top_p=1, min_p=0, max_tokens=20, seed=drawn.seed)
    assert first.tokens == again.tokens != other.tokens
    assert drawn.tokens == repeated.tokens
    assert first.seed == 7


def test_asyncio_generate_stream_and_cancel() -> None:
    async def scenario() -> None:
        with Model(EchoBackend(delay=0.005)) as model:
            done = await model.agenerate("async text", temperature=0)
            assert done.text == "async text"
            pieces = [chunk.text async for chunk in model.astream("async text", temperature=0)]
            assert "".join(pieces) == "async text"
            both = await asyncio.gather(*(model.agenerate(f"number {i}", temperature=0) for i in range(5)))
            assert [done.text for done in both] == [f"number {i}" for i in range(5)]
            task = asyncio.create_task(model.agenerate("z" * 400, temperature=0))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            token = edgellm.CancelToken()
            asyncio.get_running_loop().call_later(0.1, token.cancel)
            cancelled = await model.agenerate("z" * 400, temperature=0, cancel=token)
            assert cancelled.finish_reason == "cancelled"
            with pytest.raises(ContextOverflow):
                await model.agenerate("z" * 9000)
            assert (await model.agenerate("after", temperature=0)).text == "after"

    asyncio.run(scenario())


def test_score_gives_the_log_probability_of_every_token(model: Model) -> None:
    text = "scored text of some length, longer than one pass of sixteen tokens"
    scores = model.score(text)
    tokens = model.encode(text)
    assert scores.shape == (len(tokens) - 1,)
    assert (scores < 0).all()
    done = model.generate(tokens[:20], temperature=0, max_tokens=1, logprobs=100)
    assert done.logprobs is not None
    by_token = {token: logprob for token, _, logprob in done.logprobs[0].top}
    if tokens[20] in by_token:
        assert scores[19] == pytest.approx(by_token[tokens[20]], abs=1e-5)
    with pytest.raises(ContextOverflow, match="the context holds 256"):
        model.score("x" * 300)


class Unlisted:
    def __iter__(self) -> NoReturn:
        raise TypeError("there is nothing in it")


def test_embeddings_have_a_row_per_text(model: Model) -> None:
    vectors = model.embed(["a", "b", "a"])
    assert vectors.shape == (3, model.info.n_embd)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
    with pytest.raises(InvalidParameter, match="texts"):  # whose vectors would come in no order
        model.embed({"a", "b"})  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="texts"):
        model.embed(Unlisted())  # type: ignore[arg-type]


def test_a_closed_model_says_so_and_ends_its_thread() -> None:
    model = edgellm.load("x", backend="echo")
    thread = model._engine._thread
    model.close()
    model.close()
    assert not thread.is_alive()
    with pytest.raises(Closed):
        model.generate("late")


def test_a_forgotten_model_is_closed_with_its_thread() -> None:
    model = edgellm.load("x", backend="echo")
    thread = model._engine._thread
    del model
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_read_from_a_model_keeps_it_open() -> None:
    def opened() -> Model:
        return edgellm.load("x", backend="echo", ctx=256)

    params = edgellm.GenerateParams(temperature=0, max_tokens=20)

    async def asynchronously() -> list[str]:
        assert (await opened().agenerate("hi", params)).text == "hi"
        return [chunk.text async for chunk in opened().astream("hi", params)]

    def chunks() -> Iterator[str]:
        stream = opened().stream("hi", params)
        gc.collect()
        return (chunk.text for chunk in stream)

    assert "".join(chunks()) == "hi"
    assert "".join(asyncio.run(asynchronously())) == "hi"
    assert opened().submit("hi", params).result().text == "hi"
    assert "".join(chunk.text for chunk in opened().chat().stream("hi", params)) == "hi"
    assert sum(len(rows) for rows in opened().logits("hi there")) == 9
    arrived: queue.Queue[object] = queue.Queue()
    opened().submit("hi", params, sink=arrived.put)
    assert "hi" in str(arrived.get(timeout=10))


def test_a_model_only_an_answer_held_is_closed_after_it() -> None:
    model = edgellm.load("x", backend="echo", ctx=256)
    thread = model._engine._thread
    request = model.submit("hi", edgellm.GenerateParams(max_tokens=3))
    unread = model.stream("z" * 100)
    del model
    assert request.result().usage.completion_tokens == 3
    assert thread.is_alive()  # for the stream that nobody has read from
    del unread
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_closing_an_unread_stream_cancels_it() -> None:
    with Model(EchoBackend(delay=0.01)) as model:
        stream = model.stream("z" * 400)
        stream.close()  # type: ignore[attr-defined]
        assert model.generate("after", temperature=0, max_tokens=3).text == "af"
        assert not model._engine._seats.running


def test_a_sink_that_fails_ends_its_own_generation_alone(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    def sink(item: object) -> None:
        raise OSError("no room")

    ended = model.submit("one", edgellm.GenerateParams(temperature=0), stream=True, sink=sink).result()
    assert ended.finish_reason == "cancelled"
    assert "takes the pieces" in caplog.text
    assert model.generate("two", temperature=0).text == "two"


def test_a_time_limit_longer_than_a_timer_takes_is_none(model: Model) -> None:
    assert model.generate("x", temperature=0, timeout=1e300).text == "x"


def test_missing_and_foreign_files(tmp_path: object) -> None:
    with pytest.raises(ModelNotFound):
        edgellm.load("/nowhere/model.gguf")
    with pytest.raises(ModelNotFound):
        edgellm.load("no-such-model:1b", offline=True)
    from pathlib import Path

    foreign = Path(str(tmp_path)) / "model.bin"
    foreign.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(Unsupported, match="GGUF"):
        edgellm.load(foreign)
    for name, backend, words in (("m.gguf", "onnx", "convert .*m.gguf -o FOLDER"), ("m.onnx", "native", "ONNX model")):
        (Path(str(tmp_path)) / name).write_bytes(b"\x08\x0a")
        with pytest.raises(Unsupported, match=words):
            edgellm.load(Path(str(tmp_path)) / name, backend=backend)
    (Path(str(tmp_path)) / "empty.gguf").write_bytes(b"")
    with pytest.raises(EdgeLLMError):
        edgellm.load(Path(str(tmp_path)) / "empty.gguf")


def test_two_threads_one_cancelled_half_way_many_times() -> None:
    with Model(EchoBackend(micro_batch=16, delay=0.0005)) as model:
        for i in range(100):
            token = edgellm.CancelToken()
            texts: dict[str, edgellm.Completion] = {}

            def ask(name: str, text: str, cancel: edgellm.CancelToken | None, into: dict[str, object]) -> None:
                into[name] = model.generate(text, temperature=0, cancel=cancel)

            kept = threading.Thread(target=ask, args=("kept", f"right answer {i}", None, texts))
            dropped = threading.Thread(target=ask, args=("dropped", "w" * 60, token, texts))
            kept.start()
            dropped.start()
            threading.Timer(0.002 * (i % 10), token.cancel).start()
            kept.join(20)
            dropped.join(20)
            assert texts["kept"].text == f"right answer {i}"
            assert texts["dropped"].finish_reason in ("cancelled", "stop")
            assert texts["dropped"].text == "w" * len(texts["dropped"].text)


TEXT = "hello " * 30


def exported() -> list[tuple[Block, Buffer]]:
    with edgellm.load("x", backend="echo", cache=CacheParams(disk=0)) as model:
        model.generate(TEXT, max_tokens=2)
        return model.export_state(model.encode(TEXT))


def test_state_is_checked_before_any_of_it_is_taken() -> None:
    (first, payload), *_ = good = exported()
    odd = [replace(first, tokens=first.tokens[:0]), replace(first, start=-1), replace(first, tokens=first.tokens[1:])]
    odd += [replace(first, key=b"x"), replace(first, parent=None), replace(first, tokens=None)]  # type: ignore[arg-type]
    with edgellm.load("x", backend="echo", cache=CacheParams(disk=0)) as model:
        for bad in ([(first, 5)], [(first, None)], [(first, "x")], *([(block, payload)] for block in odd)):
            with pytest.raises(InvalidParameter, match="blocks"):
                model.adopt_state(bad)  # type: ignore[arg-type]
        assert model.adopt_state(good)
        assert model.generate(TEXT + "x", max_tokens=1).cache.from_memory > 0


HEAD = struct.Struct("<4sII")  # of saved state: magic, start, stop


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("damage", ["short", "other", "longer than the context", "what fails in an engine's own way"])
def test_a_block_that_no_engine_takes_is_computed_again(
    damage: str, disk: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    [(block, payload)] = exported()
    payload = bytes(payload)
    if damage == "short":
        payload = payload[:-1]
    elif damage == "other":
        payload = b"nonsense"
    elif damage.startswith("longer"):
        payload = HEAD.pack(payload[:4], 0, 10**6) + payload[HEAD.size :]
    else:
        take = EchoSequence.load
        bad, payload = payload + b"!", payload + b"!"

        def load(sequence: EchoSequence, blocks: list[Buffer]) -> None:
            if bad in blocks:
                raise TypeError("not in this way")
            take(sequence, blocks)

        monkeypatch.setattr(EchoSequence, "load", load)
    if disk:
        with closing(BlockStore(store_path())) as store:
            store.write(block, payload, label="", words="")
            assert store.flush(20)
    with edgellm.load("x", backend="echo", cache=CacheParams(disk=None if disk else 0)) as model:
        assert disk or model.adopt_state([(block, payload)])
        done = model.generate(TEXT + "x", max_tokens=1)
        assert (done.cache.from_memory, done.cache.from_disk) == (0, 0)
        assert done.cache.reason == "a stored block was damaged and is computed again"
        assert "could not be loaded" in caplog.text
        model.generate("something else", max_tokens=1)  # the sequence that was kept alive is another one
        done = model.generate(TEXT + "x", max_tokens=1)
        assert done.cache.from_memory > 150
    if disk:
        with edgellm.load("x", backend="echo") as model:
            done = model.generate(TEXT + "y", max_tokens=1)
            assert done.cache.from_disk > 150
