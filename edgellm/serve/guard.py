"""Guard: who may ask at all. Everything here is looked at before any work is done, in the headers alone.

A page on the web can make a browser send requests to this machine, under a name that it lets point here (DNS
rebinding) or from its own origin. So the name that is asked for must be one of this machine's, and the origin of a page
the server itself or one that was allowed by name, also with a right key. See https://fetch.spec.whatwg.org/ for
Origin and https://www.w3.org/TR/fetch-metadata/ for Sec-Fetch-Site.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.serve.refusal import Refusal
from edgellm.serve.settings import ServeParams, is_loopback

OPEN = ("/health", "/", "/favicon.ico")  # what needs no key: nothing of it tells what is here
OPEN_UNDER = "/page/"
CONTAINERS = (
    "host.docker.internal",
    "host.containers.internal",
)  # of the host, in containers; .internal is no public name
QUIET: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Headers that keep an answer harmless in a browser; a route's own win."""
FORM = "application/x-www-form-urlencoded"  # what curl -d says of JSON


class Guard:
    """An ASGI application around another one."""

    def __init__(self, inner: ASGIApp, params: ServeParams) -> None:
        self._inner = inner
        self._largest = params.max_body
        self._loopback = params.loopback
        self._origins = {origin.rstrip("/").lower() for origin in params.origin}
        self._key = (params.api_key or "").encode()
        hosts = {urlsplit(origin).hostname for origin in self._origins}
        self._hosts = {"localhost", params.host.lower(), *CONTAINERS, *(host for host in hosts if host)}
        if not self._loopback:
            name = socket.gethostname().lower()
            self._hosts |= {name, f"{name}.local", name.partition(".")[0]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be asked."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers = [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in scope["headers"]]
        found: dict[str, str] = {}
        for key, value in headers:  # what comes several times is none of what is allowed
            found[key] = f"{found[key]}, {value}" if key in found else value
        origin = found.get("origin")
        allowed = {"access-control-allow-origin": origin, "vary": "Origin"} if self._named(origin) else {}
        send = _with_headers(send, {**QUIET, **{key: str(value) for key, value in allowed.items()}})
        try:
            self._check_host([value for key, value in headers if key == "host"])
            self._check_origin(scope, found)
            if scope["method"] == "OPTIONS" and allowed:
                await _preflight(found, send)
                return
            self._check_key(scope, found)
            self._check_body(scope, found)
        except Refusal as why:
            await _refuse(scope, why, send)
            return
        await self._inner(scope, _limited(receive, self._largest), send)

    def _check_host(self, hosts: list[str]) -> None:
        """The name that is asked for is one of this machine's; an address is, as no other name can stand for it."""
        if len(hosts) == 1:
            name = _hostname(hosts[0])
            if name in self._hosts or _is_address(name, loopback=self._loopback):
                return
        said = hosts[0][:100] if hosts else "none"
        raise Refusal(
            403, f"Host {said!r} is no name of this server; --origin http://NAME allows one", "forbidden_host"
        )

    def _named(self, origin: str | None) -> bool:
        return origin is not None and origin.rstrip("/").lower() in self._origins

    def _check_origin(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """A page that asks is the server's own, or one that was allowed."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        own = f"{scope.get('scheme', 'http')}://{headers.get('host', '')}".lower()
        if self._named(origin):
            return
        if origin is not None and origin.lower() != own:
            raise Refusal(
                403, f"pages of {origin[:100]!r} may not ask; --origin {origin[:100]} allows them", "forbidden_origin"
            )
        visited = scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not visited:
            raise Refusal(403, "pages of other sites may not ask", "forbidden_origin")

    def _check_key(self, scope: Scope, headers: Mapping[str, str]) -> None:
        path = scope["path"]
        if not self._key or path in OPEN or path.startswith(OPEN_UNDER):
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
        # All are compared, in a time that tells nothing of the key.
        if not sum(hmac.compare_digest(each.encode("utf-8", "replace"), self._key) for each in given):
            what = "the key is wrong" if any(given) else "a key is needed, as `Authorization: Bearer` or `x-api-key`"
            raise Refusal(401, what, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_body(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return
        length = headers.get("content-length", "0")
        if not re.fullmatch(r"[0-9]{1,19}", length):
            raise Refusal(400, "Content-Length is no number", "invalid_header")
        if int(length) > self._largest:
            raise _too_large(self._largest)
        if length == "0" and "transfer-encoding" not in headers:
            return
        packed = headers.get("content-encoding", "").strip().lower()
        if packed not in ("", "identity"):
            raise Refusal(415, f"Content-Encoding {packed[:100]!r}: send it as it is", "unsupported_media_type")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        from_page = "origin" in headers or "sec-fetch-site" in headers
        if kind in ("", FORM) and not from_page:
            return
        if kind != "application/json" and not kind.endswith("+json"):
            raise Refusal(415, f"Content-Type {kind[:100]!r}: must be application/json", "unsupported_media_type")


def _too_large(largest: int) -> Refusal:
    said = f"the request is larger than {largest} bytes, the most that --max-body allows"
    return Refusal(413, said, "request_too_large")


def _hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\s/@]+)(:[0-9]{1,5})?", host.strip())
    return found[1].strip("[]").rstrip(".").lower() if found else ""


def _is_address(name: str, *, loopback: bool) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return not loopback or is_loopback(name)


def _limited(receive: Receive, largest: int) -> Receive:
    """What comes in pieces is no larger than what says its size."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > largest:
            raise _too_large(largest)
        return message

    return limited


def _with_headers(send: Send, more: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            has = {key for key, _ in message["headers"]}
            added = [(k.encode(), v.encode("latin-1")) for k, v in more.items() if k.encode() not in has]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


async def _preflight(headers: Mapping[str, str], send: Send) -> None:
    """What a page that was allowed by name may send. https://fetch.spec.whatwg.org/#cors-preflight-request"""
    wanted = headers.get("access-control-request-headers", "")
    answer = {
        "access-control-allow-methods": "GET, POST, DELETE, HEAD",
        "access-control-allow-headers": wanted if re.fullmatch(r"[\w\-, ]*", wanted) else "",
        "access-control-max-age": "600",
    }
    if headers.get("access-control-request-private-network") == "true":
        answer["access-control-allow-private-network"] = "true"
    listed = [(key.encode(), value.encode("latin-1")) for key, value in answer.items()]
    await send({"type": "http.response.start", "status": 204, "headers": listed})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: Scope, why: Refusal, send: Send) -> None:
    """In the words of the dialect whose path it is."""
    from edgellm.serve.dialects import of_scope

    reply = of_scope(scope).refused(why)
    body = json.dumps(reply.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **reply.headers}
    listed = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": why.status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
