"""Responses of a model whose answers are known: reasoning, calls, what looks like one, and long silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from serving import running
from test_tools_in_chats import CALL, THOUGHT, Saying

from edgellm.model import Model

ADD: Any = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}
GIVEN: Any = {"model": "said", "tools": [ADD], "temperature": 0}
SEND: Any = {"type": "custom", "name": "apply_patch", "description": "Patch.", "format": {"type": "text"}}
FILES: Any = {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [{**ADD, "name": "read"}]}


@contextmanager
def saying(path: Path, *answers: str, kind: type[Saying] = Saying, **options: Any) -> Iterator[OpenAI]:
    """A client of a server whose model gives these answers, one after the other."""

    def opens(*_: Any) -> Model:
        return Model(kind(*answers, **options))

    with running(path, alias=(f"said={path}",), opens=opens) as server:
        base = f"{server.url}/v1"
        with OpenAI(base_url=base, api_key="any", max_retries=0, _strict_response_validation=True) as client:
            yield client


def streamed(client: OpenAI, **given: Any) -> tuple[list[Any], Any]:
    """The events, and what the client's own accumulator makes of them."""
    with client.responses.stream(**{**GIVEN, **given}) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events, events[-1].response


def plain(output: Any) -> list[tuple[str, ...]]:
    """Items without their ids."""
    found: list[tuple[str, ...]] = []
    for item in output:
        if item.type == "function_call":
            found.append((item.type, item.name, item.arguments))
        else:
            found.append((item.type, "".join(part.text for part in item.content)))
    return found


def test_reasoning_text_and_calls_are_items(smollm2: Path) -> None:
    with saying(smollm2, f"{THOUGHT}I add.\n{CALL}\n{CALL}", "It is 3.") as client:
        events, done = streamed(client, input="1 + 2?", reasoning={"effort": "medium", "summary": "auto"})
        call = ("function_call", "add", '{"a": 1, "b": 2}')
        assert plain(done.output) == [("reasoning", "Hm, <tool_call> no."), ("message", "I add."), call, call]
        whole = client.responses.create(**GIVEN, input="1 + 2?", reasoning={"effort": "medium"})
        assert plain(whole.output) == plain(done.output)
        told = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.id for item in told] == [item.id for item in done.output]
        assert plain(told) == plain(done.output)
        assert done.usage.output_tokens_details.reasoning_tokens > 0
        thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        assert thought == "Hm, <tool_call> no."
        # what is said goes back as it was said, from here and from there, and nothing of it is read again
        results: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "3"}
            for item in done.output
            if item.type == "function_call"
        ]
        history: Any = [{"role": "user", "content": "1 + 2?"}, *(item.model_dump() for item in done.output), *results]
        reasoning: Any = {"effort": "medium"}
        resent = client.responses.create(**GIVEN, input=history, reasoning=reasoning)
        chained = client.responses.create(**GIVEN, input=results, previous_response_id=done.id, reasoning=reasoning)
        assert resent.output_text == chained.output_text == "It is 3."
        assert resent.usage is not None
        assert chained.usage is not None
        assert resent.usage.input_tokens == chained.usage.input_tokens
        known = done.usage.input_tokens + done.usage.output_tokens - 2
        assert resent.usage.input_tokens_details.cached_tokens >= known


@pytest.mark.parametrize("cut", [None, 60])
def test_what_is_no_call_is_text_in_the_end(smollm2: Path, cut: int | None) -> None:
    wrong = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": oops}}\n</tool_call>'
    with saying(smollm2, f"I add. {wrong} So.") as client:
        _, done = streamed(client, input="1 + 2?", max_output_tokens=cut)
        whole = client.responses.create(**GIVEN, input="1 + 2?", max_output_tokens=cut)
    assert plain(done.output) == plain(whole.output) == [("message", f"I add.{wrong} So."[: cut and cut - 1])]
    assert done.status == whole.status == ("completed" if cut is None else "incomplete")
    assert done.output[0].status == done.status


def test_text_behind_a_call_belongs_to_its_answer(smollm2: Path) -> None:
    with saying(smollm2, f"I add.\n{CALL}\nThere.", "Yes.") as client:
        _, done = streamed(client, input="1 + 2?")
        assert [item.type for item in done.output] == ["message", "function_call", "message"]
        result: Any = {"type": "function_call_output", "call_id": done.output[1].call_id, "output": "3"}
        after = client.responses.create(**GIVEN, input=[result], previous_response_id=done.id)
        assert after.usage is not None
        assert after.usage.input_tokens_details.cached_tokens >= done.usage.input_tokens


def test_one_call_is_one_where_they_are_not_parallel(smollm2: Path) -> None:
    with saying(smollm2, f"I add.\n{CALL}\n{CALL}") as client:
        given: Any = {"input": "1 + 2?", "parallel_tool_calls": False}
        _, done = streamed(client, **given)
        assert plain(done.output) == [("message", "I add."), ("function_call", "add", '{"a": 1, "b": 2}')]
        assert done.status == "completed"
        assert plain(client.responses.create(**GIVEN, **given).output) == plain(done.output)


def test_an_answer_of_nothing_is_a_message(smollm2: Path) -> None:
    with saying(smollm2, "", "<think>\nNo.\n</think>\n\n") as client:
        _, done = streamed(client, input="Well?")
        assert plain(done.output) == [("message", "")]
        _, done = streamed(client, input="Well?", previous_response_id=done.id)
        assert plain(done.output) == [("reasoning", "No."), ("message", "")]
        _, done = streamed(client, input="Well?", previous_response_id=done.id, max_output_tokens=9)
        assert plain(done.output) == [("reasoning", "N")]
        assert done.incomplete_details.reason == "max_output_tokens"


def test_silence_is_filled_with_events(smollm2: Path) -> None:
    with saying(smollm2, f"Ah. {CALL}", delay=0.03, micro_batch=16, n_ctx=4096) as client:
        events, done = streamed(client, input="word " * 100)
    assert [item.type for item in done.output] == ["message", "function_call"]
    kinds = [event.type.removeprefix("response.") for event in events]
    begun, called = (at for at, kind in enumerate(kinds) if kind == "output_item.added")
    assert set(kinds[1:begun]) == {"in_progress"}  # while the prompt is read
    assert begun > 2
    assert "in_progress" in kinds[begun:called]  # while nobody knows yet whether it is a call


class Failing(Saying):
    """Its engine fails behind "Ah."."""

    def _forward(self, sequences: Any, steps: Any) -> Any:
        if bytes(token for token in sequences[0].tokens if token < 256).endswith(b"Ah."):
            raise RuntimeError("no more")
        return super()._forward(sequences, steps)


def test_what_fails_in_the_midst_is_told_at_the_end(smollm2: Path) -> None:
    with saying(smollm2, "Ah. Oh.", kind=Failing) as client:
        events, failed = streamed(client, input="Go.")
        assert events[-1].type == "response.failed"
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        assert plain(failed.output) == [("message", "Ah.")]
        assert failed.output[0].status == "incomplete"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(failed.id)


def test_codex_is_understood(smollm2: Path) -> None:
    reading = CALL.replace("add", "mcp__files__read")
    body: Any = {
        "model": "said",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions/>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List the files."}]},
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAA"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "files"}},
            {
                "type": "local_shell_call",
                "call_id": "shell1",
                "status": "completed",
                "action": {"type": "exec", "command": ["ls"], "env": {}},
            },
            {"type": "function_call_output", "call_id": "shell1", "output": "a.txt"},
            {"type": "custom_tool_call", "call_id": "patch1", "name": "apply_patch", "input": "*** Begin Patch"},
            {
                "type": "custom_tool_call_output",
                "call_id": "patch1",
                "output": [{"type": "input_text", "text": "Done"}],
            },
        ],
        "tools": [ADD, SEND, FILES, {"type": "web_search", "external_web_access": False}, {"type": "local_shell"}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "service_tier": "auto",
        "prompt_cache_key": "0198",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "1"},
        "temperature": 0,
    }
    with saying(smollm2, "", "", reading, "Read.") as client:
        with httpx.stream("POST", f"{client.base_url}responses", json=body, timeout=60) as response:
            response.read()
        assert response.status_code == 200, response.text
        assert response.headers["x-edgellm-ignored"] == "tools.custom, tools.local_shell, tools.web_search"
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
        done = events[-1]["response"]
        assert events[-1]["type"] == "response.completed"
        assert done["id"].startswith("resp_")
        assert done["prompt_cache_key"] == "0198"
        assert [tool["type"] for tool in done["tools"]] == ["function", "namespace"]
        [call] = done["output"]
        assert (call["namespace"], call["name"]) == ("mcp__files", "read")
        bare = {key: value for key, value in call.items() if key not in ("id", "status")}
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "text"}
        body["input"] += [bare, result]
        body["stream"] = False
        after = httpx.post(f"{client.base_url}responses", json=body, timeout=60).json()
        assert after["output"][0]["content"][0]["text"] == "Read."
        known = done["usage"]["input_tokens"] + done["usage"]["output_tokens"] - 2
        assert after["usage"]["input_tokens_details"]["cached_tokens"] >= known
