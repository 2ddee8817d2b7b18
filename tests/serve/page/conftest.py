"""Chromium on the chat page, over the stub server: each test a new profile, watched for what should never happen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from serve.page.chat_page import ChatPage, Watch
from serve.page.stub import Stub, serving

HANG = 30_000  # ms after which what is waited for counts as never coming


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    server = serving(stub)
    stub.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield stub
    server.shutdown()
    server.server_close()


@pytest.fixture
def view() -> dict[str, object]:
    """Options of the browser's window; tests choose others."""
    return {"viewport": {"width": 1200, "height": 850}}


@pytest.fixture
def chat(browser: Any, stub: Stub, view: dict[str, object]) -> Iterator[ChatPage]:
    """The page, open and ready. Afterwards nothing may have gone wrong that nobody saw."""
    context = browser.new_context(**view)
    context.set_default_timeout(HANG)
    watch = Watch(stub.address)
    watch.over(context)
    chat = ChatPage(context.new_page(), stub)
    chat.open()
    yield chat
    watch.gather(context)
    context.close()
    assert watch.seen == []
