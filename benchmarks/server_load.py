"""Load: many clients ask a server at once, some of them hang up, and every answer that comes is checked.

    python benchmarks/server_load.py MODEL [--clients 200] [--seconds 120] [--vanish 0.2]

Two processes: `edgellm serve` and the clients, on raw sockets so that they take little. Reported are the tokens per
second of all answers beside what the engine gives the same requests without HTTP (in a process of its own, before and
after), errors, the time to the first token of a short prompt beside one of 4,000 tokens, how late the server's event
loop was, and memory, threads and open files before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

QUESTIONS = [f"Write {3 + n % 5} short sentences about the number {n}." for n in range(40)]
LENGTHS = (16, 32, 48, 64, 96)


def asks(seed: int) -> Iterator[tuple[int, int]]:
    """Question and length of one client's requests, in their order."""
    chance = random.Random(seed)
    while True:
        yield chance.randrange(len(QUESTIONS)), chance.choice(LENGTHS)


def body(question: int, length: int) -> bytes:
    messages = [{"role": "user", "content": QUESTIONS[question]}]
    wanted = {"messages": messages, "max_tokens": length, "temperature": 0, "stream": True}
    return json.dumps({**wanted, "stream_options": {"include_usage": True}}).encode()


class Clients:
    """What they saw."""

    def __init__(self, port: int, vanish: float) -> None:
        self.port = port
        self.vanish = vanish
        self.statuses: Counter[int] = Counter()
        self.answers: dict[tuple[int, int], Counter[str]] = {}
        self.tokens = 0
        self.vanished = 0
        self.firsts: list[float] = []
        self.broken: list[str] = []

    async def run(self, count: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._one(seed, until) for seed in range(count)))

    async def _one(self, seed: int, until: float) -> None:
        chance = random.Random(1000 + seed)
        for question, length in asks(seed):
            if time.monotonic() > until:
                return
            leave = chance.random() < self.vanish
            try:
                await self._ask(question, length, chance.uniform(0.05, 3) if leave else None)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.broken.append(repr(error))

    async def _ask(self, question: int, length: int, leave: float | None) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        sent = body(question, length)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
        started = time.monotonic()
        try:
            if leave is not None:
                try:
                    await asyncio.wait_for(reader.read(), leave)
                except asyncio.TimeoutError:
                    self.vanished += 1
                    return
                return
            status = int((await reader.readline()).split()[1])
            self.statuses[status] += 1
            if status != 200:
                await reader.read()
                await asyncio.sleep(0.5)
                return
            first = await reader.readuntil(b'"content":"')
            raw = [first]
            while piece := await reader.read(1 << 16):
                if len(raw) == 2:
                    self.firsts.append(time.monotonic() - started)
                raw.append(piece)
            text = b"".join(raw)
        finally:
            writer.close()
        events = [json.loads(each) for each in re.findall(rb"data: (\{.*\})", text)]
        said = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e.get("choices"))
        if b"[DONE]" not in text or "usage" not in events[-1]:
            self.broken.append(f"cut: {text[-200:]!r}")
            return
        self.tokens += events[-1]["usage"]["completion_tokens"]
        self.answers.setdefault((question, length), Counter())[said] += 1


@contextmanager
def server(model: str, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`edgellm serve`, ready to answer."""
    command = [sys.executable, "-c", "from edgellm.cli import main; main()", "serve", model, "--port", str(port)]
    process = subprocess.Popen([*command, *options])
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as found:
                    if json.load(found)["loaded"]:
                        break
            except OSError:
                pass
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def facts(pid: int) -> dict[str, float]:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"MiB": int(found["VmRSS"].split()[0]) / 1024, "threads": int(found["Threads"]), "files": files}


def delays(port: int) -> dict[str, float]:
    """How often the event loop came later than so many seconds, and how often it was looked at."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as found:
        text = found.read().decode()
    pairs = re.findall(r'edgellm_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    total = float(pairs[-1][1])
    return {
        f">{edge}s": round(total - float(count)) for edge, count in pairs if edge in ("0.025", "0.05", "0.1", "0.5")
    } | {"looks": total}


def engine_rate(model: str, clients: int, seconds: float, answers: object) -> None:
    """Tokens per second of the same requests without HTTP: each client a thread's worth of sinks, no socket."""
    import edgellm
    from edgellm import GenerateParams

    with edgellm.load(model) as opened:
        done = Counter[str]()
        until = time.monotonic() + seconds

        async def one(seed: int) -> None:
            for question, length in asks(seed):
                if time.monotonic() > until:
                    return
                messages = [{"role": "user", "content": QUESTIONS[question]}]
                params = GenerateParams(max_tokens=length, temperature=0)
                turn = opened.prompter.prepare(messages, params)
                async for chunk in opened.astream(turn, params):
                    if chunk.completion is not None:
                        done["tokens"] += len(chunk.completion.tokens)

        async def every() -> None:
            await asyncio.gather(*(one(seed) for seed in range(clients)))

        started = time.monotonic()
        asyncio.run(every())
        answers.put(done["tokens"] / (time.monotonic() - started))  # type: ignore[attr-defined]


def bare(model: str, clients: int, seconds: float) -> float:
    context = get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=engine_rate, args=(model, clients, seconds, answers))
    process.start()
    rate = float(answers.get(timeout=seconds * 3 + 60))
    process.join()
    return rate


async def short_beside_long(port: int) -> list[float]:
    """Seconds to the first token of a short prompt, asked 0.15 s after one of about 4,000 tokens; neither is known."""
    found = []
    for _ in range(5):
        new = os.urandom(4).hex()
        long = {
            "messages": [{"role": "user", "content": f"{new} " + "some words of a long text " * 790}],
            "max_tokens": 4,
        }
        task = asyncio.create_task(_timed(port, long))
        await asyncio.sleep(0.15)
        short = {"messages": [{"role": "user", "content": f"{new}: name a colour."}], "max_tokens": 4}
        found.append(await _timed(port, short))
        await task
    return found


async def _timed(port: int, wanted: dict[str, object]) -> float:
    sent = json.dumps({**wanted, "stream": True}).encode()
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
    await reader.readuntil(b'"delta":{"content":"')
    taken = time.monotonic() - started
    await reader.read()
    writer.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--vanish", type=float, default=0.2, help="share of requests whose client hangs up")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    part = min(30.0, options.seconds)
    rates = [bare(options.model, options.clients, part)]
    with server(options.model, port) as process:
        asyncio.run(Clients(port, 0).run(options.clients, part / 3))  # as it is when it has worked
        time.sleep(2)
        before = facts(process.pid)
        even = Clients(port, 0)
        started, used = time.monotonic(), time.process_time()
        asyncio.run(even.run(options.clients, part))
        taken, used = time.monotonic() - started, time.process_time() - used
        served = even.tokens / taken
        clients = Clients(port, options.vanish)
        asyncio.run(clients.run(options.clients, options.seconds))
        time.sleep(2)
        after = facts(process.pid)
        late = delays(port)
        firsts = asyncio.run(short_beside_long(port))
    rates.append(bare(options.model, options.clients, part))
    several = [key for key, texts in clients.answers.items() if len(texts) > 1]
    print(
        f"statuses {dict(clients.statuses)}, hung up {clients.vanished}, broken {len(clients.broken)}",
        *clients.broken[:3],
    )
    print(
        f"{sum(sum(t.values()) for t in clients.answers.values())} answers, {len(several)} of {len(clients.answers)} "
        "questions answered in more than one way"
    )
    print(
        f"tokens/s: served {served:.0f}, engine alone {rates[0]:.0f} and {rates[1]:.0f}: "
        f"{served / (sum(rates) / 2):.2f}; the clients took {used:.1f} s of a processor in {taken:.0f} s"
    )
    print(f"event loop: {late}")
    print(f"before {before}\nafter  {after}")
    print(f"first token of a short prompt beside a long one: {', '.join(f'{each:.2f}' for each in firsts)} s")


if __name__ == "__main__":
    main()
