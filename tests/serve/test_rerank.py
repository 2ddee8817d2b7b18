"""/v1/rerank, on the echo engine, whose score is the share of the query's neighbouring bytes that a text has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Running, running

from edgellm import LoadParams
from edgellm.backends.echo import EchoBackend
from edgellm.serve.abilities import abilities

QUERY = "abcde"
DOCUMENTS = ["nothing", "abcde and more", "xabx", "abcx"]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("echo") / "echo.gguf"
    path.write_bytes(b"GGUF")
    with running(path, load=LoadParams(backend="echo")) as found:
        yield found


def asked(server: Running, **body: Any) -> httpx.Response:
    given = {"query": QUERY, "documents": DOCUMENTS, **body}
    return httpx.post(f"{server.url}/v1/rerank", json=given, timeout=60)


def test_the_best_document_comes_first(echo: Running) -> None:
    answer = asked(echo, model="echo").json()
    assert [each["index"] for each in answer["results"]] == [1, 3, 2, 0]
    assert [each["relevance_score"] for each in answer["results"]] == [1.0, 0.5, 0.25, 0.0]
    assert all(each.keys() == {"index", "relevance_score"} for each in answer["results"])
    assert (answer["object"], answer["model"]) == ("list", "echo")
    tokens = 4 * len(QUERY) + sum(map(len, DOCUMENTS))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_so_many_and_with_their_texts(echo: Running) -> None:
    documents = [{"text": DOCUMENTS[0]}, {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    answer = asked(echo, documents=documents, top_n=2, return_documents=True, nonsense=1)
    assert answer.json()["results"] == [
        {"index": 1, "relevance_score": 1.0, "document": {"text": DOCUMENTS[1]}},
        {"index": 2, "relevance_score": 0.25, "document": {"text": DOCUMENTS[2]}},
    ]
    assert answer.headers["x-edgellm-ignored"] == "nonsense"
    assert len(asked(echo, top_n=99).json()["results"]) == 4


@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        ({"documents": []}, 400, "between 1 and 2048"),
        ({"documents": ["a"] * 2049}, 400, "2049 texts"),
        ({"documents": "a"}, 400, "documents"),
        ({"documents": [{"image": "a"}]}, 400, "documents"),
        ({"query": None}, 400, "query"),
        ({"top_n": 0}, 400, "top_n=0"),
        ({"documents": ["a" * 40_000]}, 400, "with the query"),
        ({"model": "other"}, 404, "other"),
    ],
)
def test_what_is_wrong_is_told(echo: Running, wrong: dict[str, Any], status: int, said: str) -> None:
    answer = asked(echo, **wrong)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_another_model_refuses_by_name(server: Running) -> None:
    answer = asked(server, model="minilm")
    assert answer.status_code == 400
    assert "ranks no texts; ask a reranker" in answer.json()["error"]["message"]


def test_it_is_listed(echo: Running) -> None:
    assert "rerank" in abilities(EchoBackend().info)
    assert "/v1/rerank" in httpx.get(f"{echo.url}/openapi.json").json()["paths"]
