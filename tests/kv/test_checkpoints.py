"""Models whose state cannot be truncated (recurrent, hybrid) go on from checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import tiny

import edgellm
from edgellm.model import Model


@pytest.fixture(params=["lfm2", "mamba"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny(request.param).write(tmp_path / "model.gguf")


def load(path: Path) -> Model:
    return edgellm.load(path, ctx=500, micro_batch=64, trust=True)


def ask(model: Model, tokens: list[int], **options: object) -> edgellm.Completion:
    return model.generate(tokens, temperature=0, max_tokens=5, ignore_eos=True, logprobs=3, **options)  # type: ignore[arg-type]


def tokens(model: Model, text: str, count: int) -> list[int]:
    return (model.encode(text) * count)[:count]


def test_the_same_prompt_again_computes_only_its_end(path: Path) -> None:
    with load(path) as model:
        assert not model.info.can_truncate
        prompt = tokens(model, "hello world ", 203)
        first, again = ask(model, prompt), ask(model, prompt)
        assert (first.cache.computed, again.cache.computed) == (203, 11)
        assert again.logprobs == first.logprobs == ask(model, prompt, cache=False).logprobs


def test_a_new_process_finds_the_checkpoint_on_disk(path: Path) -> None:
    with load(path) as model:
        prompt = tokens(model, "one two three ", 150)
        first = ask(model, prompt)
    with load(path) as model:
        again = ask(model, prompt)
        assert (again.cache.from_disk, again.cache.computed) == (140, 10)
        assert again.logprobs == first.logprobs


def test_an_answer_is_gone_on_from(path: Path) -> None:
    with load(path) as model:
        prompt = tokens(model, "hello ", 120)
        first = ask(model, prompt)
        longer = prompt + first.tokens + tokens(model, "and then ", 12)
        second = ask(model, longer)
        assert second.cache.from_live == 124  # all but the last token of the answer, which was sampled and not fed
        assert "goes on where the known text ends" in second.cache.reason


def test_a_prefix_seen_twice_gets_a_checkpoint(path: Path) -> None:
    with load(path) as model:
        system = tokens(model, "the rules are these ", 130)
        done = [ask(model, system + tokens(model, text, 90)) for text in ("alpha ", "beta ", "gamma ")]
        assert [one.cache.computed for one in done[:2]] == [220, 220]
        assert "goes on only from a checkpoint, the nearest one at token 0" in done[1].cache.reason
        assert done[2].cache.from_memory == 128
        assert done[2].logprobs == ask(model, system + tokens(model, "gamma ", 90), cache=False).logprobs
