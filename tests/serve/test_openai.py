"""OpenAI's own client, unmodified and strict, against a server with a real model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from serving import Running

MODEL = "smollm2"
HELLO: Any = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True) as found:
        yield found


def test_models_are_listed_and_found(client: OpenAI) -> None:
    names = [each.id for each in client.models.list()]
    assert "minilm" in names
    assert client.models.retrieve("minilm").id == "minilm"
    with pytest.raises(openai.NotFoundError, match=r"there are: .*minilm"):
        client.models.retrieve("nothing/like:that")


def test_an_answer_is_the_stream_put_together(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**given)
    pieces = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"
    assert pieces[-1].choices == []
    usage = pieces[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # it was asked before
    assert len({piece.id for piece in pieces}) == 1


def test_several_choices_differ_by_their_seeds(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "seed": 5, "temperature": 1.5}
    done = client.chat.completions.create(**given, n=3)
    texts = [choice.message.content for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert client.chat.completions.create(**given).choices[0].message.content == texts[0]
    streamed = dict.fromkeys(range(3), "")
    for piece in client.chat.completions.create(**given, n=3, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


def test_logprobs_are_of_the_tokens_of_the_text(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 6, "temperature": 0}
    choice = client.chat.completions.create(**given, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert b"".join(bytes(each.bytes or b"") for each in tokens).decode() == choice.message.content
    assert all(each.top_logprobs[0].token == each.token and len(each.top_logprobs) == 3 for each in tokens)
    streamed = [
        each.logprob
        for piece in client.chat.completions.create(**given, logprobs=True, stream=True)
        for choice in piece.choices
        if choice.logprobs is not None
        for each in choice.logprobs.content or ()
    ]
    assert streamed == pytest.approx([each.logprob for each in tokens])
    with pytest.raises(openai.BadRequestError, match="needs logprobs"):
        client.chat.completions.create(**given, top_logprobs=3)


def test_biases_and_stops_have_an_effect(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    first = client.chat.completions.create(**given, logprobs=True).choices[0]
    assert first.message.content
    stopped = client.chat.completions.create(**given, stop=first.message.content[5:8]).choices[0]
    assert stopped.message.content == first.message.content[:5]
    assert stopped.finish_reason == "stop"
    only = client.chat.completions.create(**given, logit_bias={"100": 100}).choices[0]
    assert len(set((only.message.content or "").split())) <= 2


class Invoice(BaseModel):
    number: int
    paid: bool


def test_parse_gives_an_instance(client: OpenAI) -> None:
    done = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Invoice, temperature=0)
    assert isinstance(done.choices[0].message.parsed, Invoice)
    with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Invoice, temperature=0) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Invoice)


def test_json_is_an_object_whatever_is_asked(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}, max_tokens=200
    )
    choice = done.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "xml"})  # type: ignore[call-overload]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called_is(client: OpenAI, choice: Any) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "temperature": 0}
    done = client.chat.completions.create(**given).choices[0]
    assert done.finish_reason == "tool_calls"
    [call] = done.message.tool_calls or ()
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    name, arguments, ids = "", "", []
    for piece in client.chat.completions.create(**given, stream=True):
        for delta in piece.choices[0].delta.tool_calls or ():
            assert delta.function is not None
            ids += [delta.id] if delta.id else []
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert (name, arguments) == ("weather", call.function.arguments)
    assert len(ids) == 1
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    more = [*HELLO, done.message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(
        model=MODEL, messages=more, tools=[WEATHER], tool_choice="none", max_tokens=4
    )
    assert not after.choices[0].message.tool_calls


def test_one_call_is_one_where_they_are_not_parallel(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, temperature=0
    )
    assert len(done.choices[0].message.tool_calls or ()) == 1
    assert done.choices[0].finish_reason == "tool_calls"


def test_completions_go_on_with_text_and_tokens(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "max_tokens": 5, "temperature": 0}
    done = client.completions.create(**given, prompt=["Once upon", "The sky is"], n=2, logprobs=1)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert done.choices[0].text == done.choices[1].text
    assert done.choices[0].logprobs is not None
    assert "".join(done.choices[0].logprobs.tokens or ()) == done.choices[0].text
    echoed = client.completions.create(**given, prompt="Once upon", echo=True)
    assert echoed.choices[0].text == "Once upon" + done.choices[0].text
    # Its strict mode takes no piece whose finish_reason is null, as OpenAI's own are.
    lenient = OpenAI(base_url=client.base_url, api_key="any")
    pieces = list(lenient.completions.create(**given, prompt="Once upon", stream=True, echo=True))
    assert "".join(piece.choices[0].text for piece in pieces) == echoed.choices[0].text
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(**given, prompt="a", suffix="b")


def test_embeddings_are_the_same_both_ways(client: OpenAI) -> None:
    texts = ["a cat", "a kitten", "the stock market"]
    lenient = OpenAI(base_url=client.base_url, api_key="any")  # the strict mode takes no base64
    packed = lenient.embeddings.create(model="minilm", input=texts)  # asks for base64 by itself
    plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    rows = np.array([each.embedding for each in plain.data])
    assert np.allclose(rows, [each.embedding for each in packed.data], atol=1e-6)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert packed.usage.prompt_tokens > 3
    raw = httpx.post(
        str(client.base_url) + "embeddings", json={"model": "minilm", "input": "a", "encoding_format": "base64"}
    )
    assert len(base64.b64decode(raw.json()["data"][0]["embedding"])) == 4 * 384
    with pytest.raises(openai.BadRequestError, match="embedding"):
        client.embeddings.create(model=MODEL, input="a")


def test_too_long_a_prompt_is_told_with_its_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is \d+ tokens") as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20_000}])
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "hot"},
        {"top_p": 7},
        {"messages": []},
        {"messages": "hi"},
        {"max_tokens": -2},
        {"n": 0},
        {"stop": [5]},
    ],
)
def test_what_is_wrong_is_told_by_its_name(client: OpenAI, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **wrong})


def test_what_nobody_knows_is_named_in_a_header(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=1, extra_body={"mirostat": 2, "user": "me", "min_p": 0.1}
    )
    assert raw.headers["x-edgellm-ignored"] == "mirostat"


def test_effort_is_for_models_that_know_it(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=1, temperature=0, reasoning_effort="high"
    )
    assert done.choices[0].message.content


def test_ten_turns_read_no_more_than_what_is_new(client: OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "You are terse. " * 20}]
    before = 0
    for turn in range(10):
        messages.append({"role": "user", "content": f"Tell me fact number {turn}, please."})
        done = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16, seed=turn)
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        computed = done.usage.prompt_tokens - (done.usage.prompt_tokens_details.cached_tokens or 0)
        assert computed <= done.usage.prompt_tokens - before + 16
        before = done.usage.prompt_tokens + done.usage.completion_tokens
        messages.append(done.choices[0].message.model_dump(exclude_none=True))


def test_words_of_other_servers_are_understood(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "temperature": 0}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for extra in ({"guided_json": schema}, {"json_schema": schema}):
        done = client.chat.completions.create(**given, extra_body=extra)
        assert isinstance(json.loads(done.choices[0].message.content or "")["a"], int)
    for extra in ({"guided_choice": ["yes"]}, {"choices": ["yes"]}, {"guided_regex": "ye[s]"}):
        done = client.chat.completions.create(**given, extra_body=extra)
        assert done.choices[0].message.content == "yes"
    off = {"seed": -1, "top_k": -1, "repetition_penalty": 1.1, "repeat_last_n": 64.0}
    raw = client.chat.completions.with_raw_response.create(**given, extra_body=off)
    assert "x-edgellm-ignored" not in raw.headers
    assert client.chat.completions.create(**{**given, "max_tokens": -1}, stop=" ").choices[0].finish_reason == "stop"
