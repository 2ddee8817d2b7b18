"""Samplers over bytes, and what llama.cpp's own samplers make of the same logits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from sampling_numpy import apply

from edgellm.engine.sampling import Sampler
from edgellm.params import GenerateParams

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class ByteTokenizer:
    """Tokens are bytes, as far as they go."""

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        return list(text.encode())

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if token < 256 else b"<%d>" % token


def rows(n_vocab: int, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Logits like a model's: a few large ones over a broad base; some rows flat, some with many equal values."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        row = rng.normal(0, rng.uniform(0.5, 3), n_vocab)
        row[rng.integers(0, n_vocab, 12)] += rng.uniform(0, 10, 12)
        if index % 5 == 4:
            row = np.round(row)
        row = row.astype(np.float32)
        row.flags.writeable = False
        yield row


def sampler(n_vocab: int = 256, prompt: Sequence[int] = (), **options: Any) -> Sampler:
    return Sampler(GenerateParams(**{**OFF, "seed": 1, **options}), n_vocab, ByteTokenizer(), prompt)


def oracle(row: np.ndarray, *steps: Any, accept: Sequence[int] = ()) -> np.ndarray:
    """What llama.cpp's samplers, applied in order and then freed, make of a row: a CANDIDATE array."""
    candidates = np.empty(row.size, CANDIDATE)
    candidates["id"], candidates["logit"], candidates["p"] = np.arange(row.size), row, 0
    pointer = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    array = lib.llama_token_data_array(pointer, row.size, -1, False)
    for step in steps:
        assert step
        for token in accept:
            lib.llama_sampler_accept(step, token)
        lib.llama_sampler_apply(step, ctypes.byref(array))
        lib.llama_sampler_free(step)
    size = array.size * CANDIDATE.itemsize
    address = ctypes.cast(array.data, ctypes.c_void_p).value
    return np.frombuffer(ctypes.string_at(address, size), CANDIDATE).copy()


def adjusted(it: Sampler, row: np.ndarray) -> np.ndarray:
    """The logits after bias, penalties and DRY."""
    row = row.copy()
    for shift in it.plan().shifts:
        apply(shift, row)
    return row
