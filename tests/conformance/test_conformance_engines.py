"""The same model in two formats is the same model: a GGUF file and the ONNX folder made of it, both in float32.

Texts may part where the two likeliest tokens are as good as equal, for the engines add in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny
from tokens_oracle import random_texts

import edgellm
from edgellm.converters import ConvertParams, convert
from edgellm.model import Model
from edgellm.params import Backend

Pair = tuple[Model, Model]  # on an engine for GGUF files, on ONNX Runtime
KINDS: list[tuple[str, Backend]] = [
    *(("tiny-llama", "llamacpp"), ("tiny-llama", "native"), ("tiny-gemma3", "llamacpp"), ("tiny-gemma3", "native")),
    *(("smollm2", "native"), ("gemma3", "llamacpp")),
]
CTX, NEAR = 512, 1e-2  # NEAR: a difference of logits that is none
TEXTS = ["The history of the lighthouse begins", "def fibonacci(n):\n", "naïve Ω 🙂 \t\t1234567, and"]
STORY = "Once upon a time there was a small town by the sea, where every morning the fishermen " * 8


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    kind, backend = request.param
    folder = tmp_path_factory.mktemp(kind)
    if kind.startswith("tiny-"):
        gguf = tiny(kind.removeprefix("tiny-")).write(folder / "whole.gguf")
    else:
        source = request.getfixturevalue(kind)
        gguf = convert(source, folder / "whole.gguf", ConvertParams(quant="f32", verify=False)).path
    wanted = ConvertParams(to="onnx", quant="f32", verify=False, max_context=CTX)
    onnx = convert(gguf, folder / "onnx", wanted).path
    with edgellm.load(gguf, ctx=CTX, kv_type="f32", backend=backend) as one, edgellm.load(onnx, ctx=CTX) as other:
        assert (one.backend, other.backend) == (backend, "onnx")
        yield one, other


def margin(model: Model, tokens: list[int]) -> float:
    """By how much the likeliest token after `tokens` leads, in logits."""
    [rows] = model.logits(tokens, start=len(tokens) - 1)
    second, first = np.partition(rows[0], -2)[-2:]
    return float(first - second)


def assert_alike(pair: Pair, prompt: list[int], **options: Any) -> list[int]:
    """Both engines continue the prompt alike, but for near ties. Returns what the first one's answer was."""
    done, again = (model.generate(prompt, temperature=0, max_tokens=48, **options) for model in pair)
    parts = next((i for i, both in enumerate(zip(done.tokens, again.tokens, strict=False)) if both[0] != both[1]), None)
    if parts is None:
        assert done.tokens == again.tokens
        assert (done.finish_reason, done.text) == (again.finish_reason, again.text)
    else:
        leads = [margin(model, prompt + done.tokens[:parts]) for model in pair]
        chosen = done.tokens[parts], again.tokens[parts]
        assert min(leads) < NEAR, f"after {parts} tokens they chose {chosen}, with leads of {leads}"
    return done.tokens


def test_they_say_the_same(pair: Pair) -> None:
    tiny_one = pair[0].info.n_embd < 100  # real ones take their time in float32
    for text in (*TEXTS, STORY) if tiny_one else [STORY]:
        prompt = pair[0].encode(text)[:161]  # the last alone in its block of queries, for heads of 16
        assert len(assert_alike(pair, prompt, ignore_eos=True)) == 48


def test_their_logits_agree(pair: Pair) -> None:
    prompt = pair[0].encode(STORY)[:65]
    one, other = (np.concatenate(list(model.logits(prompt))) for model in pair)
    assert np.abs(one - other).max() < 2e-3 * np.abs(one).max()  # llama.cpp looks GELU up in a table of float16
    np.testing.assert_allclose(pair[0].score(prompt), pair[1].score(prompt), atol=NEAR)


def test_they_read_the_same_tokens(pair: Pair) -> None:
    one, other = pair
    controls = [other.decode([token], special=True) for token in sorted(other.info.stop_ids)]
    for text in [*random_texts(300, controls), *TEXTS, STORY, ""]:
        for special in (True, False):
            expected = one.encode(text, special=special)
            assert other.encode(text, special=special) == expected, text
            assert other.decode(expected) == one.decode(expected), text


def test_they_know_the_same_of_it(pair: Pair) -> None:
    one, other = (model.info for model in pair)
    for name in ("n_params", "n_vocab", "n_embd", "n_layer", "n_head", "n_ff", "kv_bytes_per_token"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("bos_id", "eos_id", "stop_ids", "chat_template", "quantization"):
        assert getattr(one, name) == getattr(other, name), name
    assert dict(one.tensor_types) == dict(other.tensor_types)


def test_they_end_at_the_same_place(pair: Pair) -> None:
    """By a token that ends answers, and by a text that does."""
    one = pair[0]
    prompt = one.encode(TEXTS[0])
    for stop in sorted(one.info.stop_ids):
        certain: dict[str, Any] = {"logit_bias": {stop: 1e6}, "max_tokens": 4, "temperature": 0}
        done, again = (model.generate(prompt, **certain) for model in pair)
        assert done.finish_reason == again.finish_reason == "stop"
        assert (done.text, again.text) == ("", "")
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    whole = one.generate(prompt, **options).text
    if whole:
        stop_text = whole[len(whole) // 2 :][:3]
        done, again = (model.generate(prompt, stop=stop_text, **options) for model in pair)
        assert done.finish_reason == again.finish_reason == "stop"
        assert done.text == again.text == whole[: whole.index(stop_text)]


def test_a_conversation_is_the_same(pair: Pair) -> None:
    if pair[0].info.chat_template is None:
        pytest.skip("it has no chat template")
    chats = [model.chat("You are brief.") for model in pair]
    prompts = []
    for chat in chats:
        tokens = chat.model.prompter.read([{"role": "user", "content": "What is the capital of France?"}]).tokens
        prompts.append(tokens)
    assert prompts[0] == prompts[1]
    assert_alike(pair, prompts[0])
