"""Child: a process of our own, believed for what it answers; the one place that starts any.

    this process                                     child process
    Child(target, job) ── token, target, job ───▶    the same Python, isolated, with this process's search path
                       ◀── token {"python"} ─────    it can answer, so it is ours
    send ──────────────── {…} ──────────────────▶    target(parent, **job):  for message in parent
    receive ◀──────────── token {…} ─────────────        parent.say(…)
                       ◀── token {"raised"} ─────    an exception, raised here as what it was there

One JSON object a line. The token is random, goes in by standard input and has to come back at the head of every line:
neither an exit code nor what another program prints is taken for an answer. What the child prints besides goes to a
log, whose end tells why it died.

`sys.executable` is Python only where Python was started: in uWSGI, a CAD program or another host it is that program,
which must not be started a second time. So an interpreter is known by its name, and looked for where this process's
Python is installed. A frozen program is its own interpreter: it starts itself with one argument, and `freeze_support`,
which has to run before its main part, goes where a child goes. PyInstaller does that by itself (_pyinstaller/); nothing
is started where it was not done.
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from edgellm import errors, threads
from edgellm.errors import BackendFailed, EdgeLLMError, Unsupported

ARGUMENT = "--edgellm-child"  # what a frozen program is started with to be a child
START_SECONDS = 60  # until a child has answered at all: a cold disk, a virus scanner
END_SECONDS = 10  # from the last answer to the end of the process
KEPT_LOG = 64 << 10
ABORTED = 3  # what abort() exits with on Windows; no child of ours does
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = re.compile(r"((pv)?python|hython|mayapy|pypy|graalpy)[\d.]*(t|w|d|_d)*(-intel64|-dbg)?(\.exe)?", re.IGNORECASE)
BOOTSTRAP = (
    "import json, os, sys; messages = open(os.dup(0), 'rb'); start = json.loads(messages.readline()); "
    "sys.path[:] = start['path']; from edgellm.child import main; main(messages, start)"
)
_NTSTATUS = {
    0xC0000005: "access violation",
    0xC0000409: "abort",
    0xC00000FD: "stack overflow",
    0xC0000374: "heap damage",
    0xC000001D: "illegal instruction",
    0xC0000094: "division by zero",
}

_can_be_child = False  # whether this frozen program asked `freeze_support`


@dataclass(frozen=True, slots=True)
class End:
    """How a child ended. status: as `subprocess` gives it. seconds: the time after which it was given up, or None.
    words: the last lines of what it printed. strange: it was ended because it answered what no child of ours says."""

    status: int
    seconds: float | None
    words: tuple[str, ...]
    strange: bool = False

    @property
    def crash(self) -> str | None:
        """The signal or exception that ended it, None when it ended by itself or for a strange answer."""
        if self.strange:
            return None
        if os.name == "nt":
            if self.status == ABORTED:
                return "abort"
            code = self.status & 0xFFFFFFFF
            return _NTSTATUS.get(code, f"exception {code:#x}") if code >= 0xC0000000 else None
        if self.status >= 0:
            return None
        try:
            return signal.Signals(-self.status).name
        except ValueError:
            return f"signal {-self.status}"

    @property
    def killed(self) -> bool:
        """Whether somebody else killed it: the kernel does when memory runs out."""
        return self.seconds is None and self.crash == "SIGKILL"

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"was given up after {self.seconds:.0f} seconds without an answer"
        if self.strange:
            return "gave an answer that no child process of edgellm's gives"
        return ": ".join([f"ended with code {self.status}", *self.words[-1:]])


class Child:
    """The parent's end; a context manager.

    target: "edgellm.room:function", called there as function(parent, **job). job: plain values. environment: variables
    beside this process's own. pass_fds: descriptors that the child shares (not on Windows).

    Raises Unsupported when no interpreter can be started, or what was started is no child of ours.
    """

    def __init__(
        self,
        target: str,
        job: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        command = _command()
        self._token = secrets.token_hex(16)
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._given_up: float | None = None
        self._strange = False
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **(environment or {})},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                pass_fds=pass_fds,
            )
        except (OSError, ValueError) as error:
            self._log.close()
            raise Unsupported(f"{command[0]} cannot be started as a child process: {error}; {_advice()}") from error
        listener = threading.Thread(target=self._listen, name="edgellm-child", daemon=True)
        try:
            threads.start(listener)
            self.send({"token": self._token, "path": _search_path(), "target": target, "job": job})
            self._greet(command[0])
        except BaseException:
            self.close()
            if listener.ident is None and self._process.stdout is not None:
                self._process.stdout.close()  # there is no thread that does
            raise

    def _greet(self, program: str) -> None:
        """Wait until the child has shown that it is one. Raises Unsupported."""
        answer = self.receive(START_SECONDS, {"python": str | None})
        if answer is None:
            raise Unsupported(
                f"{program} was started as a child process, and is none of edgellm's: it {self.end}; {_advice()}"
            )
        found, own = answer["python"], sys.implementation.cache_tag
        if found != own:
            raise Unsupported(f"{program} is {str(found)[:100]}, and this process {own}; {_advice()}")

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message. To a child that is gone too: `receive` tells why."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, limit: float | None = None, *forms: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next answer, or None when the child ended without one: see `end`.

        limit: seconds; a child that takes longer is ended, and so is one whose answer has none of the forms: names of
        what is in it, and the type or again the form of each; more may be in it. Raises what the child's target
        raised: edgellm's errors as what they were, NotEnoughMemory, and BackendFailed for all others.
        """
        if self._strange:  # nothing that it says besides is believed
            return None
        try:
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self._given_up = limit
            self._process.kill()
            line = None
        if line is None:
            self._answers.put(None)  # for whoever asks again
            return None
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if _has(answer, {"raised": str, "message": str}):
            raise _error(answer["raised"], answer["message"])
        if not any(_has(answer, form) for form in forms or ({},)):
            self._strange = True
            self._process.kill()
            return None
        found: dict[str, Any] = answer
        return found

    @property
    def end(self) -> End:
        """How the child ended. It is waited for, and ended if it does not end by itself."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._given_up = END_SECONDS
            self._process.kill()
            status = self._process.wait()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - KEPT_LOG))
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        return End(status, self._given_up, tuple(line for line in lines if line.strip()), self._strange)

    def close(self) -> None:
        """End the child, whatever it does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):  # what was not written yet
            self._process.stdin.close()
        self._log.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        """Keep the answers. On a thread: a process that another one keeps open leaves no end to wait for."""
        head, size = self._token.encode() + b" ", KEPT_LOG
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            while piece := lines.readline(size):
                if piece.startswith(head) and piece.endswith(b"\n"):
                    self._answers.put(piece[len(head) :])
                    size = -1  # it is ours: its lines have an end
        self._answers.put(None)


def is_frozen() -> bool:
    """Whether this program was frozen: made into one that brings its own interpreter."""
    return bool(getattr(sys, "frozen", False))


def _command() -> list[str]:
    """What starts a child. Raises Unsupported."""
    if not is_frozen():
        return [_interpreter(), "-I", "-c", BOOTSTRAP]
    if not _can_be_child or not sys.executable:
        raise Unsupported(
            "this frozen program cannot start a child process: it does not call edgellm.child.freeze_support(), which "
            "has to come first in its main module (PyInstaller adds it by itself, with the hook that edgellm brings)"
        )
    return [sys.executable, ARGUMENT]


def _interpreter() -> str:
    """The Python that this process runs in: by its name, never by trying. Raises Unsupported."""
    spawn = sys.modules.get("multiprocessing.spawn")
    told = os.fsdecode(spawn.get_executable() or "") if spawn is not None else ""  # by set_executable, or its default
    candidates = [told, sys.executable, getattr(sys, "_base_executable", None)]
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        if os.name == "nt":
            names = ["python.exe", r"Scripts\python.exe"]
        else:
            names = [f"bin/python{VERSION}", "bin/python3", "bin/python"]
        candidates += [os.path.join(prefix, name) for name in names]
    for path in candidates:
        if path and PYTHON.fullmatch(os.path.basename(path)) and _can_run(path):
            return path
    if told and told != sys.executable and _can_run(told):  # under a name that we do not know
        return told
    raise Unsupported(
        f"no Python interpreter is found to start a child process with: sys.executable is {sys.executable!r}, and "
        f"there is none in {sys.exec_prefix}; {_advice()}"
    )


def _can_run(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _advice() -> str:
    if is_frozen():
        return "build the program anew, with edgellm.child.freeze_support() first in its main module"
    return f"tell where Python {VERSION} is: multiprocessing.set_executable('/path/to/python{VERSION}')"


def _search_path() -> list[str]:
    """This process's own: the same packages are found. Without the working folder: what lies there is the user's."""
    path = [entry for entry in sys.path if isinstance(entry, str) and entry]
    return [*path, str(Path(__file__).parents[1])]


def _has(value: Any, form: Any) -> bool:
    """Whether a value of JSON has a form: a type, or a mapping of names to forms."""
    if isinstance(form, Mapping):
        return isinstance(value, dict) and all(name in value and _has(value[name], form[name]) for name in form)
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, (int, float) if form is float else form)


def _error(name: str, message: str) -> EdgeLLMError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, EdgeLLMError):
        with suppress(TypeError):  # one that needs more than a message
            return kind(message)
    return BackendFailed(message)


# The child process


class Parent:
    """The child's end. Messages of the parent: iterate, until it is gone or wants no more."""

    def __init__(self, messages: IO[bytes], answers: IO[bytes], token: str) -> None:
        self._messages, self._answers, self._head = messages, answers, token.encode() + b" "
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self._messages)

    def say(self, **answer: Any) -> None:
        """Send one answer; from any thread."""
        with self._lock:
            self._answers.write(self._head + json.dumps(answer).encode() + b"\n")
            self._answers.flush()


def freeze_support() -> None:
    """For the main module of a frozen program, before anything else: what follows is not run in a child process."""
    global _can_be_child
    if not is_frozen():
        return
    _can_be_child = True
    if sys.argv[1:] == [ARGUMENT]:
        messages = open(os.dup(0), "rb")  # noqa: SIM115 (main does not return)
        main(messages, json.loads(messages.readline()))


def main(messages: IO[bytes], start: Mapping[str, Any]) -> None:
    """The child process: answer, do what it was started for, and leave past the clean-up of native libraries."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = open(os.dup(1), "wb")  # noqa: SIM115 (lives as long as the process)
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    _no_dumps()
    parent = Parent(messages, answers, start["token"])
    parent.say(python=sys.implementation.cache_tag)
    status = 0
    try:
        room, _, name = start["target"].partition(":")
        if not room.startswith("edgellm."):
            raise Unsupported(f"{room}: children run edgellm's own code only")
        getattr(import_module(room), name)(parent, **start["job"])
    except BaseException as error:  # SystemExit too: the parent waits for an answer
        status = 1
        with suppress(OSError):  # the parent is gone
            parent.say(**_raised(error))
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def _raised(error: BaseException) -> dict[str, str]:
    if isinstance(error, EdgeLLMError):
        return {"raised": type(error).__name__, "message": str(error)}
    if isinstance(error, MemoryError):
        return {"raised": "NotEnoughMemory", "message": f"memory ran out in a child process {error}".strip()}
    return {"raised": "BackendFailed", "message": " ".join(f"{type(error).__name__}: {error}".split())}


def _no_dumps() -> None:
    """A crash leaves no core dump and opens no dialog."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
