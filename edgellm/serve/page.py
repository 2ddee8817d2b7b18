"""The page at /: static files beside this module, and what the browser is allowed to do with them."""

from __future__ import annotations

import hashlib
import mimetypes
from functools import lru_cache
from pathlib import Path

from edgellm.serve.endpoint import Call, Empty, Reply
from edgellm.serve.refusal import Refusal

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""https://www.w3.org/TR/CSP3/"""
RUNNING = b"Ollama is running"  # what clients of Ollama look for at its address


async def index(call: Call[Empty]) -> Reply:
    """The page for browsers; for others a word that the server is there."""
    if "text/html" not in call.headers.get("accept", ""):
        return Reply(RUNNING, media="text/plain; charset=utf-8")
    return _file(call, "index.html")


async def asset(call: Call[Empty]) -> Reply:
    return _file(call, call.path["path"])


def _file(call: Call[Empty], name: str) -> Reply:
    files = _files()
    if name not in files:
        raise Refusal(404, "there is no such file", "not_found")
    body, tag, media = files[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    if call.headers.get("if-none-match") == tag:
        return Reply(b"", 304, headers, media)
    return Reply(body, 200, headers, media)


@lru_cache(1)
def _files() -> dict[str, tuple[bytes, str, str]]:
    """The files by their names, read once: no name that a client sends is opened."""
    found = {}
    for path in FOLDER.rglob("*"):
        if path.is_file():
            body = path.read_bytes()
            media = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            if path.suffix in (".js", ".mjs"):  # what Windows' registry may say otherwise
                media = "text/javascript"
            text = media.startswith("text/") or media == "application/json"
            tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found[path.relative_to(FOLDER).as_posix()] = (body, tag, f"{media}; charset=utf-8" if text else media)
    return found
