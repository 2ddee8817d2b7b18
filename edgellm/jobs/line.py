"""Line: one line of a job, and what it asks for; Answer: what is written for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from edgellm.events import Usage

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
OPENAI = ("custom_id", "method", "url", "body")  # fields of a line in OpenAI's format
LARGEST = 64 << 20  # bytes of a line
_NUMBER = re.compile(rb'\{"(?:line": |id": "batch_req_)(\d{1,12})[,"]')  # what a line of the output begins with


class Flaw(Exception):
    """A line asks for nothing that can be done. code: a word for programs. custom_id: of the line, if it has one."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


@dataclass(frozen=True, slots=True)
class Line:
    """number: from 1 on, in its input."""

    number: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Plain:
    """What a line asks for in edgellm's own words: fields of `plain.ask_of`."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A request in OpenAI's batch format. https://platform.openai.com/docs/api-reference/batch/request-input"""

    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """about: the object that is written. usage: of all its answers. failed: it is an error."""

    number: int
    about: Mapping[str, Any]
    usage: Usage = field(default_factory=Usage)
    failed: bool = False

    @property
    def text(self) -> bytes:
        """The line, whole."""
        try:
            written = json.dumps(self.about, ensure_ascii=False, allow_nan=False).encode()
        except ValueError:  # a custom_id may hold half of a surrogate pair, and a vector NaN
            written = json.dumps(_finite(self.about), allow_nan=False).encode()
        return written + b"\n"


def _finite(value: Any) -> Any:
    """Numbers that JSON has not become null."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_of(text: bytes) -> int | None:
    """Which line of the input a line of the output answers; None if it is none of ours."""
    found = _NUMBER.match(text)
    return int(found[1]) if found else None


def parsed(text: bytes) -> Plain | Request:
    """What a line asks for. Raises Flaw."""
    if len(text) > LARGEST:
        raise Flaw("too_large", f"the line is longer than {LARGEST >> 20} MiB")
    try:
        found = json.loads(text.decode("utf-8-sig"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Flaw("invalid_json_line", f"the line is not UTF-8: {error}") from None
    except RecursionError:
        raise Flaw("invalid_json_line", "the line is nested too deep") from None
    except ValueError as error:
        raise Flaw("invalid_json_line", f"the line is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Flaw("invalid_json_line", "the line must be an object")
    if any(name in found for name in ("custom_id", "url", "body")):
        return _request(found)
    if "prompt" in found or "messages" in found:
        return Plain(found)
    raise Flaw("missing_required_parameter", f"the line has neither prompt nor messages, nor {', '.join(OPENAI)}")


def _request(found: dict[str, Any]) -> Request:
    custom_id, url, body = (found.get(name) for name in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str) or not custom_id:
        raise Flaw("missing_required_parameter", "custom_id: must be a string that is not empty")
    if found.get("method", "POST") != "POST":
        raise Flaw("invalid_method", f"method: {str(found['method'])[:50]!r}; there is POST", custom_id)
    if url not in URLS:
        raise Flaw("invalid_url", f"url: {str(url)[:100]!r}; there are {', '.join(URLS)}", custom_id)
    if not isinstance(body, dict):
        raise Flaw("missing_required_parameter", "body: must be an object", custom_id)
    return Request(custom_id, url, body)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number there")


def beginning(asked: Plain | Request) -> bytes:
    """What sorts lines so that those whose prompts begin alike follow one another: what is told of tools and for the
    template stands in front, as in most prompts, then the messages or the prompt."""
    url, body = (asked.url, asked.body) if isinstance(asked, Request) else ("", asked.body)
    front = [body.get(name) for name in ("tools", "functions", "chat_template_kwargs", "reasoning_effort", "system")]
    said = next((body[name] for name in ("messages", "prompt", "input") if name in body), None)
    return json.dumps([url, bool(body.get("raw")), front, said], ensure_ascii=False).encode("utf-8", "surrogatepass")
