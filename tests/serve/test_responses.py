"""OpenAI's Responses, by its own client in strict mode and by requests as Codex sends them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from serving import Running

MODEL = "smollm2"
GIVEN: Any = {"model": MODEL, "max_output_tokens": 12, "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    "strict": True,
}
CALLING: Any = {"model": MODEL, "tools": [WEATHER], "tool_choice": "required", "temperature": 0}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True) as found:
        yield found


def raw(client: OpenAI, body: dict[str, Any], path: str = "responses") -> httpx.Response:
    return httpx.post(f"{client.base_url}{path}", json=body, timeout=60)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose numbers and names are as they should be."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def test_an_answer_is_complete(client: OpenAI) -> None:
    done = client.responses.create(
        **GIVEN, input="Say hello.", instructions="Be brief.", metadata={"a": "b"}, user="me", truncation="auto"
    )
    assert (done.status, done.incomplete_details and done.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert done.output_text
    [message] = done.output
    assert message.type == "message"
    assert message.status == "incomplete"
    assert (done.metadata, done.user, done.truncation, done.instructions) == ({"a": "b"}, "me", "auto", "Be brief.")
    assert (done.tool_choice, done.tools, done.parallel_tool_calls) == ("auto", [], True)
    assert done.usage is not None
    assert done.usage.output_tokens == 12
    assert done.usage.total_tokens == done.usage.input_tokens + 12
    same = client.responses.create(**GIVEN, input="Say hello.", instructions="Be brief.")
    assert same.output_text == done.output_text
    assert same.usage is not None
    assert same.usage.input_tokens_details.cached_tokens == same.usage.input_tokens - 1
    assert same.usage.input_tokens_details.cache_write_tokens == 1


def test_a_stream_is_the_answer_event_by_event(client: OpenAI) -> None:
    whole = client.responses.create(**GIVEN, input="Say hello.")
    events = events_of(raw(client, {**GIVEN, "input": "Say hello.", "stream": True}))
    names = [each["type"].removeprefix("response.") for each in events]
    deltas = [each for each in events if each["type"] == "response.output_text.delta"]
    assert names == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert len(deltas) > 3
    assert "".join(each["delta"] for each in deltas) == whole.output_text
    assert all(each["logprobs"] == [] for each in deltas)
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert events[0]["response"]["output"] == []
    assert {each["response"]["id"] for each in events if "response" in each} == {events[0]["response"]["id"]}


def test_what_the_client_puts_together_is_the_answer(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "input": "Say hello.", "temperature": 0}
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    given["text"] = {"format": {"type": "json_schema", "name": "n", "schema": schema}, "verbosity": "low"}
    with client.responses.stream(**given) as stream:
        text = ""
        for event in stream:
            text += event.delta if event.type == "response.output_text.delta" else ""
        done = stream.get_final_response()
    assert json.loads(text) == {"n": 7}
    assert done.output_text == text
    assert done.status == "completed"


class Invoice(BaseModel):
    number: int
    paid: bool


def test_parse_gives_an_instance(client: OpenAI) -> None:
    done = client.responses.parse(model=MODEL, input="An invoice.", text_format=Invoice, temperature=0)
    assert isinstance(done.output_parsed, Invoice)
    with client.responses.stream(model=MODEL, input="An invoice.", text_format=Invoice, temperature=0) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Invoice)


def test_logprobs_are_of_the_tokens_of_the_text(client: OpenAI) -> None:
    given: Any = {**GIVEN, "input": "Say hello.", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [message] = client.responses.create(**given).output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert b"".join(bytes(each.bytes) for each in part.logprobs).decode() == part.text
    assert all(len(each.top_logprobs) == 2 for each in part.logprobs)
    streamed = [
        each.logprob
        for event in client.responses.create(**given, stream=True)
        if event.type == "response.output_text.delta"
        for each in event.logprobs
    ]
    assert streamed == pytest.approx([each.logprob for each in part.logprobs])


def test_a_call_and_its_result_go_round(client: OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "How is the weather in Rome?"}]
    done = client.responses.create(**CALLING, input=asked)
    [call] = done.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    assert done.status == "completed"
    with client.responses.stream(**CALLING, input=asked) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        [streamed] = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert "".join(pieces) == streamed.arguments
    assert json.loads(streamed.arguments) == json.loads(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    rest: Any = {"model": MODEL, "tools": [WEATHER], "tool_choice": "none", "temperature": 0, "max_output_tokens": 6}
    resent = client.responses.create(**rest, input=[*asked, call.model_dump(), result])
    chained = client.responses.create(**rest, input=[result], previous_response_id=done.id)
    parts: Any = {**result, "output": [{"type": "input_text", "text": "rain"}]}
    split = client.responses.create(**rest, input=[*asked, call.model_dump(), parts])
    assert resent.output_text == chained.output_text == split.output_text
    assert resent.usage is not None
    assert chained.usage is not None
    assert done.usage is not None
    assert resent.usage.input_tokens == chained.usage.input_tokens
    known = done.usage.input_tokens + done.usage.output_tokens
    assert chained.usage.input_tokens_details.cached_tokens > known


def test_some_of_the_tools_may_be_called(client: OpenAI) -> None:
    other = {**WEATHER, "name": "other"}
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    done = client.responses.create(
        **{**CALLING, "tools": [other, WEATHER], "tool_choice": choice}, input="Go.", parallel_tool_calls=False
    )
    [call] = done.output
    assert call.type == "function_call"
    assert call.name == "weather"
    assert len(done.tools) == 2
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.responses.create(**{**CALLING, "tool_choice": {"type": "web_search_preview"}}, input="Go.")


def test_an_answer_goes_on_from_one_that_is_stored(client: OpenAI) -> None:
    first = client.responses.create(**GIVEN, input="My name is Ada.", instructions="Shout.")
    assert client.responses.retrieve(first.id) == first
    given: Any = {**GIVEN, "input": "Who am I?"}
    second = client.responses.create(**given, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    resent: Any = [{"role": "user", "content": "My name is Ada."}, *[each.model_dump() for each in first.output]]
    again = client.responses.create(**GIVEN, input=[*resent, {"role": "user", "content": "Who am I?"}])
    assert again.output_text == second.output_text
    assert again.usage is not None
    assert second.usage is not None
    assert again.usage.input_tokens == second.usage.input_tokens  # no instructions in either
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    referring: Any = [resent[0], reference, {"role": "user", "content": "Who am I?"}]
    assert client.responses.create(**GIVEN, input=referring).output_text == second.output_text
    listed = list(client.responses.input_items.list(second.id, order="asc"))
    assert [each.type for each in listed] == ["message"] * 3
    assert [each.id for each in client.responses.input_items.list(second.id, limit=1)] == [
        each.id for each in reversed(listed)
    ]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    for id in (first.id, "resp_unknown"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**given, previous_response_id=id)
        assert refused.value.code == "previous_response_not_found"
    assert client.responses.create(**given, previous_response_id=second.id).output_text


def test_what_is_not_stored_is_not_found(client: OpenAI) -> None:
    first = client.responses.create(**GIVEN, input="Hi.", store=False)
    with pytest.raises(openai.BadRequestError, match=r"not found") as refused:
        client.responses.create(**GIVEN, input="And?", previous_response_id=first.id)
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(first.id)
    kept = client.responses.create(**GIVEN, input="Hi.")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(kept.id)


def test_tokens_are_counted_as_they_are_read(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "instructions": "Be brief.", "input": "Hi.", "tools": [WEATHER]}
    done = client.responses.create(**given, max_output_tokens=1)
    assert done.usage is not None
    assert client.responses.input_tokens.count(**given).input_tokens == done.usage.input_tokens
    long = client.responses.input_tokens.count(model=MODEL, input="word " * 20_000)
    assert long.input_tokens > 20_000


def test_too_long_a_prompt_is_told_both_ways(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "input": "word " * 20_000}
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is \d+ tokens") as refused:
        client.responses.create(**given)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    events = events_of(raw(client, {**given, "stream": True}))
    assert [each["type"] for each in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
    turns: Any = [{"role": "user", "content": text} for text in ("word " * 20_000, "Say hello.")]
    cut = client.responses.create(**GIVEN, input=turns, truncation="auto")
    assert cut.output_text == client.responses.create(**GIVEN, input="Say hello.").output_text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input_file"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input.0..role"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "compaction"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "msg_1"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "call_id"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]}, "arguments"),
        ({"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]}, "name"),
        ({"input": [{"type": ["message"], "content": 1}]}, "message"),
        ({"input": [{"role": "user", "content": [{"type": {}}]}]}, "part of type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}, "no text"),
        ({"input": [{"type": "reasoning", "content": "x"}]}, "content"),
        ({"tools": [{"type": "function"}]}, "name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "namespace"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "allowed_tools"),
        ({"input": []}, "empty"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "xml"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": 5}}}}, "schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncation": "some"}, "truncation"),
        ({"model": "nothing"}, "there are"),
    ],
)
def test_what_is_wrong_is_told_by_its_name(client: OpenAI, wrong: dict[str, Any], named: str) -> None:
    for stream in (False, True):
        asked: Any = {"model": MODEL, "input": "Hi.", "stream": stream, **wrong}
        with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=named):
            client.responses.create(**asked)


def test_where_a_prompt_left_another_is_told(client: OpenAI) -> None:
    def diagnosed(compared: str, **given: Any) -> Any:
        options: Any = {"comparison_response_id": compared}
        return client.responses.create(**{**GIVEN, **given}, prompt_cache_options=options).prompt_cache_diagnostics

    story = "One, two, three, four, five. " * 10
    first = client.responses.create(**GIVEN, input=story)
    assert first.usage is not None
    assert diagnosed(first.id, input="More.", previous_response_id=first.id).type == "cache_hit"
    missed = diagnosed(first.id, input=story + "Six.")
    assert (missed.type, missed.reason) == ("cache_miss", "input_changed")
    assert 0 < first.usage.input_tokens - missed.comparison_reusable_tokens < 10
    assert 0 < missed.cache_missed_tokens < 20
    assert diagnosed(first.id, input=story, tools=[WEATHER]).reason == "tools_changed"
    assert diagnosed("resp_none", input=story).type == "comparison_response_not_found"


def test_ten_turns_read_no_more_than_what_is_new(client: OpenAI) -> None:
    given: Any = {"model": MODEL, "max_output_tokens": 16, "instructions": "You are terse. " * 20}
    for chained in (True, False):
        items: list[Any] = []
        before, previous = 0, None
        for turn in range(10):
            new: Any = {"role": "user", "content": f"Tell me fact number {turn}, please, {chained}."}
            asked = [new] if chained else [*items, new]
            done = client.responses.create(
                **given, input=asked, previous_response_id=previous, extra_body={"seed": turn}
            )
            assert done.usage is not None
            computed = done.usage.input_tokens - done.usage.input_tokens_details.cached_tokens
            assert computed <= done.usage.input_tokens - before + 16
            assert done.usage.input_tokens_details.cached_tokens >= before - 16
            before = done.usage.input_tokens + done.usage.output_tokens
            previous = done.id if chained else None
            items += [new, *(each.model_dump() for each in done.output)]
