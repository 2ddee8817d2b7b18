"""How long a stop takes in the prefill of 6,000 tokens, and whether the model answers as before afterwards.

    python benchmarks/interrupt.py smollm2:135m --tries 20 --json interrupt.json

    token         `CancelToken.cancel()` in process, until `generate` returns
    one-shot      Ctrl-C in a terminal, until `edgellm run MODEL PROMPT` has exited (with 130)
    interactive   Ctrl-C in a terminal, until `edgellm run MODEL` shows its prompt again

Each try stops at another moment of the prefill. Needs a model with a chat template that was trained for 6,400 tokens or
more, and a POSIX system.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import re
import select
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import edgellm
from edgellm.bench.contestants import WORDS

PROMPT_TOKENS, CTX = 6000, 6400
QUESTION = "Name the capital of France."
EDITOR_ON, EDITOR_OFF = b"\x1b[?2004h", b"\x1b[?2004l"  # the line editor takes over, and leaves, the terminal
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
RUN = [sys.executable, "-m", "edgellm", "run"]
SHORT_ANSWER = ["--max-tokens", "24", "--temperature", "0", "--ctx", str(CTX)]


class Terminal:
    """A program in a pseudo-terminal of 200 columns."""

    def __init__(self, command: list[str]) -> None:
        self.output = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.execvp(command[0], command)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read(self, seconds: float) -> bool:
        """Take what arrives within so many seconds. False once the program has gone."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self.output += data
        return bool(data)

    def wait_for(self, mark: bytes, seconds: float = 300) -> bytes:
        """What came before `mark`; the rest stays for the next call."""
        deadline = time.monotonic() + seconds
        while mark not in self.output:
            if time.monotonic() > deadline or not self.read(0.5):
                raise SystemExit(f"no {mark!r} from the terminal, but: {self.output[-2000:]!r}")
        before, _, self.output = self.output.partition(mark)
        return before

    def wait_quietly(self, seconds: float) -> None:
        """Let time pass; the answer may not begin in it."""
        deadline = time.monotonic() + seconds
        before = self.output
        while (left := deadline - time.monotonic()) > 0:
            self.read(left)
        if self.output != before:
            raise SystemExit(f"the prefill was over before it could be stopped: {self.output!r}")

    def exit_code(self) -> int:
        """Read until the program is gone, then ask how it ended."""
        while self.read(60):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self.master)


def cancel_in_process(model: edgellm.Model, prompt: list[int], moments: list[float]) -> list[float]:
    """Seconds from `cancel()` to the end of `generate`, stopping at each of the moments."""
    expected = model.generate(QUESTION, max_tokens=24, temperature=0, cache=False).tokens
    latencies = []
    for moment in moments:
        token = edgellm.CancelToken()
        stopped: list[float] = []

        def stop(token: edgellm.CancelToken = token, stopped: list[float] = stopped) -> None:
            stopped.append(time.perf_counter())
            token.cancel()

        timer = threading.Timer(moment, stop)
        timer.start()
        done = model.generate(prompt, max_tokens=8, cancel=token, cache=False)
        latencies.append(time.perf_counter() - stopped[0])
        if done.finish_reason != "cancelled" or done.tokens:
            raise SystemExit(f"the prefill was over before it could be stopped: {done.finish_reason}")
        if model.generate(QUESTION, max_tokens=24, temperature=0, cache=False).tokens != expected:
            raise SystemExit("the model answers differently after a stop")
    return latencies


def one_shot(name: str, prompt: str, moments: list[float]) -> list[float]:
    """Seconds from Ctrl-C to the end of the process."""
    latencies = []
    for moment in moments:
        terminal = Terminal([*RUN, name, prompt, *SHORT_ANSWER])
        terminal.wait_quietly(moment)
        started = time.perf_counter()
        terminal.type("\x03")
        code = terminal.exit_code()
        latencies.append(time.perf_counter() - started)
        terminal.close()
        if code != 130:
            raise SystemExit(f"Ctrl-C ended edgellm with {code} instead of 130: {terminal.output!r}")
    return latencies


def interactive(name: str, history: Path, moments: list[float]) -> list[float]:
    """Seconds from Ctrl-C to the next prompt, in one process; each try is followed by a question."""
    terminal = Terminal([*RUN, name, *SHORT_ANSWER])
    terminal.wait_for(EDITOR_ON)
    expected = ask(terminal, QUESTION)
    latencies = []
    for moment in moments:
        ask(terminal, f"/load {history}")
        terminal.type("Go on.\r")
        terminal.wait_for(EDITOR_OFF)
        terminal.read(0.2)  # the line break after the question
        terminal.wait_quietly(moment)
        started = time.perf_counter()
        terminal.type("\x03")
        terminal.wait_for(EDITOR_ON)
        latencies.append(time.perf_counter() - started)
        ask(terminal, "/reset")
        answer = ask(terminal, QUESTION)
        if answer != expected:
            raise SystemExit(f"the model answers differently after a stop: {answer!r} instead of {expected!r}")
        ask(terminal, "/reset")
    terminal.type("/bye\r")
    terminal.exit_code()
    terminal.close()
    print(f"{QUESTION} {expected}")
    return latencies


def ask(terminal: Terminal, text: str) -> str:
    """Type a line at the prompt; the plain text that the program writes before it shows the prompt again."""
    terminal.type(text + "\r")
    terminal.wait_for(EDITOR_OFF)
    return ESCAPES.sub("", terminal.wait_for(EDITOR_ON).decode()).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every latency here")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    words = WORDS.split()
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.json"
        with edgellm.load(options.model, ctx=CTX) as model:
            prompt = model.encode(" ".join(draw.choice(words) for _ in range(PROMPT_TOKENS)))[:PROMPT_TOKENS]
            text = model.decode(prompt)
            said = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
            model.chat(messages=said).save(history)
            whole = model.generate(prompt, max_tokens=1, cache=False).timings
            prefill, load = 1e-3 * whole.prefill_ms, 1e-3 * whole.load_ms
            print(f"{len(prompt)} tokens: prefill takes {prefill:.1f} s, loading {load:.1f} s", flush=True)
            # Moments from the first to the third quarter of the prefill, one in each of as many equal parts.
            shares = [0.02 + 0.73 * (index + draw.random()) / options.tries for index in range(options.tries)]
            results = {"token": cancel_in_process(model, prompt, [prefill * share for share in shares])}
        results["interactive"] = interactive(options.model, history, [prefill * share for share in shares])
    # A new process first has to start and to load: it gets a second and twice the time that loading took here.
    results["one-shot"] = one_shot(options.model, text, [1.0 + 2 * load + 0.8 * prefill * share for share in shares])
    print(f"{'':12}   median     peak   ({options.tries} tries, ms)")
    for case, values in results.items():
        print(f"{case:12}{1e3 * statistics.median(values):9.0f}{1e3 * max(values):9.0f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
