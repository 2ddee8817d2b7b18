"""The contestants that come with edgellm, on a tiny random model; peers only where llama-cpp-python brings them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_models import tiny

from edgellm.bench import peers
from edgellm.bench.bandwidth import read_bandwidth, weight_bytes
from edgellm.bench.contestants import BareLoop, EdgeLLM, Prompt
from edgellm.bench.worker import Worker
from edgellm.errors import BackendFailed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny("llama").write(tmp_path_factory.mktemp("bench") / "tiny.gguf"))


def test_edgellm_answers_and_times_the_whole_answer() -> None:
    contestant = EdgeLLM("echo", 512, 1, backend="echo")
    for new_tokens in (1, 5):
        sample = contestant.generate(Prompt([104, 105], "hi"), new_tokens)
        assert (sample.prompt, sample.produced) == (2, new_tokens)
        assert sample.answer is not None
        assert len(sample.answer) == new_tokens
        assert sample.first_s > 0
        assert (sample.rest_s > 0) == (new_tokens > 1)


def test_nothing_of_an_earlier_prompt_is_reused() -> None:
    contestant = EdgeLLM("echo", 512, 1, backend="echo")
    prompt = contestant.write_prompt(64, seed=0)
    contestant.generate(prompt, 4)
    contestant.generate(prompt, 4)  # raises if tokens were reused


def test_prompts_have_their_size_and_repeat_with_their_seed() -> None:
    contestant = EdgeLLM("echo", 512, 1, backend="echo")
    prompt = contestant.write_prompt(100, seed=3)
    assert len(prompt.tokens) == 100
    assert contestant.model.encode(prompt.text, bos=False) == prompt.tokens
    assert contestant.write_prompt(100, seed=3) == prompt
    assert contestant.write_prompt(100, seed=4) != prompt


def test_the_bare_loop_gives_the_same_tokens_as_edgellm(model: str) -> None:
    ours, bare = EdgeLLM(model, 512, 1, backend="llamacpp"), BareLoop(model, 512, 1)
    for size in (1, 8, 200):
        prompt = ours.write_prompt(size, seed=size)
        expected = bare.generate(prompt, 9)
        assert expected.produced == 9
        assert ours.generate(prompt, 9).answer == expected.answer


@pytest.mark.parametrize("name", ["edgellm", "bare loop", "llama_cpp", "llama_cpp tuned"])
def test_a_worker_answers_until_it_is_closed(model: str, name: str) -> None:
    worker = Worker(name, model, 512, 1)
    try:
        assert worker.receive()["settings"]["n_ctx"] == 512
        for tokens in ([7, 8, 9], [9, 8, 7, 6]):
            reply = worker.ask({"prompt": {"tokens": tokens, "text": ""}, "new_tokens": 3})
            assert reply["sample"]["prompt"] == len(tokens)
            assert reply["sample"]["produced"] >= 3 or "llama_cpp" in name  # which stops at the end of a text
            assert reply["idle_s"] >= 0
            assert reply["peak_bytes"] > 1 << 20 or sys.platform == "win32"
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    worker = Worker("edgellm", str(tmp_path / "missing.gguf"), 512, 1)
    try:
        with pytest.raises(BackendFailed, match=r"ModelNotFound: .*missing\.gguf"):
            worker.receive()
    finally:
        worker.close()


def test_a_worker_that_dies_leaves_its_last_words(model: str) -> None:
    worker = Worker("no such contestant", model, 512, 1)
    try:
        with pytest.raises(BackendFailed, match="StopIteration"):
            worker.receive()
    finally:
        worker.close()


def test_a_worker_that_takes_too_long_is_given_up(model: str) -> None:
    worker = Worker("edgellm", model, 512, 1)
    try:
        worker.receive()
        with pytest.raises(BackendFailed, match="given up after 0 seconds"):
            worker.receive(limit=0.05)  # nothing was asked, so nothing comes
    finally:
        worker.close()


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: name if name == "llama_cpp" else None)
    here, absent = peers.installed()
    assert [entry.name for entry in here] == ["llama_cpp", "llama_cpp tuned"]
    assert absent == dict.fromkeys(["xllamacpp", "openvino-genai", "mistralrs", "onnxruntime-genai"], "not installed")


def test_weights_read_per_token(tmp_path: Path) -> None:
    def nbytes(arch: str, *parts: str) -> int:
        stored = tiny(arch).tensors.items()
        return sum(4 * _count(shape) for name, (shape, _, _) in stored if any(part in name for part in parts))

    for arch in ("llama", "gemma3", "mixtral"):
        tiny(arch).write(tmp_path / f"{arch}.gguf")
    rows, hidden = tiny("llama").tensors["token_embd.weight"][0]
    unread = 4 * (rows - 1) * hidden  # of an embedding that is not the head, too
    assert weight_bytes(tmp_path / "gemma3.gguf") == nbytes("gemma3", "")
    assert weight_bytes(tmp_path / "llama.gguf") == nbytes("llama", "") - unread
    experts = nbytes("mixtral", "_exps") // 2  # 2 of 4
    assert weight_bytes(tmp_path / "mixtral.gguf") == nbytes("mixtral", "") - unread - experts


def test_bandwidth_is_a_rate() -> None:
    assert 1e6 < read_bandwidth(2, array_bytes=1 << 20) < 1e15


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
