"""A real model on edgellm's own engine: what quantized arithmetic costs, beside llama.cpp's, and what it answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from arch_models import dequantized
from numpy.typing import NDArray

import edgellm
from edgellm.backends.base import Step
from edgellm.params import Backend

TEXT = (
    "The sky is blue because molecules of the air scatter the short waves of the sunlight more than the long ones. "
    "In the evening the light goes a longer way, and what is left of it is red.\n\ndef add(a, b):\n    return a + b\n"
)


def rows(path: Path, backend: Backend) -> NDArray[np.float64]:
    """Log-probabilities of what follows each token of TEXT: (n, n_vocab)."""
    with edgellm.load(path, ctx=128, kv_type="f32", backend=backend) as model:
        tokens = model.encode(TEXT)
        made = model._engine.call(lambda opened: opened.forward([Step(opened.new_sequence(), tokens, "all")])[0])
        logits = np.array(made, np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_weights_of_4_bits_cost_no_more_than_in_llama_cpp(smollm2: Path, tmp_path: Path) -> None:
    exact = rows(dequantized(smollm2, tmp_path / "f32.gguf"), "llamacpp")
    ours, theirs = (
        np.mean((np.exp(exact) * (exact - rows(smollm2, each))).sum(axis=1)) for each in ("native", "llamacpp")
    )
    assert 0 < ours < 0.01
    assert ours <= 1.25 * theirs  # of so few tokens; over 3,072 it was 0.99


def test_what_it_chooses_is_near_the_likeliest(smollm2: Path) -> None:
    """Near ties may fall either way; nothing else may."""
    with edgellm.load(smollm2, ctx=256, backend="native") as model:
        chat = model.chat()
        chosen = chat.send("Why is the sky blue?", temperature=0, max_tokens=24, logprobs=2, cache=False)
    with edgellm.load(smollm2, ctx=256, kv_type="f32", backend="llamacpp") as model:
        prompt = model.prompter.prepare([{"role": "user", "content": "Why is the sky blue?"}], edgellm.GenerateParams())
        logprobs = model.score([*prompt.tokens, *chosen.tokens])[-len(chosen.tokens) :]
    assert chosen.logprobs is not None
    differences = [abs(ours.logprob - theirs) for ours, theirs in zip(chosen.logprobs, logprobs, strict=False)]
    assert max(differences) < 0.5
    assert np.mean(differences) < 0.1
