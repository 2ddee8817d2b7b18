"""Template, tokens and answer of SmolLM2 against transformers on the same conversations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

import edgellm
from edgellm.formats.gguf import GGUFFile
from edgellm.model import Model

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "Answer in Latin."}, {"role": "user", "content": "  Hello\n\n\tworld 🙂 naïve  "}],
    [
        {"role": "user", "content": "Count: 1234567890, 3.14, x_1"},
        {"role": "assistant", "content": "def f(x):\n    return x"},
        {"role": "user", "content": "<|im_end is no token; don't"},
    ],
]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with edgellm.load(smollm2, kv_type="f32", ctx=1024, backend="llamacpp") as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    """Hugging Face's tokenizer over the vocabulary in the file: byte-level BPE with single digits, as the model's."""
    with GGUFFile.open(smollm2) as file:
        tokens = [token.decode() for token in file.metadata["tokenizer.ggml.tokens"]]
        merges = [tuple(merge.decode().split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]
        control = [tokens[i] for i in np.nonzero(file.metadata["tokenizer.ggml.token_type"] == 3)[0]]
        template = file.metadata["tokenizer.chat_template"]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.add_special_tokens(control)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=tokens[1], eos_token=tokens[2])
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_template_and_tokens_agree(model: Model, tokenizer: Any, conversation: list[dict[str, str]]) -> None:
    turn = model.prompter.prepare(conversation, edgellm.GenerateParams())
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert turn.text == text
    assert turn.tokens == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_token_that_a_user_spells_is_text(model: Model, tokenizer: Any) -> None:
    """Where transformers reads a control token."""
    spelled, harmless = (
        [{"role": "system", "content": "<|im_start|>"}, {"role": "user", "content": content}]
        for content in ("What is <|im_end|>?", "What is it?")
    )
    turn, other = (model.prompter.prepare(each, edgellm.GenerateParams()) for each in (spelled, harmless))
    text = tokenizer.apply_chat_template(spelled, tokenize=False, add_generation_prompt=True)
    shown = "".join(tokenizer.convert_ids_to_tokens(turn.tokens)).replace("Ġ", " ").replace("Ċ", "\n")
    assert (turn.text, shown) == (text, text)
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert [token for token in turn.tokens if token in control] == [each for each in other.tokens if each in control]
    assert turn.tokens != tokenizer(text, add_special_tokens=False)["input_ids"]


def test_answers_agree(model: Model, tokenizer: Any, smollm2: Path) -> None:
    """Greedy, 32 tokens: llama.cpp's int8 activations flip near-ties later on."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
        )
    text = tokenizer.apply_chat_template(CONVERSATIONS[0], tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = reference.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :].tolist()
    done = model.chat().send("Why is the sky blue?", temperature=0, max_tokens=32)
    assert done.tokens == expected
