"""Child processes: who is believed, which program is started, how they end. What they do is tested where it is used."""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing import spawn
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm import child, errors
from edgellm.child import Child, End
from edgellm.errors import BackendFailed, ModelLoadError, NotEnoughMemory, Unsupported

posix = pytest.mark.skipif(os.name == "nt", reason="shell scripts and signals")

# A room of edgellm's that only these tests' children find.
ROOM = """
import os, sys, threading
from edgellm import errors

def add(parent, start):
    for message in parent:
        parent.say(sum=start + message["number"])

def look(parent):
    print("from print")
    os.write(1, b"from the descriptor\\n")
    parent.say(path=sys.path, input=sys.stdin.read(), beside=os.environ.get("BESIDE"), home=os.environ.get("HOME"))

def fail(parent, code):
    exec(code)

def end(parent, code):
    print("first", "last words", sep=os.linesep, file=sys.stderr)
    parent.say(ready=True)
    exec(code)

def many(parent):
    def work(n):
        for _ in range(5):
            parent.say(n=n, pad="x" * 70000)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "path" / "edgellm"
    package.mkdir(parents=True)
    real = Path(child.__file__).parent
    (package / "__init__.py").write_text(f"__path__ = [{str(package)!r}, {str(real)!r}]", encoding="utf-8")
    (package / "odd.py").write_text(ROOM, encoding="utf-8")
    path = child._search_path()
    monkeypatch.setattr(child, "_search_path", lambda: [str(package.parent), *path])
    return "edgellm.odd"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `sys.executable` a script that is called python, in an installation without another one."""

    def write(script: str, name: str = "python") -> str:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
        pretend(str(path), tmp_path / "nothing", monkeypatch)
        return str(path)

    return write


def pretend(executable: str | None, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "_base_executable", executable)
    monkeypatch.setattr(spawn, "_python_exe", executable)
    for name in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(prefix))


def start() -> None:
    """Start a child that would answer if it were one."""
    Child("edgellm.child:is_frozen", {}).close()


def test_a_child_that_nobody_can_listen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NotEnoughMemory, match="edgellm-child cannot be started"):
        start()


def test_questions_and_answers(room: str) -> None:
    with Child(f"{room}:add", {"start": 40}) as asked:
        for number in (1, 2, 10**20):
            asked.send({"number": number})
            assert asked.receive(60) == {"sum": 40 + number}


def test_answers_of_several_threads_stay_whole(room: str) -> None:
    with Child(f"{room}:many", {}) as asked:
        got = []
        while (answer := asked.receive(60)) is not None:
            got.append((answer["n"], len(answer["pad"])))
        assert asked.end.status == 0
        assert asked.receive() is None  # and stays so
    assert sorted(got) == [(n, 70000) for n in range(4) for _ in range(5)]


def test_printed_text_is_no_answer_and_the_path_is_ours(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the user has a file of this name')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HOME", "as before")
    with Child(f"{room}:look", {}, environment={"BESIDE": "yes"}) as asked:
        seen = asked.receive(60)
        assert seen is not None
        assert asked.end.words == ("from print", "from the descriptor")
    assert seen["path"] == child._search_path()
    assert (seen["input"], seen["beside"], seen["home"]) == ("", "yes", "as before")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("raise errors.ModelLoadError('no layers in it')", ModelLoadError, "^no layers in it$"),
        ("raise errors.ContextOverflow('too long', needed=2, n_ctx=1)", BackendFailed, "too long"),
        ("raise MemoryError('here')", NotEnoughMemory, "memory ran out in a child process here"),
        ("raise KeyError('k')", BackendFailed, "^KeyError: 'k'$"),
        ("raise KeyboardInterrupt", BackendFailed, "KeyboardInterrupt"),
        ("sys.exit(0)", BackendFailed, "SystemExit: 0"),
        ("parent.say(odd=object())", BackendFailed, "TypeError.*not JSON serializable"),
    ],
)
def test_what_the_child_raises_is_raised_here(room: str, code: str, kind: type[Exception], words: str) -> None:
    with Child(f"{room}:fail", {"code": code}) as asked:
        with pytest.raises(errors.EdgeLLMError, match=words) as caught:
            asked.receive(60)
        assert asked.end.status == 1
    assert type(caught.value) is kind


@pytest.mark.parametrize("target", ["os:abort", "json.tool:main", "edgellm.missing:f", "edgellm.child:missing"])
def test_only_our_own_code_runs(target: str) -> None:
    with Child(target, {}) as asked, pytest.raises((Unsupported, BackendFailed)):
        asked.receive(60)


@posix
@pytest.mark.parametrize(
    ("code", "status", "crash"),
    [
        ("os.abort()", -6, "SIGABRT"),
        ("os.kill(os.getpid(), 11)", -11, "SIGSEGV"),
        ("os.kill(os.getpid(), 9)", -9, "SIGKILL"),
        ("os.kill(os.getpid(), 2); os._exit(7)", 7, None),  # Ctrl-C is the parent's
        ("os._exit(0)", 0, None),
    ],
)
def test_ends(room: str, code: str, status: int, crash: str | None) -> None:
    with Child(f"{room}:end", {"code": code}) as asked:
        assert asked.receive(60) == {"ready": True}
        assert asked.receive(60) is None
        end = asked.end
    assert end == End(status, None, ("first", "last words"))
    assert (end.crash, end.killed) == (crash, status == -9)
    assert str(end) == f"ended with code {status}: last words"


def test_one_that_hangs_is_given_up(room: str) -> None:
    with Child(f"{room}:end", {"code": "import time; time.sleep(600)"}) as asked:
        assert asked.receive(60) == {"ready": True}
        assert asked.receive(0.05) is None
        assert (asked.end.seconds, asked.end.killed) == (0.05, False)
        assert "given up after 0 seconds" in str(asked.end)


def test_one_that_answered_and_does_not_end_is_ended(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "END_SECONDS", 0.05)
    with Child(f"{room}:end", {"code": "import time; time.sleep(600)"}) as asked:
        assert asked.receive(60) == {"ready": True}
        assert asked.end.seconds == 0.05


def test_windows_exceptions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "os", SimpleNamespace(name="nt"))
    names = [End(status, None, ()).crash for status in (0xC0000005, 0xC0000005 - (1 << 32), 3, 0xC00000FF, 10, 0)]
    assert names == ["access violation", "access violation", "abort", "exception 0xc00000ff", None, None]


# --- which program is started -------------------------------------------------------------------------------------

SCRIPTS = {
    "exits 0": "#!/bin/sh\nexit 0\n",
    "exits 1": "#!/bin/sh\necho no such option >&2\nexit 1\n",
    "crashes": "#!/bin/sh\nkill -SEGV $$\n",
    "prints nonsense": '#!/bin/sh\necho \'{"python": "cpython-311", "found": "passed"}\'\n',
    "says its arguments": '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n',
    "never ends a line": "#!/bin/sh\nhead -c 3000000 /dev/zero\n",
    "closes its output": "#!/bin/sh\nexec >&- <&-\n",
}


@posix
@pytest.mark.parametrize("script", SCRIPTS)
def test_another_program_is_not_believed(program: Any, script: str) -> None:
    path = program(SCRIPTS[script])
    with pytest.raises(Unsupported, match=rf"{path} was started.*set_executable\('/path/to/python3"):
        start()


@posix
@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nexec sleep 600\n",
        "#!/bin/sh\nsleep 20; true\n",  # a process of its own keeps the pipe
        "#!/bin/sh\nwhile :; do echo y; done\n",
        "#!/bin/sh\nexec cat /dev/zero\n",
        "#!/bin/sh\nexec cat\n",  # says what it hears
    ],
)
def test_a_program_that_does_not_answer_is_given_up(program: Any, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program(script)
    monkeypatch.setattr(child, "START_SECONDS", 0.2)
    with pytest.raises(Unsupported, match="given up after 0 seconds without an answer"):
        start()


STRANGE = ["garbage", "[]", "{}", "5", "null", '"python"', '{"python": 5}', '{"raised": 1}', "[" * 30_000, "\\377", ""]


@posix
@pytest.mark.parametrize("answer", STRANGE, ids=lambda answer: answer[:12])
def test_a_stranger_who_knows_the_token_is_not_believed(program: Any, answer: str) -> None:
    """It reads what it is told, and answers with the token."""
    take = """read -r line; token=$(printf %s "$line" | sed 's/.*"token": "\\([0-9a-f]*\\)".*/\\1/')"""
    path = program(f"#!/bin/sh\n{take}\nprintf '%s ' $token\nprintf '{answer}\\n'\nexec sleep 60\n")
    with pytest.raises(Unsupported, match=rf"{path} was started.*gave an answer that no child.*set_executable"):
        start()


def test_answers_have_the_form_that_is_asked_for(room: str) -> None:
    form = {"sum": int}
    with Child(
        f"{room}:fail", {"code": "parent.say(sum=1, more={'x': 0.5}); parent.say(sum=True); parent.say(sum=1)"}
    ) as asked:
        assert asked.receive(60, {"other": str}, {"sum": float, "more": {"x": float}}) == {"sum": 1, "more": {"x": 0.5}}
        assert asked.receive(60, form) is None
        assert asked.receive(60, form) is None  # and nothing more
        assert (asked.end.strange, asked.end.crash, asked.end.killed) == (True, None, False)
        assert "gave an answer" in str(asked.end)


@posix
def test_a_file_that_is_no_program(program: Any) -> None:
    program("neither a script nor a program\n")
    with pytest.raises(Unsupported, match=r"cannot be started.*set_executable"):
        start()


@posix
def test_another_python_is_refused(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    monkeypatch.setattr(sys, "implementation", SimpleNamespace(cache_tag="cpython-300", name="cpython"))
    with pytest.raises(Unsupported, match=r"cpython-3.*, and this process cpython-300"):
        start()


@pytest.mark.parametrize("executable", [None, "", "/nonexistent/python", sys.prefix, __file__, "uwsgi", "python"])
def test_no_interpreter_is_a_typed_error(
    executable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(executable, tmp_path, monkeypatch)
    with pytest.raises(Unsupported, match=rf"no Python interpreter.*{tmp_path.name}.*set_executable"):
        start()


@posix
@pytest.mark.parametrize("name", ["uwsgi", "FreeCAD", "python-editor", "mypython", "true", "run.py"])
def test_a_host_program_is_not_started_and_its_python_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, trace = sys.executable, tmp_path / "started"
    for path, script in (("host", f"touch {trace}"), ("bin/python3", f'exec {python} "$@"')):
        file = tmp_path / path.replace("host", name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(0o755)
    pretend(str(tmp_path / name), tmp_path, monkeypatch)
    assert child._interpreter() == str(tmp_path / "bin" / "python3")
    start()
    assert not trace.exists()


@posix
@pytest.mark.parametrize("name", ["python3.11", "Python", "pythonw", "python3.13t", "pypy3", "mayapy", "python3-dbg"])
def test_interpreters_are_known_by_name(name: str, program: Any) -> None:
    path = program("", name)
    assert child._interpreter() == path


@posix
def test_what_the_host_names_comes_first(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, host = program(f'#!/bin/sh\nexec {sys.executable} "$@"\n', "interpreter"), tmp_path / "host"
    monkeypatch.setattr(sys, "executable", str(host))
    spawn.set_executable(told)  # type: ignore[attr-defined]
    assert child._interpreter() == told
    start()


# --- frozen programs ----------------------------------------------------------------------------------------------


@posix
def test_a_frozen_program_is_started_only_if_it_can_be_a_child(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, trace = sys.executable, tmp_path / "started"
    code = "import sys; sys.frozen = True; from edgellm.child import freeze_support; freeze_support(); print('main')"
    path = ":".join(child._search_path())
    program(f'#!/bin/sh\ntouch {trace}\nPYTHONPATH="{path}" exec {python} -c "{code}" "$@"\n')
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(child, "_can_be_child", False)
    with pytest.raises(Unsupported, match=r"frozen program.*freeze_support\(\)"):
        start()
    assert not trace.exists()
    monkeypatch.setattr(sys, "argv", ["program", "--some", child.ARGUMENT])  # its own business
    child.freeze_support()
    with Child("edgellm.child:missing", {}) as asked, pytest.raises(BackendFailed, match="missing"):
        asked.receive(60)
    program("#!/bin/sh\necho main\n")  # made anew without it, meanwhile
    with pytest.raises(Unsupported, match="none of edgellm's"):
        start()


def test_freeze_support_of_a_plain_program_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", child.ARGUMENT])
    child.freeze_support()
    assert not child._can_be_child
