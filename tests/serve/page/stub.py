"""A small server that serves the chat page and speaks its contract, with answers that a test wrote down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "edgellm" / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}

REPORT = {
    "cache": {
        "from_live": 900,
        "from_memory": 100,
        "from_disk": 24,
        "computed": 180,
        "broke_at": None,
        "expected": None,
        "found": None,
        "reason": "The conversation went on where it was.",
    },
    "timings": {
        "ttft_ms": 412.0,
        "prefill_ms": 380.0,
        "decode_ms": 2100.0,
        "prefill_tokens_per_second": 473.7,
        "decode_tokens_per_second": 31.24,
    },
}
USAGE = {"prompt_tokens": 1204, "completion_tokens": 64, "total_tokens": 1268}

Step = dict[str, Any] | str
"""A chunk's delta, or one of: "wait" until the test releases it, "drop" the connection, "end" without [DONE]."""


def text(content: str) -> Step:
    return {"content": content}


class Stub:
    """The server's state: what it answers next, and what it was asked."""

    def __init__(self) -> None:
        self.scripts: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.gate = threading.Semaphore(0)
        self.left = threading.Event()  # a client closed the connection during an answer
        self.key: str | None = None
        self.address = ""
        self.models: list[dict[str, Any]] = [
            {
                "id": "smollm2:135m",
                "loaded": True,
                "pinned": False,
                "context_length": 8192,
                "capabilities": ["completion", "chat", "tools", "thinking"],
                "bytes": 98_000_000,
                "engine": "native",
            },
            {
                "id": "gemma3:270m",
                "loaded": False,
                "pinned": False,
                "context_length": 32768,
                "capabilities": ["completion", "chat"],
                "bytes": 253_000_000,
                "engine": "llama.cpp",
            },
            {"id": "minilm", "loaded": False, "capabilities": ["embedding"], "context_length": None},
        ]

    def will(self, *steps: Step, finish: str = "stop") -> None:
        """The next request gets these steps, a finish reason, usage and report."""
        self.scripts.append([*steps, {"finish": finish}])

    def refuses(self, status: int, message: str, code: str | None = None) -> None:
        """The next request gets an error instead of an answer."""
        self.scripts.append((status, {"error": {"message": message, "type": "error", "code": code}}))

    def release(self) -> None:
        self.gate.release()

    def status(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "models": self.models,
            "cache": {"disk_bytes": 412_000_000, "disk_budget": 8_000_000_000, "entries": 1280},
            "memory": {"total": 16_000_000_000, "available": 9_400_000_000, "process": 720_000_000},
            "machine": {"cpu": "AMD Ryzen 7 7840U", "cores": 8, "features": ["avx2", "avx512f", "vnni"]},
            "requests": {"running": 1, "waiting": 0},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?", 1)[0]
        if path.startswith("/v1/"):
            if self._known():
                data = [
                    {"id": each["id"], "object": "model", "created": 0, "owned_by": "edgellm"}
                    for each in self.stub.models
                ]
                listing = {"object": "list", "data": data}
                self._json(200, listing if path == "/v1/models" else self.stub.status())
            return
        file = PAGE / ("index.html" if path == "/" else path.removeprefix("/page/"))
        if not file.is_file():
            self._json(404, {"error": {"message": "There is nothing here.", "type": "error", "code": None}})
            return
        data_bytes = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(file.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(data_bytes)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data_bytes)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._known():
            return
        self.stub.requests.append(body)
        script = self.stub.scripts.pop(0) if self.stub.scripts else [text("Yes."), {"finish": "stop"}]
        if isinstance(script, tuple):
            self._json(*script)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for line in self._lines(script):
                self.wfile.write(line.encode())
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.stub.left.set()
        self.close_connection = True

    def _lines(self, steps: list[Any]) -> Iterator[str]:
        head = {"id": "1", "object": "chat.completion.chunk"}
        for step in steps:
            if step == "wait":
                while not self.stub.gate.acquire(timeout=0.02):
                    yield ": still here\n\n"
            elif step == "slow":
                time.sleep(0.02)
            elif step in ("drop", "end"):
                return
            elif "error" in step or "prompt_progress" in step:
                yield f"data: {json.dumps({**head, 'choices': [], **step})}\n\n"
            elif "finish" in step:
                choice = {"index": 0, "delta": {}, "finish_reason": step["finish"]}
                yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
            else:
                choice = {"index": 0, "delta": step, "finish_reason": None}
                yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': USAGE, 'edgellm': REPORT})}\n\n"
        yield "data: [DONE]\n\n"

    def _known(self) -> bool:
        """Whether the client has the key; it is told when not."""
        if self.stub.key is None or self.headers.get("Authorization") == f"Bearer {self.stub.key}":
            return True
        self._json(401, {"error": {"message": "A key is needed.", "type": "error", "code": "invalid_api_key"}})
        return False

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a browser that went away


def serving(stub: Stub) -> Server:
    """The server on a free port, in a thread of its own."""
    server = Server(("127.0.0.1", 0), type("StubHandler", (Handler,), {"stub": stub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


if __name__ == "__main__":
    running = serving(Stub())
    threading.Event().wait()
