"""Many clients at once, some of which hang up: every answer that comes is the right one, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import running

QUESTIONS = [f"Say something about the number {n}." for n in range(6)]
CLIENTS = 60


def body(question: int, length: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTIONS[question]}]
    return {"messages": messages, "max_tokens": length, "temperature": 0, "stream": True}


async def said(client: httpx.AsyncClient, question: int, length: int, leave: int | None = None) -> str | None:
    """The answer; None for one that was left after so many lines."""
    found = ""
    async with client.stream("POST", "/v1/chat/completions", json=body(question, length)) as answer:
        assert answer.status_code == 200
        count = 0
        async for line in answer.aiter_lines():
            count += 1
            if leave is not None and count > leave:
                return None
            if line.startswith("data: {"):
                found += httpx.Response(200, content=line[6:]).json()["choices"][0]["delta"].get("content") or ""
    return found


async def one_client(url: str, seed: int, right: dict[tuple[int, int], str]) -> int:
    chance = random.Random(seed)
    finished = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for _ in range(3):
            question, length = chance.randrange(len(QUESTIONS)), chance.choice((4, 12))
            leave = chance.randrange(12) if chance.random() < 0.3 else None
            answer = await said(client, question, length, leave)
            if answer is not None:
                assert answer == right[question, length]
                finished += 1
    return finished


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.timeout(300)
def test_many_clients_get_their_own_answers(smollm2: Path) -> None:
    with running(smollm2) as server:

        async def everything() -> int:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                right = {
                    (question, length): await said(client, question, length) or ""
                    for question in range(len(QUESTIONS))
                    for length in (4, 12)
                }
            assert len(set(right.values())) > 6
            return sum(await asyncio.gather(*(one_client(server.url, seed, right) for seed in range(CLIENTS))))

        asyncio.run(everything())
        before = open_files(), threading.active_count()
        assert asyncio.run(everything()) > CLIENTS
        until = time.monotonic() + 30
        while httpx.get(f"{server.url}/v1/edgellm/status").json()["requests"] != {"running": 0, "waiting": 0}:
            assert time.monotonic() < until
        while open_files() > before[0] + 2:  # connections are closed a moment later
            assert time.monotonic() < until
            time.sleep(0.05)
        assert threading.active_count() <= before[1] + 2
