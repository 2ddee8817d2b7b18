"""Greedy answers of `edgellm run --raw` against a bare loop over llama.cpp's C API."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.backends.llamacpp import library

PROMPTS = {
    "short": "The capital of France is",
    "story": "Once upon a time, in a small village at the foot of a mountain, there lived an old clockmaker who",
    "list": "Here are the planets of the solar system, from the sun outwards:\n1. Mercury\n2. Venus\n3.",
}
TOKENS = 128


def bare_loop(path: Path, prompt: str, n: int) -> list[int]:
    """One prefill pass, then argmax token by token, with nothing of edgellm but the guard against the AMX crash."""
    lib: Any = library.load_library()
    model = lib.llama_model_load_from_file(str(path).encode(), library.model_params())
    vocab = lib.llama_model_get_vocab(model)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    room = (ctypes.c_int32 * 512)()
    data = prompt.encode()
    count = lib.llama_tokenize(vocab, data, len(data), room, 512, True, True)
    feed, tokens = list(room[:count]), []
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    while len(tokens) < n:
        array = (ctypes.c_int32 * len(feed))(*feed)  # the batch only points to it
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(feed))) == 0
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
        token = int(row.argmax())
        if lib.llama_vocab_is_eog(vocab, token):
            break
        tokens.append(token)
        feed = [token]
    lib.llama_free(context)
    lib.llama_model_free(model)
    return tokens


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_greedy_run_equals_a_bare_loop(name: str, prompt: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    command = ["run", str(path), PROMPTS[prompt], "--raw", "--temperature", "0", "--max-tokens", str(TOKENS), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", *command, "--backend", "llamacpp", "--threads", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    # In a process of its own as well: another library here may have AMX, and llama.cpp then goes without its kernels.
    command = [sys.executable, __file__, str(path), PROMPTS[prompt], str(TOKENS)]
    assert answer["tokens"] == json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert answer["usage"]["completion_tokens"] == len(answer["tokens"]) > 20
    assert done.stderr == ""


if __name__ == "__main__":
    print(json.dumps(bare_loop(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))  # noqa: T201
