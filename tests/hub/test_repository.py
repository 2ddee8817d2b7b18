"""Models of the catalog whose file nobody here has had: their repository says what they are."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.errors import DownloadError, Offline
from edgellm.hub import ModelStore, PullEvent, pull, resolve

DATA = bytes(range(256)) * 200  # 51,200 bytes, where the catalog says 50,000

pytestmark = pytest.mark.usefixtures("store_home")


@pytest.fixture
def hub(fake_hub: Any) -> Any:
    fake_hub.files = {"open_q4_0-it.gguf": DATA, "open-Q8_0.gguf": b"other"}
    return fake_hub


def pulled(name: str) -> list[str]:
    events: list[PullEvent] = []
    pull(name, progress=events.append)
    return [event.text for event in events if not event.total]


def test_it_is_announced_and_checked_against_the_hub(hub: Any) -> None:
    assert pulled("open:1") == ["pulling open:1 (51.2 kB, mit) from hf:org/tiny-GGUF:open_q4_0-it"]
    entry = ModelStore().find("open:1")
    assert entry is not None
    assert (entry.proof, entry.type, entry.license, entry.problem) == ("hub", "Q4_0", "mit", None)
    assert entry.source == "hf:org/tiny-GGUF:open_q4_0-it@c0ffeec0ffee"
    assert entry.path.name == "open_q4_0-it.gguf"
    assert entry.path.read_bytes() == DATA


@pytest.mark.parametrize("name", ["open:1", "hf:org/tiny-GGUF:Q8_0"])
def test_what_is_here_is_not_fetched_again(hub: Any, name: str) -> None:
    pulled(name)
    hub.requests.clear()
    assert pulled(name) == [f"{name} is here already, and its SHA-256 is right"]
    assert [path for path, _ in hub.requests] == ["/api/models/org/tiny-GGUF"]
    hub.requests.clear()
    assert resolve(name) == resolve(name, offline=True)
    assert resolve("open" if name == "open:1" else "hf:org/tiny-gguf").is_file()
    assert hub.requests == []


def test_a_newer_file_is_announced_and_fetched(hub: Any) -> None:
    pulled("open:1")
    hub.files["open_q4_0-it.gguf"] = b"newer"
    assert pulled("open") == [
        "another version of open:1 is here; fetching the current one",
        "pulling open:1 (5 bytes, mit) from hf:org/tiny-GGUF:open_q4_0-it",
    ]
    assert resolve("open:1").read_bytes() == b"newer"


def test_a_damaged_file_is_fetched_again(hub: Any) -> None:
    pulled("open:1")
    resolve("open:1").write_bytes(bytes(len(DATA)))
    assert "damaged" in pulled("open:1")[0]
    assert resolve("open:1").read_bytes() == DATA


@pytest.mark.parametrize("name", ["open:1", "hf:org/tiny-GGUF:Q8_0"])
def test_without_a_network_what_is_here_is_good_enough(hub: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (told,) = pulled(name)
    assert told.startswith(
        f"{name} is here already, and its SHA-256 is right; whether there is a newer one could not be"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in pulled(name)[0]
    path = resolve(name)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(Offline):
        pull(name, progress=lambda event: None)
    ModelStore().remove(name)
    with pytest.raises(Offline):
        pull(name, progress=lambda event: None)


@pytest.mark.parametrize(
    ("card", "catalogs", "hubs"),
    [
        ({"license": "other", "license_name": "lfm1.0"}, "lfm1.0", "lfm1.0"),
        ({"license": "other"}, "other", "other"),
        ({}, "Apache-2.0", None),
    ],
)
def test_the_licence_is_the_repositorys_where_it_says_one(
    hub: Any, card: dict[str, str], catalogs: str, hubs: str | None
) -> None:
    hub.card = card
    assert pull("open:1", progress=lambda event: None).license == catalogs
    assert pull("hf:org/tiny-GGUF:Q8_0", progress=lambda event: None).license == hubs


def test_the_error_for_a_missing_file_names_the_others(hub: Any) -> None:
    del hub.files["open_q4_0-it.gguf"]
    with pytest.raises(DownloadError, match=r"it has Q8_0: choose one with hf:org/tiny-GGUF:QUANT"):
        pull("open:1", progress=lambda event: None)
