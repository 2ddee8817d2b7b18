"""The programs of examples/, run as a reader would."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from serving import Running, running
from source_tree import ROOT

import edgellm

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object, said: str = "") -> str:
    """What a program prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        command, input=said, capture_output=True, encoding="utf-8", check=False, timeout=300, env=_environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": "utf-8", "QT_QPA_PLATFORM": "offscreen"}


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Running]:
    with running(smollm2) as found:
        yield found


def test_every_example_says_how_to_run_it() -> None:
    found = sorted(EXAMPLES.glob("*.py"))
    assert len(found) >= 7
    tests = Path(__file__).read_text(encoding="utf-8")
    for each in found:
        assert f"python examples/{each.name}" in each.read_text(encoding="utf-8").split('"""')[1]
        assert each.stem in tests


def test_stdio_client_asks_all_at_once(smollm2: Path) -> None:
    said = run("stdio_client.py", smollm2, "Say hi.", "What is red?")
    assert [each for each in said.splitlines() if each.startswith("> ")] == ["> Say hi.", "> What is red?"]
    assert len(re.findall(r"^\[\d+ tokens, (stop|length)\]$", said, re.MULTILINE)) == 2
    client = imported("stdio_client").Client(str(smollm2))
    assert client.hello["protocol"] == 1
    client.send("a", "chat", messages=[{"role": "user", "content": "Count to a thousand."}], max_tokens=4000)
    events = client.answer("a")
    while next(events)["event"] != "chunk":
        pass
    client.send("a", "cancel")
    assert [*events][-1]["finish_reason"] == "cancelled"
    client.send("b", "chat", messages=[])
    with pytest.raises(RuntimeError, match="messages"):
        list(client.answer("b"))
    client.send("c", "status")
    assert next(client.answer("c"))["version"] == edgellm.__version__
    assert client.close() == 0


def test_ask_documents_reads_them_once(smollm2: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    files[0].write_text("The red key opens the cellar. " * 40, encoding="utf-8")
    files[1].write_text("The blue key opens the attic. " * 40, encoding="utf-8")
    reused = re.compile(r"\[([\d,]+) of ([\d,]+) tokens were known \((.*)\); ([\d,]+) read in [\d.]+ s\]")
    first, second = reused.findall(
        run("ask_documents.py", smollm2, *files, said="Which key opens the cellar?\nAnd the attic?\n")
    )
    assert int(first[0]) < 30
    assert int(first[3].replace(",", "")) > 500
    assert int(second[3]) < 30
    assert "the engine" in second[2]
    [again] = reused.findall(run("ask_documents.py", smollm2, *files, said="What of the windows?\n\n"))
    assert "the disk" in again[2]
    assert int(again[3].replace(",", "")) < int(first[3].replace(",", "")) / 2
    long = tmp_path / "long.txt"
    long.write_text("word " * 50_000, encoding="utf-8")
    command = [sys.executable, str(EXAMPLES / "ask_documents.py"), str(smollm2), str(long)]
    done = subprocess.run(command, input="Why?\n", capture_output=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ask_documents: " in done.stderr


def test_assistant_with_tools_asks_and_calls(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small model, which has to be told to call, and what."""
    program = imported("assistant_with_tools")
    (tmp_path / "shopping.txt").write_text("milk, bread", encoding="utf-8")
    run_chat, chats, asked = edgellm.Chat.run, list[edgellm.Chat](), list[str]()

    def calling(chat: edgellm.Chat, content: str, **options: Any) -> edgellm.Completion:
        chats.append(chat)
        return run_chat(chat, content, tool_choice=content, max_tokens=60, temperature=0, **options)

    monkeypatch.setattr(edgellm.Chat, "run", calling)
    said = iter(["calculate", "y", "read_file", "not now", "today", "yes", ""])

    def answered(prompt: str) -> str:
        asked.append(prompt)
        return next(said)

    monkeypatch.setattr("builtins.input", answered)
    program.main(str(smollm2), str(tmp_path))
    assert [each.split("(")[0].strip() for each in asked if "run" in each] == [
        f"run {name}" for name in ("calculate", "read_file", "today")
    ]
    results = [message["content"] for message in chats[0].messages if message["role"] == "tool"]
    assert len(results) == 3
    assert "not approved: not now" in results[1]
    assert results[2] == program.today()
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_assistant_with_tools_stays_in_its_folder(tmp_path: Path) -> None:
    program = imported("assistant_with_tools")
    program.folder = tmp_path / "folder"
    program.folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (program.folder / "note.txt").write_text("buy milk", encoding="utf-8")
    (program.folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert program.read_file("note.txt") == "buy milk"
    for outside in ("../secret.txt", str(tmp_path / "secret.txt"), "link.txt", "."):
        with pytest.raises(PermissionError):
            program.read_file(outside)
    with pytest.raises(FileNotFoundError, match=r"there are: link\.txt, note\.txt"):
        program.read_file("other.txt")
    assert program.calculate("-(3 + 4) * 2.5 // 1 % 7") == -(3 + 4) * 2.5 // 1 % 7
    for wrong in ("__import__('os')", "2 ** 99999", "'a' * 9", "a", "(lambda: 1)()", "1 +"):
        with pytest.raises((ValueError, KeyError, SyntaxError, TypeError)):
            program.calculate(wrong)


@pytest.mark.parametrize("name", ["with_openai", "with_ollama", "with_anthropic"])
def test_other_peoples_clients_are_answered(server: Running, smollm2: Path, name: str) -> None:
    for model in ([], [smollm2.stem]):
        said = run(f"{name}.py", server.url, *model)
        if name == "with_anthropic":
            assert re.search(r"weather\(\{'city': '(Rome|Oslo)'\}\)", said)
            [known, new] = re.findall(r"^\[(\d+) tokens were known, (\d+) were not\]$", said, re.MULTILINE)[0]
            assert f"[the prompt has {int(known) + int(new)} tokens]" in said
        else:
            assert re.search(r"^name='.*' country='.*' inhabitants=-?\d+$", said, re.MULTILINE)
            assert re.search(r"known", said)


WINDOW = """
import os, sys, time, traceback
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
sys.path.insert(0, sys.argv[1])
import pyside_chat
model, scene, picture = sys.argv[2:]
until = time.monotonic() + 60
done = []

def step():
    assert time.monotonic() < until, (scene, done, window.text.toPlainText())
    shown = window.text.toPlainText()
    if scene == "loading":
        assert window.model is None
        close("closed while it was loaded")
    elif not window.line.isEnabled() and not done:
        pass  # it is being loaded
    elif not done:
        reads = scene in ("reading", "reading-close")  # each what is not known yet
        window.line.setText(scene + " word" * 3000 + "?" if reads else "Count to a hundred.")
        window.line.returnPressed.emit()
        assert not window.line.isEnabled() and window.stop.isEnabled()
        done.append("asked")
    elif done == ["asked"] and scene in ("reading", "reading-close"):
        if window.bar.isVisible():
            assert 0 <= window.bar.value() < window.bar.maximum() and window.bar.maximum() > 3000
            picture and window.grab().save(picture)
            close("closed while it was read") if scene.endswith("close") else (window.stop.click(), done.append("stop"))
    elif done == ["asked"] and window.line.isEnabled():
        done.clear()  # a short answer: once more
    elif done == ["asked"] and len(shown.rpartition("> ")[2]) > 60:
        if scene == "close":
            close("closed in the midst of an answer")
        else:
            picture and window.grab().save(picture)
            window.stop.click()
            done.append("stopped")
    elif done[-1].startswith("stop") and window.line.isEnabled():
        assert window.chat.messages or scene != "stop"  # while a prompt is read, the stop may come behind its end
        close("closed when nothing ran")

def close(why):
    started = time.monotonic()
    window.close()
    assert not window.isVisible() and time.monotonic() - started < 1
    done.append(why)
    timer.stop()

def guarded():
    try:
        step()
    except BaseException:
        traceback.print_exc()
        os._exit(1)

app = QApplication([])
window = pyside_chat.Window(model)
window.resize(640, 480)
window.show()
timer = QTimer(interval=5)
timer.timeout.connect(guarded)
timer.start(0 if scene == "loading" else 5)
code = app.exec()
assert done and done[-1].startswith("closed"), done
assert not window.loading.isRunning() and not (window.answer and window.answer.isRunning())
if window.model is not None:
    window.model.close()
print(done)
sys.exit(code)
"""


@pytest.mark.parametrize("scene", ["stop", "close", "reading", "reading-close", "loading"])
def test_pyside_chat_in_a_window(smollm2: Path, tmp_path: Path, scene: str) -> None:
    pytest.importorskip("PySide6.QtWidgets", reason="PySide6, or a library that it needs", exc_type=ImportError)
    picture = tmp_path / "window.png"
    command = [sys.executable, "-c", WINDOW, str(EXAMPLES), str(smollm2), scene, str(picture)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=300, env=_environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "QThread" not in done.stderr, done.stderr
    assert "closed" in done.stdout
    if scene in ("stop", "reading"):
        assert picture.stat().st_size > 1000
