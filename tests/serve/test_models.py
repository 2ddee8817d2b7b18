"""Which models can be asked, and when they are loaded and unloaded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, running

import edgellm
from edgellm import LoadParams, Model
from edgellm.errors import InvalidParameter, ModelNotFound, NotEnoughMemory
from edgellm.serve import models as served
from edgellm.serve.models import Models
from edgellm.serve.settings import ServeParams, Serving

ECHO = LoadParams(backend="echo")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that the echo engine takes for models."""
    for name in ("one", "two", "sub/three", "big-00001-of-00002", "big-00002-of-00002"):
        path = tmp_path / "models" / f"{name}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
    return tmp_path / "models"


def made(folder: Path, load: Callable[..., Model] = edgellm.load, *named: str, **params: Any) -> Models:
    return Models(Serving(ServeParams(folder=(str(folder),), **params), named, ECHO), load)


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_models_of_a_folder_are_found_by_their_names(folder: Path) -> None:
    models = made(folder, alias=("claude-*=one", "gpt-?=third", "third=sub/three", "loop=loop2", "loop2=loop"))
    assert [each.name for each in models.listed()] == ["big-00001-of-00002", "one", "sub/three", "two"]
    for name, path in {
        "one": "one",
        "ONE": "one",
        "one:latest": "one",
        "claude-opus": "one",
        "gpt-4": "sub/three",
        str(folder / "two.gguf"): "two",
        "sub/three.gguf": "sub/three",
    }.items():
        assert models.find(name).path == folder / f"{path}.gguf"
    for wrong in ("gpt-44", "four", "", None, "loop", "../models/one.gguf\0", "x" * 10_000):
        with pytest.raises(ModelNotFound, match=r"there are: big-00001-of-00002, one, sub/three, two"):
            models.find(wrong)


def test_a_model_that_is_named_answers_for_none(folder: Path) -> None:
    models = made(folder, edgellm.load, str(folder / "two.gguf"))
    assert models.find(None).name == "two"
    assert models.listed()[0].name == "two"


def test_copies_are_names(folder: Path) -> None:
    models = made(folder)
    models.copy("one", "mine")
    assert models.find("mine").path == models.find("one").path
    asyncio.run(models.delete("mine"))
    with pytest.raises(ModelNotFound):
        models.find("mine")
    with pytest.raises(InvalidParameter, match="outside of the store"):
        asyncio.run(models.delete("one"))
    with pytest.raises(InvalidParameter):
        models.copy("one", "../up")
    assert (folder / "one.gguf").exists()


class Slow:
    """Loads slowly, and counts."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.now = self.most = 0
        self.gate = threading.Event()
        self.fail = 0

    def __call__(self, path: Path, params: LoadParams) -> Model:
        self.loads.append(Path(path).stem)
        self.now += 1
        self.most = max(self.most, self.now)
        assert self.gate.wait(30)
        self.now -= 1
        if self.fail:
            self.fail -= 1
            raise NotEnoughMemory("full")
        return edgellm.load(path, params)


def test_one_model_is_loaded_at_a_time_and_once(folder: Path) -> None:
    load = Slow()

    async def scenario() -> None:
        models = made(folder, load)

        async def use(name: str) -> Model:
            async with models.use(models.find(name)) as model:
                return model

        asked = [asyncio.ensure_future(use(name)) for name in ("one", "two") * 5]
        left = asyncio.ensure_future(use("sub/three"))
        await asyncio.sleep(0.1)
        left.cancel()  # whoever asked is gone; the model comes all the same, or would be loaded for nothing
        load.gate.set()
        found = await asyncio.gather(*asked)
        assert len(set(map(id, found))) == 2
        while len(models.residents()) < 3:
            await asyncio.sleep(0.01)
        await models.close()
        assert not models.residents()

    asyncio.run(scenario())
    assert sorted(load.loads) == ["one", "three", "two"]
    assert load.most == 1


def test_an_idle_model_makes_room(folder: Path) -> None:
    load = Slow()
    load.gate.set()

    async def scenario() -> None:
        models = made(folder, load)
        async with models.use(models.find("one")):
            async with models.use(models.find("two")):
                pass
            load.fail = 1
            async with models.use(models.find("sub/three")):
                assert {each.listed.name for each in models.residents()} == {"one", "sub/three"}
                load.fail = 5
                with pytest.raises(NotEnoughMemory):  # nothing is idle
                    async with models.use(models.find("two")):
                        pass
        await models.close()

    asyncio.run(scenario())


def test_idle_models_go_and_named_ones_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LOOK_SECONDS", 0.02)
    with running(folder / "one.gguf", load=ECHO, folder=(str(folder),), keep_alive=0.1) as server:

        def loaded() -> set[str]:
            return set(httpx.get(f"{server.url}/health").json()["loaded"])

        def ask(model: str, **more: Any) -> None:
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, **more}
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200

        assert loaded() == {"one"}
        ask("two")
        eventually(lambda: loaded() == {"one"})
        ask("two", keep_alive=-1)
        ask("sub/three", keep_alive=0)
        assert loaded() == {"one", "two"}
        time.sleep(0.3)
        assert loaded() == {"one", "two"}
        assert httpx.post(f"{server.url}/v1/edgellm/unload/two").json() == {"model": "two", "unloaded": True}
        assert loaded() == {"one"}
        ask("one", keep_alive=0)
        assert loaded() == {"one"}


def test_wrong_names_are_told_with_the_right_ones(server: Running) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "smolm2", "prompt": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "minilm" in answer.json()["error"]["message"]
