"""Lines: what they ask for, what is wrong with them, and how they are told and sorted."""

from __future__ import annotations

import json

import pytest

from edgellm.jobs import line as lines
from edgellm.jobs.line import Answer, Flaw, Plain, Request, beginning, number_of, parsed

CHAT = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}


def told(**fields: object) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


def test_both_formats_are_told_apart() -> None:
    assert parsed(told()) == Request("a", "/v1/chat/completions", {"messages": []})
    assert parsed(b'\xef\xbb\xbf{"prompt": "x"}\r\n') == Plain({"prompt": "x"})
    assert parsed(b'{"messages": [], "id": 3}') == Plain({"messages": [], "id": 3})


@pytest.mark.parametrize(
    ("text", "code", "custom_id"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'{"prompt": NaN}', "invalid_json_line", None),
        (b'{"prompt": "caf\xe9"}', "invalid_json_line", None),
        (b'{"prompt": ' + b"[" * 100_000, "invalid_json_line", None),
        (b'{"prompt": ' + b"9" * 10_000 + b"}", "invalid_json_line", None),
        (b'{"promt": "x"}', "missing_required_parameter", None),
        (told(custom_id=None), "missing_required_parameter", None),
        (told(custom_id=""), "missing_required_parameter", None),
        (told(custom_id=7), "missing_required_parameter", None),
        (told(method="GET"), "invalid_method", "a"),
        (told(url="/v1/responses"), "invalid_url", "a"),
        (told(url=["/v1/embeddings"]), "invalid_url", "a"),
        (told(body="x"), "missing_required_parameter", "a"),
    ],
)
def test_what_asks_for_nothing_says_why(text: bytes, code: str, custom_id: str | None) -> None:
    with pytest.raises(Flaw) as found:
        parsed(text)
    assert (found.value.code, found.value.custom_id) == (code, custom_id)


def test_a_line_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST", 20)
    with pytest.raises(Flaw, match="longer than"):
        parsed(b'{"prompt": "01234567890123456789"}')


def test_answers_know_their_lines() -> None:
    for about in ({"line": 12, "text": "line"}, {"id": "batch_req_12", "custom_id": "\ud800"}):
        text = Answer(12, about).text
        assert text.endswith(b"\n")
        assert json.loads(text) == about
        assert number_of(text) == 12
    assert json.loads(Answer(1, {"line": 1, "vector": [1.5, float("nan")]}).text)["vector"] == [1.5, None]
    for other in (b"", b"{}\n", b'{"id": "batch_req_x"}\n', b'{"line": 12', b'{"line": -1, "a": 1}\n'):
        assert number_of(other) is None


def test_prompts_that_begin_alike_are_sorted_together() -> None:
    texts = [f"document {at % 3} {'word ' * 50} question {at}" for at in range(9)]
    plain = sorted(texts, key=lambda text: beginning(Plain({"prompt": text})))
    assert [text.split()[1] for text in plain] == list("000111222")
    asked = [
        Plain({"messages": [{"role": "system", "content": text}, {"role": "user", "content": "?"}]}) for text in texts
    ]
    assert [str(each.body).split()[5] for each in sorted(asked, key=beginning)] == list("000111222")
    tools = Request("a", "/v1/chat/completions", {"messages": [], "tools": [{"a": 1}]})
    assert beginning(tools) != beginning(Request("a", "/v1/chat/completions", {"messages": []}))
    assert beginning(Plain({"prompt": "\ud800"}))
