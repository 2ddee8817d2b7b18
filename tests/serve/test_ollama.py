"""Ollama's own client, unmodified, against a server with a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
from ollama import AsyncClient, Client
from pydantic import BaseModel, ConfigDict
from serving import Running, running

from edgellm.errors import InvalidParameter
from edgellm.serve.ollama.chat import messages_of
from edgellm.serve.ollama.wire import seconds_of

MODEL = "smollm2"
HELLO: Any = [{"role": "user", "content": "Say hello."}]
GREEDY: Any = {"temperature": 0, "num_predict": 12}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    found = Client(server.url)
    yield found
    found.close()  # type: ignore[no-untyped-call]


def weather(city: str) -> str:
    """The weather in a city.

    Args:
      city: Its name.
    """
    return f"rain in {city}"


def test_an_answer_is_the_stream_put_together(client: Client) -> None:
    whole = client.chat(MODEL, HELLO, options=GREEDY)
    pieces = list(client.chat(MODEL, HELLO, options=GREEDY, stream=True))
    assert whole.message.content
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    last = pieces[-1]
    assert (whole.done_reason, last.done_reason, last.eval_count) == ("length", "length", 12)
    for each in (whole, last):
        assert each.total_duration is not None
        assert each.prompt_eval_duration is not None
        assert each.eval_duration is not None
        assert each.total_duration >= each.eval_duration > 1000  # nanoseconds
        assert each.load_duration is not None
        assert each.load_duration >= 0
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert datetime.fromisoformat((last.created_at or "").replace("Z", "+00:00")).tzinfo is not None


def test_the_other_client_gives_the_same(server: Running, client: Client) -> None:
    async def ask() -> tuple[str, str]:
        other = AsyncClient(server.url)
        whole = await other.chat(MODEL, HELLO, options=GREEDY)
        text = ""
        async for piece in await other.generate(MODEL, "Say hello.", options=GREEDY, stream=True):
            text += piece.response or ""
        await other.close()  # type: ignore[no-untyped-call]
        return whole.message.content or "", text

    said = client.chat(MODEL, HELLO, options=GREEDY).message.content
    assert asyncio.run(ask()) == (said, said)


@pytest.mark.parametrize("think", [None, False, True, "low"])
def test_whether_a_model_shall_think_may_be_said_to_any(client: Client, think: Any) -> None:
    done = client.chat(MODEL, HELLO, options=GREEDY, think=think)
    assert done.message.content
    assert done.message.thinking is None


class Invoice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int
    paid: bool


def test_a_format_is_kept(client: Client) -> None:
    options: Any = {"temperature": 0}
    done = client.chat(MODEL, HELLO, format=Invoice.model_json_schema(), options=options)
    assert Invoice.model_validate_json(done.message.content or "")
    told = client.generate(MODEL, "An invoice.", format=Invoice.model_json_schema(), options=options)
    assert Invoice.model_validate_json(told.response or "")
    free = client.chat(MODEL, HELLO, format="json", options={**options, "num_predict": 200})
    if free.done_reason == "stop":
        assert isinstance(json.loads(free.message.content or ""), dict)


def test_calls_of_tools_come_whole_and_results_go_back(client: Client) -> None:
    question: Any = {"role": "user", "content": "What is the weather in Rome?"}
    given: Any = {"model": MODEL, "messages": [question], "tools": [WEATHER], "tool_choice": "required"}
    given["options"] = {"temperature": 0}
    whole = ollama.ChatResponse(**client._client.post("/api/chat", json={**given, "stream": False}).json())
    [call] = whole.message.tool_calls or ()
    assert call.function.name == "weather"
    assert call.function.arguments["city"] in ("Rome", "Oslo")
    assert (whole.message.content, whole.done_reason) == ("", "stop")
    lines = list(map(json.loads, client._client.post("/api/chat", json=given).text.splitlines()))
    assert [each["message"].get("tool_calls") is not None for each in lines[-2:]] == [True, False]
    [streamed] = lines[-2]["message"]["tool_calls"]
    assert streamed["function"] == {"index": 0, "name": "weather", "arguments": dict(call.function.arguments)}
    assert streamed["id"]
    # The client forgets the ids of calls.
    messages = [question, whole.message, {"role": "tool", "tool_name": "weather", "content": weather("Rome")}]
    after = client.chat(MODEL, messages, tools=[weather], options=GREEDY)
    assert after.prompt_eval_count is not None
    assert whole.prompt_eval_count is not None
    assert after.prompt_eval_count > whole.prompt_eval_count


@pytest.mark.parametrize("ids", [True, False])
def test_results_find_their_calls(ids: bool) -> None:
    calls: Any = [{"function": {"index": at, "name": name, "arguments": {}}} for at, name in enumerate("aba")]
    results: Any = [{"role": "tool", "content": text, "tool_name": text[0]} for text in ("b1", "a1", "a2")]
    if ids:
        for at, call in enumerate(calls):
            call["id"] = f"c{at}"
        for result, id in zip(results, ("c1", "c2", "c0"), strict=True):
            result["tool_call_id"] = id
            del result["tool_name"]
    made = messages_of([HELLO[0], {"role": "assistant", "content": "", "tool_calls": calls}, *results])
    known = [call["id"] for call in made[1]["tool_calls"]]
    order = (1, 2, 0) if ids else (1, 0, 2)
    assert [each["tool_call_id"] for each in made[2:]] == [known[at] for at in order]
    assert [each["name"] for each in made[2:]] == ["b", "a", "a"]


def test_a_prompt_goes_on_raw_and_behind_a_context(client: Client, server: Running) -> None:
    raw = client.generate(MODEL, "Once upon a", raw=True, options=GREEDY)
    assert raw.response
    assert raw.context is None
    first = client.generate(MODEL, "My name is Ada.", system="You are terse.", options=GREEDY)
    assert first.context
    again = client.generate(MODEL, "What is my name?", context=first.context, options=GREEDY)
    said: Any = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": first.response},
        {"role": "user", "content": "What is my name?"},
    ]
    assert again.response == client.chat(MODEL, said, options=GREEDY).message.content
    assert again.context is not None
    assert again.context[: len(first.context)] == first.context
    pieces = list(client.generate(MODEL, "What is my name?", context=first.context, options=GREEDY, stream=True))
    assert "".join(piece.response or "" for piece in pieces) == again.response
    assert pieces[-1].context == again.context
    [resident] = [each for each in server.models.residents() if each.model.info.can_generate]
    [end] = resident.model.encode("<|im_end|>", bos=False)
    told = client.generate(MODEL, "What is <|im_end|>?", context=first.context, options=GREEDY)
    assert told.context is not None
    # One behind the answer before, one behind the question; none in it.
    assert list(told.context[: told.prompt_eval_count]).count(end) == list(first.context).count(end) + 2
    with pytest.raises(ollama.ResponseError, match="outside the vocabulary"):
        client.generate(MODEL, "x", context=[10**6])


def test_log_probabilities_are_of_the_tokens_of_the_text(client: Client) -> None:
    done = client.chat(MODEL, HELLO, options=GREEDY, logprobs=True, top_logprobs=2)
    assert done.logprobs is not None
    assert "".join(each.token for each in done.logprobs) == done.message.content
    assert all(each.top_logprobs and each.top_logprobs[0].logprob == each.logprob for each in done.logprobs)
    pieces = client.generate(MODEL, "Say hello.", options=GREEDY, logprobs=True, stream=True)
    streamed = [each.logprob for piece in pieces for each in piece.logprobs or ()]
    assert streamed == pytest.approx([each.logprob for each in done.logprobs])


def test_vectors_have_the_length_1(client: Client) -> None:
    done = client.embed("minilm", ["a cat", "a kitten", "the stock market"])
    rows = np.array(done.embeddings)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert done.prompt_eval_count is not None
    assert done.prompt_eval_count > 6
    assert np.allclose(client.embeddings("minilm", "a cat").embedding, rows[0], atol=1e-6)
    assert client.embed("minilm", "").embeddings == []
    long = "word " * 2000
    with pytest.raises(ollama.ResponseError, match=r"exceeds the context length.* at most 512"):
        client.embed("minilm", ["a cat", long])
    raw = client._client.post("/api/embed", json={"model": "minilm", "input": ["a cat", long], "truncate": True})
    assert raw.headers["x-edgellm-truncated"] == "1"
    cut = np.array(raw.json()["embeddings"])
    assert np.allclose(cut[0], rows[0], atol=1e-5)
    assert raw.json()["prompt_eval_count"] > 400
    with pytest.raises(ollama.ResponseError, match="dimensions"):
        client.embed("minilm", "a", dimensions=7)
    with pytest.raises(ollama.ResponseError, match="no embeddings"):
        client.embed(MODEL, "a")


def test_models_are_listed_and_shown(client: Client, server: Running) -> None:
    listed = {each.model: each for each in client.list().models}
    minilm = listed["minilm:latest"]
    assert "smollm2:latest" in listed  # its alias, by which clients are told to ask for it
    assert not any("*" in (name or "") for name in listed)
    assert minilm.details is not None
    assert (minilm.details.format, minilm.details.family) == ("gguf", "bert")
    assert minilm.size
    assert minilm.modified_at is not None
    assert len(minilm.digest or "") == 64
    shown = client.show(MODEL)
    assert shown.details is not None
    assert shown.details.parameter_size == "134.5M"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["llama.attention.head_count_kv"] == 3  # of the header
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert {"completion", "tools"} <= set(shown.capabilities or ())
    assert shown.parameters is not None
    assert shown.parameters.split() == ["num_ctx", "8192"]
    assert "embedding" in (client.show("minilm:latest").capabilities or ())
    with pytest.raises(ollama.ResponseError, match="another name of"):
        client.delete(MODEL)
    with pytest.raises(ollama.ResponseError, match=r'model "nothing" not found, try pulling it first.*minilm') as none:
        client.show("nothing")
    assert none.value.status_code == 404


def test_what_is_loaded_says_until_when(server: Running, client: Client) -> None:
    [found] = [each for each in client.ps().models if each.name == "minilm:latest"]
    assert found.expires_at is not None
    assert found.expires_at.year == 2299  # it was named
    assert found.context_length == 512
    with running(folder=(str(Path(server.models.find("minilm").path).parent),)) as other:
        mine = Client(other.url)
        assert mine.ps().models == []
        mine.embed("minilm", "a", keep_alive="1h30m")
        [left] = mine.ps().models
        assert left.expires_at is not None
        assert 5000 < (left.expires_at - datetime.now(timezone.utc)).total_seconds() <= 5400
        assert mine.generate("minilm", keep_alive=-1).done_reason == "load"
        assert [each.expires_at.year for each in mine.ps().models if each.expires_at] == [2299]
        assert mine.chat("minilm", [], keep_alive=0).done_reason == "unload"
        assert mine.ps().models == []
        mine.embed("minilm", "a", keep_alive="0")
        assert mine.ps().models == []
        assert mine.copy("minilm", "mine")["status"] == "success"
        assert [each.model for each in mine.list().models] == ["minilm:latest", "mine:latest"]
        assert mine.embed("mine", "a").model == "mine"
        assert mine.delete("mine:latest")["status"] == "success"
        assert [each.model for each in mine.list().models] == ["minilm:latest"]
        with pytest.raises(ollama.ResponseError, match="outside of the store"):
            mine.delete("minilm")
        with pytest.raises(ollama.ResponseError, match="not found"):
            mine.copy("mine", "more")
        mine.close()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("keep", "seconds"),
    [(5, 5), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25), ("-1", -1), (-3, -1), ("-1m", -1), ("0", 0)],
)
def test_keep_alive_is_read_as_it_is_sent(keep: Any, seconds: float) -> None:
    assert seconds_of(keep) == pytest.approx(seconds)


@pytest.mark.parametrize("keep", ["soon", "5x", "m", "-", "1h 5", "nan", float("inf")])
def test_keep_alive_that_is_none_is_refused(keep: Any) -> None:
    with pytest.raises(InvalidParameter, match="keep_alive"):
        seconds_of(keep)


def test_ten_turns_read_no_more_than_what_is_new(client: Client) -> None:
    messages: Any = [{"role": "system", "content": "You are brief. " * 20}]
    before = 0
    for turn in range(10):
        messages.append({"role": "user", "content": f"Tell me fact number {turn}, please."})
        given = {"model": MODEL, "messages": messages, "stream": False, "options": {"num_predict": 16, "seed": turn}}
        done = client._client.post("/api/chat", json=given).json()
        computed = done["prompt_eval_count"] - done["prompt_eval_cached"]
        assert computed <= done["prompt_eval_count"] - before + 16
        before = done["prompt_eval_count"] + done["eval_count"]
        messages.append(done["message"])
