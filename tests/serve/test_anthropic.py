"""Anthropic's own client, unmodified, against a server with a real model; and requests as Claude Code sends them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel
from serving import Running, running
from test_tools_in_chats import CHATML, END, TOOLS, Saying

from edgellm import Model
from edgellm.prompter import Turn
from edgellm.serve.anthropic.request import MessagesRequest
from edgellm.serve.anthropic.request import asked as of_body
from edgellm.serve.ask import prompt_of

MODEL = "claude-small"  # by an alias SmolLM2
HELLO: Any = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}
CALLED = '{"name": "weather", "arguments": {"days": 2, "city": "Rome"}}'
SCRIPT = (
    "<think>\nLet me see.\n</think>\n\nI look.\n<tool_call>\n" + CALLED + "\n</tool_call>",
    "<think>\nRain.\n</think>\n\nIt rains.",
    '<tool_call>\n{"name": "weather", "argu',
    "I look twice.\n" + 2 * f"<tool_call>\n{CALLED}\n</tool_call>\n" + "That is all of it.",
)
"""What the model of the second server says, one after the other."""


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="any", max_retries=0, _strict_response_validation=True) as found:
        yield found


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anthropic]:
    """A client of a server whose model thinks and calls a tool, by SCRIPT."""
    path = a_file(tmp_path_factory.mktemp("models"))
    with running(path, opens=scripted) as found, Anthropic(base_url=found.url, api_key="a", max_retries=0) as made:
        yield made


def a_file(folder: Path) -> Path:
    """That a model may be called by, which `scripted` is."""
    path = folder / "thinker.gguf"
    path.write_bytes(b"a script")
    return path


def scripted(*_: Any) -> Model:
    return Model(Saying(*SCRIPT, template=TOOLS + CHATML + END))


def total(usage: Any) -> int:
    """Tokens of the prompt."""
    return int(usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens)


def test_an_answer_is_the_stream_put_together(client: Anthropic) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**given)
    assert (whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "max_tokens")
    report = httpx.get(str(client.base_url).rstrip("/") + f"/v1/edgellm/reports/{whole.id}")
    assert report.json()["usage"]["completion_tokens"] == 12
    assert whole.model == client.models.retrieve(MODEL).id  # the one that ran
    assert whole.id.startswith("msg_")
    assert whole._request_id is not None
    assert whole._request_id.startswith("req_")
    [block] = whole.content
    assert block.type == "text"
    assert whole.usage.output_tokens == 12
    with client.messages.stream(**given) as stream:
        assert "".join(stream.text_stream) == block.text
        final = stream.get_final_message()
    assert [each.type for each in final.content] == ["text"]
    assert final.content[0].text == block.text
    assert final.stop_reason == "max_tokens"
    assert total(final.usage) == total(whole.usage)
    assert final.usage.cache_read_input_tokens == total(whole.usage) - 1  # it was asked before
    assert final.usage.output_tokens == 12


def test_events_have_names_and_come_in_their_order(server: Running) -> None:
    given = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/messages", json=given) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["request-id"].startswith("req_")
        lines = [line for line in answer.iter_lines() if line]
    names, data = lines[::2], [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert [f"event: {each['type']}" for each in data] == names
    kinds = [each["type"] for each in data if each["type"] != "content_block_delta"]
    kinds = [kind for at, kind in enumerate(kinds) if kind != "ping" or at == 1]  # more come while it waits
    blocks = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", "ping", *blocks, "message_delta", "message_stop"]
    started, ended = data[0]["message"], data[-2]
    assert started["content"] == []
    assert started["stop_reason"] is None
    for key in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        assert started["usage"][key] == ended["usage"][key]


def test_async(server: Running) -> None:
    async def ask() -> tuple[Any, Any]:
        async with AsyncAnthropic(base_url=server.url, auth_token="any", max_retries=0) as made:
            given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 5, "extra_body": {"temperature": 0}}
            async with made.messages.stream(**given) as stream:
                final = await stream.get_final_message()
            return final, await made.messages.create(**given)

    streamed, whole = asyncio.run(ask())
    assert streamed.content[0].text == whole.content[0].text


def test_what_must_be_called_is(client: Anthropic) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}):
        given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 200, "tools": [WEATHER], "tool_choice": choice}
        given["extra_body"] = {"temperature": 0}
        done = client.messages.create(**given)
        assert done.stop_reason == "tool_use"
        [call] = done.content
        assert call.type == "tool_use"
        assert call.id.startswith("toolu_")
        assert call.input in ({"city": "Rome"}, {"city": "Oslo"})
        with client.messages.stream(**given) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use"
        assert [each.input for each in final.content if each.type == "tool_use"] == [call.input]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
        more: Any = [*HELLO, done.to_param(), {"role": "user", "content": [result]}]
        after = client.messages.create(
            model=MODEL, messages=more, max_tokens=4, tools=[WEATHER], tool_choice={"type": "none"}
        )
        assert all(each.type == "text" for each in after.content)
    with pytest.raises(anthropic.BadRequestError, match="no tool 'news'"):
        client.messages.create(**{**given, "tool_choice": {"type": "tool", "name": "news"}})


def test_thinking_text_and_calls_are_blocks(thinker: Anthropic) -> None:
    given: Any = {"model": "thinker", "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    given["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    messages: Any = [{"role": "user", "content": "Rome?"}]
    done = thinker.messages.create(messages=messages, **given)
    with thinker.messages.stream(messages=messages, **given) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert "signature" in kinds
    for each in (done, final):
        thought, text, call = each.content
        assert thought.type == "thinking"
        assert (thought.thinking, bool(thought.signature)) == ("Let me see.", True)
        assert (text.type, text.text) == ("text", "I look.")
        assert call.type == "tool_use"
        assert list(call.input.items()) == [("days", 2), ("city", "Rome")]
        assert each.stop_reason == "tool_use"
        assert each.usage.output_tokens_details is not None
        assert each.usage.output_tokens_details.thinking_tokens > 0
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain", "is_error": False}
    messages += [final.to_param(), {"role": "user", "content": [result]}]
    after = thinker.messages.create(messages=messages, **given)
    assert [each.type for each in after.content] == ["thinking", "text"]
    # All that it said is known again, reasoning and call too; what is new is the result and the marks around it.
    assert after.usage.cache_read_input_tokens is not None
    assert after.usage.cache_read_input_tokens >= total(final.usage) + final.usage.output_tokens - 16


def test_reasoning_that_is_omitted_comes_back_by_its_signature(thinker: Anthropic) -> None:
    given: Any = {"model": "thinker", "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    shown, hidden = ({"type": "adaptive", "display": each} for each in ("summarized", "omitted"))
    messages: Any = [{"role": "user", "content": "Oslo?"}]
    with thinker.messages.stream(messages=messages, thinking=hidden, **given) as stream:
        final = stream.get_final_message()
    thought = final.content[0]
    assert thought.type == "thinking"
    assert thought.thinking == ""
    done = thinker.messages.create(messages=messages, thinking=shown, **given)
    back: Any = {"role": "user", "content": "Well?"}
    counts = [
        thinker.messages.count_tokens(model="thinker", messages=[*messages, each.to_param(), back])
        for each in (done, final)
    ]
    assert counts[0] == counts[1]


def after(turns: int) -> Any:
    """Messages behind so many answers."""
    messages: Any = [{"role": "user", "content": "a"}]
    for each in range(turns):
        messages += [{"role": "assistant", "content": f"b{each}"}, {"role": "user", "content": f"c{each}"}]
    return messages


def test_one_call_is_all_where_they_are_not_parallel(thinker: Anthropic) -> None:
    given: Any = {"model": "thinker", "max_tokens": 400, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    for parallel, calls in ((True, 2), (False, 1)):
        choice: Any = {"type": "auto", "disable_parallel_tool_use": not parallel}
        with thinker.messages.stream(messages=after(3), tool_choice=choice, **given) as stream:
            final = stream.get_final_message()
        for done in (final, thinker.messages.create(messages=after(3), tool_choice=choice, **given)):
            assert [each.type for each in done.content].count("tool_use") == calls
            said = "".join(each.text for each in done.content if each.type == "text")
            assert said == ("I look twice.\nThat is all of it." if parallel else "I look twice.")
            assert done.stop_reason == "tool_use"


def test_a_call_that_is_cut_is_text(thinker: Anthropic) -> None:
    messages = after(2)
    given: Any = {"model": "thinker", "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    with thinker.messages.stream(messages=messages, **given) as stream:
        final = stream.get_final_message()
    whole = thinker.messages.create(messages=messages, **given)
    for done in (final, whole):
        assert [each.type for each in done.content] == ["text"]
        assert done.content[0].text == SCRIPT[2]
        assert done.stop_reason == "end_turn"


@pytest.mark.parametrize("thinking", ["enabled", "adaptive", "disabled", "between_tools"])
def test_thinking_may_be_asked_of_any_model(client: Anthropic, thinking: str) -> None:
    given: Any = {"type": thinking, **({"budget_tokens": 1024} if thinking == "enabled" else {})}
    extra = {"temperature": 0}
    assert client.messages.create(model=MODEL, messages=HELLO, max_tokens=2, thinking=given, extra_body=extra).content


def test_counts_are_those_of_the_answer(client: Anthropic, thinker: Anthropic) -> None:
    conversation: Any = [
        *HELLO,
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "the weather?"}]},
    ]
    for made, model in ((client, MODEL), (thinker, "thinker")):
        given: Any = {"model": model, "messages": conversation, "system": "You are terse.", "tools": [WEATHER]}
        given["thinking"] = {"type": "disabled"}
        done = made.messages.create(**given, max_tokens=1)
        assert made.messages.count_tokens(**given).input_tokens == total(done.usage)
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    counted = client.messages.count_tokens(model=MODEL, messages=long).input_tokens
    assert counted > 20_000
    with pytest.raises(anthropic.BadRequestError, match=rf"prompt is too long: {counted} tokens > \d+ maximum"):
        client.messages.create(model=MODEL, messages=long, max_tokens=1)


class Invoice(BaseModel):
    number: Literal[1, 2]
    paid: bool


def test_parse_gives_an_instance(client: Anthropic) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 100, "output_format": Invoice}
    given["extra_body"] = {"temperature": 0}
    assert isinstance(client.messages.parse(**given).parsed_output, Invoice)
    with client.messages.stream(**given) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Invoice)
    form = {"type": "json_schema", "schema": Invoice.model_json_schema()}
    raw = {"temperature": 0, "output_format": form}
    done = client.messages.create(model=MODEL, messages=HELLO, max_tokens=100, extra_body=raw)
    Invoice.model_validate_json(done.content[0].text)


def test_a_stop_sequence_is_told(client: Anthropic) -> None:
    given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "extra_body": {"temperature": 0}}
    text = client.messages.create(**given).content[0].text
    done = client.messages.create(**given, stop_sequences=["nothing of it", text[5:8]])
    with client.messages.stream(**given, stop_sequences=["nothing of it", text[5:8]]) as stream:
        final = stream.get_final_message()
    for each in (done, final):
        assert (each.stop_reason, each.stop_sequence) == ("stop_sequence", text[5:8])
        assert each.content[0].text == text[:5]


def test_an_answer_goes_on_with_what_was_begun(client: Anthropic) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": "Hello! The answer is"}]
    given: Any = {"model": MODEL, "max_tokens": 6, "extra_body": {"temperature": 0}}
    counted = client.messages.count_tokens(model=MODEL, messages=begun).input_tokens
    assert counted > client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    done = client.messages.create(messages=begun, **given)
    assert total(done.usage) == counted
    assert done.content[0].text.startswith((" ", ":", ","))
    called: Any = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    with pytest.raises(anthropic.BadRequestError, match="a tool_result for each"):
        client.messages.create(messages=[*HELLO, {"role": "assistant", "content": [called]}], **given)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, r"messages\[0\]: role"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"content\[0\].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "of type 'image'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "a document of type 'base64'",
        ),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": ["any"]}}, "tool_choice.type"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"extra_body": {"top_p": 7}}, "top_p"),
    ],
)
def test_what_is_wrong_is_told_by_its_name(client: Anthropic, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said):
        client.messages.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 1, **wrong})


def test_errors_are_in_its_shape(server: Running, client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(model="nothing", messages=HELLO, max_tokens=1)
    for path, given in (("messages", {"model": MODEL, "messages": HELLO}), ("messages/none", {})):
        answer = httpx.post(f"{server.url}/v1/{path}", json=given)
        body = answer.json()
        assert body["type"] == "error"
        assert body["error"]["type"] == ("invalid_request_error" if answer.status_code == 400 else "not_found_error")
        assert answer.headers["request-id"] == body["request_id"]
    refused = httpx.post(f"{server.url}/v1/messages", json={}, headers={"Origin": "https://example.com"})
    assert refused.json()["error"]["type"] == "permission_error"
    assert refused.headers["request-id"] == refused.json()["request_id"]


def test_what_fails_in_the_midst_is_an_event(thinker: Anthropic) -> None:
    given: Any = {"model": "thinker", "messages": HELLO, "max_tokens": 2000}
    url = str(thinker.base_url).rstrip("/")
    with httpx.stream("POST", f"{url}/v1/messages", json={**given, "stream": True, "ignore_eos": True}) as answer:
        lines = answer.iter_lines()
        while not next(lines).startswith("event: content_block_start"):
            pass
        assert httpx.post(f"{url}/v1/edgellm/unload/thinker").json()["unloaded"]
        rest = [line for line in lines if line]
    assert rest[-2] == "event: error"
    error = json.loads(rest[-1].removeprefix("data: "))
    assert error["error"]["type"] == "overloaded_error"
    assert error["request_id"] == answer.headers["request-id"]


def test_there_are_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a model is loaded, and while a call is not known to be one."""
    for module in ("ask", "anthropic.stream"):
        monkeypatch.setattr(f"edgellm.serve.{module}.BEAT_SECONDS", 0.1)
    monkeypatch.setattr("edgellm.serve.ask.HEADERS_SECONDS", 0.05)

    def slow(*_: Any) -> Model:
        time.sleep(0.5)
        return Model(Saying(*SCRIPT, template=TOOLS + CHATML + END, delay=0.01))

    with running(a_file(tmp_path), opens=slow) as found:
        assert httpx.post(f"{found.url}/v1/edgellm/unload/thinker").json()["unloaded"]
        given = {"model": "thinker", "messages": HELLO, "max_tokens": 200, "tools": [WEATHER], "stream": True}
        answer = httpx.post(f"{found.url}/v1/messages", json=given, timeout=60)
    kinds = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert kinds[0] == "ping"
    assert next(kind for kind in kinds if kind != "ping") == "message_start"
    called = len(kinds) - kinds[::-1].index("content_block_start") - 1
    assert kinds[called - 2 : called] == ["ping", "content_block_stop"]


def test_keys_come_in_both_headers(tmp_path: Path) -> None:
    with running(a_file(tmp_path), opens=scripted, api_key="secret") as found:
        by_header = Anthropic(base_url=found.url, api_key="secret"), Anthropic(base_url=found.url, auth_token="secret")
        for each in by_header:
            with each as made:
                assert made.messages.count_tokens(model="thinker", messages=HELLO).input_tokens
        wrong = Anthropic(base_url=found.url, api_key="wrong", max_retries=0)
        with wrong as made, pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            made.messages.create(model="thinker", messages=HELLO, max_tokens=1)


ORDERS = (
    "google-gemma-2-2b-it",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "HuggingFaceTB-SmolLM3-3B",
    "openai-gpt-oss-120b",
)


@pytest.mark.parametrize("name", ORDERS)
def test_templates_get_all_words_in_an_order_they_take(name: str, published_templates: dict[str, str]) -> None:
    """Of these one takes no system prompt, one no user behind a tool, one shows no system message but the first, and
    one takes no thought beside text and call."""
    call = {"type": "tool_use", "id": "toolu_abcdefghi", "name": "weather", "input": {"city": "Rome"}}
    thought = {"type": "thinking", "thinking": "I think.", "signature": "any"}
    result = {"type": "tool_result", "tool_use_id": "toolu_abcdefghi", "content": "It rains."}
    messages: Any = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "I look."}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "A reminder."}]},
        {"role": "system", "content": "Be French."},
    ]
    body = MessagesRequest(messages=messages, max_tokens=1, system="Be terse.", tools=[WEATHER])
    with Model(Saying("", template=published_templates[name])) as model:
        turn = prompt_of(model, of_body(body).ask)
    assert isinstance(turn, Turn)
    words = ["Be terse.", "Rome?", "I look.", "It rains.", "A reminder.", "Be French."]
    at = [turn.text.index(word) for word in words]
    assert at[1:] == sorted(at[1:])


BILLING = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=%d;"}
EPHEMERAL = {"type": "ephemeral"}


def as_claude_code(messages: list[dict[str, Any]], turn: int, **more: Any) -> dict[str, Any]:
    """The body of its turn-th request."""
    billing = {**BILLING, "text": BILLING["text"] % turn}
    prompt = {"type": "text", "text": "You are Claude Code, a terse helper. " * 10, "cache_control": EPHEMERAL}
    return {
        "model": "claude-large",
        "max_tokens": 16,
        "system": [billing, prompt],
        "messages": messages,
        "tools": [{**WEATHER, "cache_control": EPHEMERAL}, {"type": "web_search_20250305", "name": "web_search"}],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "temperature": 1,
        **more,
    }


def asked(server: Running, given: dict[str, Any]) -> httpx.Response:
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219", "x-api-key": "any"}
    return httpx.post(f"{server.url}/v1/messages?beta=true", json=given, headers=headers, timeout=60)


def test_a_request_of_claude_code_is_answered(server: Running) -> None:
    history: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Rome?", "cache_control": EPHEMERAL}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "EqQBCgIYAhIM"},
                {"type": "redacted_thinking", "data": "EqQBCgIYAhIM"},
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_01A", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_01A", "content": "no", "is_error": True},
                {"type": "document", "title": "Notes", "source": {"type": "text", "data": "Rain is wet."}},
            ],
        },
        {"role": "system", "content": "Answer in French."},
    ]
    answer = asked(server, as_claude_code(history, 1))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-edgellm-ignored"] == "messages.server_tool_use, tools.web_search"
    plain = as_claude_code(history, 1)
    del plain["system"][0], plain["tools"][1]
    assert total(anthropic.types.Usage(**asked(server, plain).json()["usage"])) == total(
        anthropic.types.Usage(**answer.json()["usage"])
    )


@pytest.mark.parametrize("choice", ["auto", "any"])
def test_ten_turns_read_no_more_than_what_is_new(server: Running, choice: str) -> None:
    messages: list[dict[str, Any]] = []
    before = 0
    for turn in range(10):
        messages.append({"role": "user", "content": [{"type": "text", "text": f"Tell me fact {turn} of {choice}."}]})
        if turn == 4:
            messages.append({"role": "system", "content": "The user opened a file."})
        given = as_claude_code(messages, turn, tool_choice={"type": choice}, max_tokens=60, seed=turn)
        done = asked(server, given).json()
        usage = anthropic.types.Usage(**done["usage"])
        assert usage.input_tokens <= total(usage) - before + 16, turn
        before = total(usage) + usage.output_tokens
        messages.append({"role": "assistant", "content": done["content"] or "..."})
        results = [
            {"type": "tool_result", "tool_use_id": each["id"], "content": "rain"}
            for each in done["content"]
            if each["type"] == "tool_use"
        ]
        messages += [{"role": "user", "content": results}] if results else []


def test_what_was_missed_is_told(server: Running) -> None:
    def reason(given: dict[str, Any], previous: str | None) -> Any:
        done = asked(server, {**given, "diagnostics": {"previous_message_id": previous}}).json()
        found = anthropic.types.beta.BetaMessage.model_validate(done).diagnostics
        return found and found.cache_miss_reason

    messages: list[dict[str, Any]] = [{"role": "user", "content": "Tell me of Oslo."}]
    given = as_claude_code(messages, 1)
    first = asked(server, given).json()
    assert first["diagnostics"] is None
    more = [*messages, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": "More."}]
    assert reason(as_claude_code(more, 2), None) is None
    assert reason(as_claude_code(more, 2), first["id"]) is None
    other = as_claude_code([{"role": "user", "content": "Tell me of Rome."}], 3)
    cases = {
        "system_changed": {**given, "system": "You are verbose."},
        "tools_changed": {**given, "tools": []},
        "messages_changed": other,
    }
    for kind, changed in cases.items():
        found = reason(changed, first["id"])
        assert found.type == kind
        assert 0 < found.cache_missed_input_tokens <= total(anthropic.types.Usage(**first["usage"]))
    assert reason(given, "msg_none").type == "previous_message_not_found"


def test_models_are_in_its_shape(client: Anthropic) -> None:
    assert "minilm" in [each.id for each in client.models.list()]
    assert "SmolLM2" in client.models.retrieve(MODEL).display_name


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with running(a_file(tmp_path)) as found:
        answer = httpx.post(f"{found.url}/v1/messages", json={"model": "thinker", "messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "api_error"
