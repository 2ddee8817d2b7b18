"""edgellm cache: what is on disk, and how to get rid of it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgellm.cli import cache as command
from edgellm.cli.cache import cache, since
from edgellm.kv.blocks import chain, root_key
from edgellm.kv.store import BlockStore, store_path


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))


@pytest.fixture
def filled() -> list[int]:
    """Two conversations that share a block; the sizes of the three files, the shared one first."""
    store = BlockStore(store_path())
    for words, last, size in (("What is a KV cache?", 1, 3_000), ("Wie heißt du?", 2, 5_000)):
        for block in chain(root_key("cli"), [7] * 256 + [last]):
            store.write(block, bytes(2_000 if block.start == 0 else size), label="smollm2:135m", words=words)
        assert store.flush(30)
    store.close()
    shared = chain(root_key("cli"), [7] * 256)[0].key.hex()
    sizes = {path.stem: path.stat().st_size for path in store_path().glob("*/*.kv")}
    return [sizes.pop(shared), *sorted(sizes.values())]


def call(*arguments: str, code: int = 0, stdin: str | None = None) -> str:
    done = CliRunner().invoke(cache, arguments, input=stdin)
    assert done.exit_code == code, done.output
    return done.output


def test_an_empty_cache_says_so() -> None:
    assert call("ls") == "No prompts are kept yet.\n"
    assert json.loads(call("ls", "--json"))["conversations"] == []
    assert call("clear") == "0 bytes freed\n"


def test_ls_shows_conversations(filled: list[int]) -> None:
    head, *rows, _, total = call("ls").splitlines()
    assert head.split() == ["MODEL", "TOKENS", "SIZE", "AGE", "USED", "BEGINS", "WITH"]
    assert [row.split() for row in rows] == [
        f"smollm2:135m 257 {(filled[0] + filled[2]) / 1000:.1f} kB now now Wie heißt du?".split(),
        f"smollm2:135m 257 {(filled[0] + filled[1]) / 1000:.1f} kB now now What is a KV cache?".split(),
    ]
    assert total.startswith(f"{sum(filled) / 1000:.1f} kB of at most ")
    assert "3 blocks; what conversations share is there once" in total


def test_ls_as_json(filled: list[int]) -> None:
    report = json.loads(call("ls", "--json"))
    assert report["path"] == str(store_path())
    assert report["bytes"] == sum(filled)
    assert report["blocks"] == 3
    assert report["problem"] is None
    assert report["budget"] > 0
    first = report["conversations"][0]
    assert (first["bytes"], first["shared_bytes"]) == (filled[0] + filled[2], filled[0])
    assert (first["model"], first["words"], first["tokens"]) == ("smollm2:135m", "Wie heißt du?", 257)
    assert 0 <= first["idle_seconds"] <= first["age_seconds"] < 600


def test_prune_keeps_what_was_used_last(filled: list[int]) -> None:
    assert call("prune") == f"0 bytes freed, {sum(filled) / 1000:.1f} kB left\n"
    assert "freed" in call("prune", "--to", "9.5kB")
    assert [e["words"] for e in json.loads(call("ls", "--json"))["conversations"]] == ["Wie heißt du?"]
    call("prune", "--to", "0")
    assert json.loads(call("ls", "--json"))["bytes"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("17", 17), ("500MB", 500_000_000), ("2.5 gb", 2_500_000_000), ("1GiB", 1 << 30), ("3k", 3000)],
)
def test_sizes(text: str, expected: int) -> None:
    context = click.Context(cache)
    assert command.parse_size(context, click.Option(["--to"]), text) == expected


@pytest.mark.parametrize("text", ["", "-1", "much", "1XB", "1e9", "１２"])
def test_what_is_no_size_is_wrong_usage(text: str) -> None:
    assert "is not a size; write it like 500MB or 2GB." in call("prune", "--to", text, code=2)


def test_clear_asks_first(filled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "say --yes" in call("clear", code=2)
    monkeypatch.setattr(command, "interactive", lambda: True)
    call("clear", code=1, stdin="n\n")
    assert json.loads(call("ls", "--json"))["blocks"] == 3
    assert f"{sum(filled) / 1000:.1f} kB freed" in call("clear", stdin="y\n")
    assert json.loads(call("ls", "--json"))["blocks"] == 0


def test_clear_yes(filled: list[int]) -> None:
    assert call("clear", "--yes") == f"{sum(filled) / 1000:.1f} kB freed\n"
    assert list(store_path().glob("*/*.kv")) == []


def test_path() -> None:
    assert call("path") == f"{store_path()}\n"


def test_a_cache_that_cannot_be_used_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kv").write_text("in the way")
    assert "cannot be written" in call("ls")
    done = CliRunner().invoke(cache, ["clear", "--yes"])
    assert "cannot be written" in str(done.exception)


def test_durations() -> None:
    assert [since(s) for s in (0, 59, 60, 3599, 3600, 86399, 86400, 9e6)] == [
        "now",
        "now",
        "1 min",
        "59 min",
        "1 h",
        "23 h",
        "1 d",
        "104 d",
    ]
