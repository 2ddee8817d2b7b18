"""answers: lines in, lines out, in the words of the server and of edgellm."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from serving import Running, running
from tiny_models import tiny

import edgellm
from edgellm import CacheParams, GenerateParams, LoadParams, Model
from edgellm.errors import Closed
from edgellm.jobs import answers as module
from edgellm.jobs.answers import answers
from edgellm.jobs.line import Answer, Line
from edgellm.jobs.plain import Defaults

GREEDY = Defaults(GenerateParams(temperature=0))
OPENAI = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": CreateEmbeddingResponse,
}


def lines(*rows: Any) -> list[Line]:
    return [Line(at, row if isinstance(row, bytes) else json.dumps(row).encode()) for at, row in enumerate(rows, 1)]


def answered(model: Model, *rows: Any, defaults: Defaults = GREEDY) -> list[Answer]:
    """In the order of the rows."""
    return sorted(answers(lines(*rows), model, defaults), key=lambda answer: answer.number)


def request(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("echo") / "echo.gguf"
    path.write_bytes(b"any")
    with running(path, load=LoadParams(backend="echo")) as found:
        yield found


def test_plain_lines_have_plain_answers(echo: Model) -> None:
    found = answered(
        echo,
        {"prompt": "hello", "id": "first"},
        {"prompt": "much longer", "max_tokens": 4, "id": 2},
        {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "said"}], "seed": -1},
        {"prompt": "raw text", "raw": True, "stop": "x", "max_tokens": 5.0},
        {"prompt": [104, 105], "id": None},
        {"prompt": "x", "logprobs": 1, "logit_bias": {"121": -3}},
        {"prompt": "x", "logit_bias": {"120": "-inf"}},
    )
    about = [answer.about for answer in found]
    assert about[0] == {
        "line": 1,
        "id": "first",
        "text": "hello",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 25, "cached_tokens": 0, "completion_tokens": 5, "reasoning_tokens": 0},
    }
    assert (about[1]["text"], about[1]["finish_reason"], about[1]["id"]) == ("much", "length", 2)
    assert about[2]["text"] == "said"
    assert about[3]["text"] == "raw "
    assert (about[4]["text"], about[4]["id"]) == ("hi", None)
    assert about[5]["logprobs"][0]["text"] == "x"
    assert about[6]["error"]["code"] == "invalid_value"
    assert [answer.failed for answer in found] == [False] * 6 + [True]
    assert found[0].usage.prompt_tokens == 25


def test_what_holds_for_all_lines_yields_to_a_line(echo: Model) -> None:
    defaults = Defaults(GenerateParams(temperature=0, max_tokens=3), system="a system")
    found = answered(
        echo,
        {"prompt": "hello"},
        {"prompt": "hello", "max_tokens": 5, "system": "short"},
        {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"prompt": "hello", "raw": True},
        defaults=defaults,
    )
    assert [answer.about["text"] for answer in found] == ["hel", "hello", "hel", "hel", "he"]
    tokens = [answer.usage.prompt_tokens for answer in found]
    assert tokens[0] == tokens[3] == 25 + len("system\na system") + 3
    assert tokens[1] == tokens[0] - 3
    assert tokens[4] == 6


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": 7}, "prompt: must be a string"),
        ({"prompt": ["a"]}, "prompt: must be a string"),
        ({"prompt": "a", "messages": []}, "one of them"),
        ({"messages": "hi"}, "messages: must be a list"),
        ({"messages": []}, "messages: the list is empty"),
        ({"messages": [{"role": "clown", "content": "x"}]}, "role='clown'"),
        ({"messages": [{"role": "user", "content": "x"}], "raw": True}, "raw: messages go through"),
        ({"prompt": "a", "max_token": 3}, "unknown field 'max_token'"),
        ({"prompt": "a", "max_tokens": "3"}, "max_tokens='3': must be"),
        ({"prompt": "a", "raw": 1}, "raw: must be true or false"),
        ({"prompt": "a", "system": 1}, "system: must be a string"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "its keys must be token ids"),
        ({"prompt": "a", "schema": {"type": "nothing"}}, "nothing"),
    ],
)
def test_a_line_that_is_wrong_says_why(echo: Model, row: dict[str, Any], said: str) -> None:
    wrong, right = answered(echo, {**row, "id": "me"}, {"prompt": "fine"})
    assert said in wrong.about["error"]["message"]
    assert (wrong.about["line"], wrong.about["id"], wrong.failed) == (1, "me", True)
    assert right.about["text"] == "fine"


def test_a_prompt_that_is_too_long_is_the_lines_error(echo: Model) -> None:
    rows = [
        {"prompt": "a" * 9000},
        request("a", "/v1/chat/completions", messages=[{"role": "user", "content": "b" * 9000}]),
    ]
    plain, asked = answered(echo, *rows)
    assert plain.about["error"]["code"] == "context_length_exceeded"
    response = asked.about["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (400, "context_length_exceeded")
    assert asked.about["error"] is None
    assert (asked.about["id"], asked.about["custom_id"], asked.failed) == ("batch_req_2", "a", True)


REQUESTS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "model": "gpt-9"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 2, "logprobs": True, "seed": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 1}),
    ("/v1/completions", {"prompt": ["a", "bc"], "n": 2, "max_tokens": 2, "temperature": 0, "echo": True}),
    ("/v1/embeddings", {"input": ["a", "b"]}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
]
REFUSED = [
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"messages": [], "n": 99}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": -1}),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}),
    ("/v1/embeddings", {"input": []}),
]
MADE_ANEW = ("id", "created", "timings", "model")


@pytest.mark.parametrize(("url", "body"), [*REQUESTS, *REFUSED])
def test_an_answer_is_the_servers(echo: Model, server: Running, url: str, body: dict[str, Any]) -> None:
    over = httpx.post(server.url + url, json={**body, "model": "echo"}, timeout=60)
    [answer] = answered(echo, request("mine", url, **body))
    assert set(answer.about) == {"id", "custom_id", "response", "error"}
    assert (answer.about["custom_id"], answer.about["error"]) == ("mine", None)
    response = answer.about["response"]
    assert set(response) == {"status_code", "request_id", "body"}
    assert response["status_code"] == over.status_code
    assert answer.failed == (over.status_code != 200)
    ours, theirs = response["body"], over.json()
    for each in (ours, theirs):
        each.get("usage", {}).pop("prompt_tokens_details", None)
        for name in MADE_ANEW:
            each.pop(name, None)
    assert ours == theirs


@pytest.mark.parametrize(("url", "body"), REQUESTS)
def test_an_answer_is_what_openai_says_it_is(echo: Model, url: str, body: dict[str, Any]) -> None:
    [answer] = answered(echo, request("mine", url, **body))
    written = json.loads(answer.text)["response"]["body"]
    if body.get("encoding_format") == "base64":
        written["data"][0]["embedding"] = [0.0]  # which OpenAI's client unpacks
    OPENAI[url].model_validate(written, strict=True)
    assert written["model"] == body.get("model", "echo")
    assert answer.usage.prompt_tokens == written["usage"]["prompt_tokens"]


def test_a_stream_is_refused(echo: Model) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    [answer] = answered(echo, request("a", "/v1/chat/completions", **body))
    assert "a job has no streams" in answer.about["response"]["body"]["error"]["message"]


def test_what_is_no_request_is_an_error_in_openais_form(echo: Model) -> None:
    first, second = answered(echo, b"{", request("a", "/v1/images"))
    assert first.about["id"] == "batch_req_1"
    assert first.about["custom_id"] is first.about["response"] is None
    assert (first.about["error"]["code"], first.about["line"]) == ("invalid_json_line", 1)
    assert first.about["error"]["message"].startswith("line 1: the line is no JSON")
    assert (second.about["custom_id"], second.about["error"]["code"]) == ("a", "invalid_url")
    assert "line" not in second.about
    assert first.failed
    assert second.failed


def test_lines_are_read_little_by_little(echo: Model) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Line]:
        while True:
            taken.append(threading.get_ident())
            yield Line(len(taken), b'{"prompt": "x"}')

    found = answers(endless(), echo, GREEDY)
    most = module.AHEAD * echo.max_sequences
    for count in range(1, 3 * most):
        next(found)
        assert len(taken) < count + most
    found.close()
    assert set(taken) == {threading.get_ident()}
    assert not [each for each in threading.enumerate() if each.name == "edgellm-job"]


def test_more_than_the_queue_holds_is_answered(echo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    body = {"messages": [{"role": "user", "content": "x"}], "n": 32, "temperature": 0}
    found = answered(echo, *(request(str(at), "/v1/chat/completions", **body) for at in range(40)))
    assert [len(each.about["response"]["body"]["choices"]) for each in found] == [32] * 40


def test_closing_the_answers_stops_them(echo: Model) -> None:
    endless = {"prompt": "x", "ignore_eos": True}
    found = answers(lines({"prompt": "x"}, *[endless] * 20), echo, GREEDY)
    assert next(found).number == 1
    found.close()
    assert echo.generate("over", temperature=0).text == "over"
    assert echo.activity().running == 0


def test_a_closed_model_ends_the_job() -> None:
    with edgellm.load("x", backend="echo", cache=CacheParams(disk=0)) as model:
        found = answers(lines({"prompt": "x"}, *[{"prompt": "x", "ignore_eos": True}] * 20), model, GREEDY)
        assert next(found).number == 1
    with pytest.raises(Closed):
        list(found)


def test_what_lines_begin_with_is_read_once(tmp_path: Path) -> None:
    text = "the hello world " * 50
    rows = [{"prompt": f"{at // 5} {text} {at}", "raw": True, "max_tokens": 2} for at in range(25)]
    for arch in ("llama", "lfm2"):
        with edgellm.load(tiny(arch).write(tmp_path / arch), ctx=1024, cache=CacheParams(disk=0)) as model:
            assert model.info.can_truncate == (arch == "llama")  # the other one goes on from checkpoints alone
            long = len(model.encode(text))
            computed = [each.usage.prompt_tokens - each.usage.cached_tokens for each in answered(model, *rows)]
        assert sum(each > long // 2 for each in computed) == 5


@pytest.mark.parametrize("content", [["x"], [[[]]], [5], 5, [None]])
def test_messages_of_no_known_form_are_errors_of_their_lines(echo: Model, content: Any) -> None:
    [answer] = answered(echo, {"messages": [{"role": "user", "content": content}]})
    assert answer.failed
    assert answer.about["error"]["code"] != "internal_error"
