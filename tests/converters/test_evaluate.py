"""Perplexity and KL statistics against plain formulas over logits that llama.cpp computes without edgellm."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import tiny

import edgellm
from edgellm import Model
from edgellm.backends.llamacpp import library
from edgellm.converters.evaluate import Evaluation, Scores, evaluate, evaluations, score_rows, summarize
from edgellm.errors import ContextOverflow, InvalidModelFile, InvalidParameter
from edgellm.formats.ggml_types import GGMLType

N_CTX = 64
TEXT = "".join(f"{i}: hello world, the other {i * i % 97} world. " for i in range(16))
PLAIN_KEYS = {"perplexity", "perplexity_error", "tokens"}
KL_KEYS = {"mean_kl", "mean_kl_error", "median_kl", "p999_kl", "top1_agreement", "top1_agreement_error"}
KL_KEYS |= {"rms_delta_p", "rms_delta_p_error", "base_perplexity", "base_perplexity_error"}


def loud(arch: str, weights: GGMLType = GGMLType.F32) -> Any:
    """A tiny model with a strong output layer, so that its predictions are not all alike."""
    made = tiny(arch, weights=weights)
    name = "output_norm.weight"
    shape, kind, values = made.tensors[name]
    made.tensors[name] = (shape, kind, (values * 40).astype(np.float32))
    return made


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A coarse and an exact model; llama's vocabulary begins with nothing, gemma's with a token."""
    folder = tmp_path_factory.mktemp(request.param)
    return (
        loud(request.param, GGMLType.Q4_0).write(folder / "coarse.gguf"),
        loud(request.param).write(folder / "exact.gguf"),
    )


def load(path: Path, micro_batch: int = 512) -> Model:
    nothing = edgellm.CacheParams(memory=0, disk=0)
    return edgellm.load(path, ctx=N_CTX, backend="llamacpp", cache=nothing, micro_batch=micro_batch)


def oracle_logits(path: Path, contexts: list[list[int]]) -> NDArray[np.float64]:
    """(contexts, tokens, n_vocab), with llama.cpp's C API alone, each context in one pass."""
    lib = library.load_library()
    model = lib.llama_model_load_from_file(os.fsencode(path), library.model_params())
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(contexts[0])
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    found = []
    for ids in contexts:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        kept = (lib.llama_token * len(ids))(*ids)  # the batch only points to it
        batch = lib.llama_batch_get_one(kept, len(ids))
        wanted = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        batch.logits = wanted
        assert lib.llama_decode(context, batch) == 0
        found.append(np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), n_vocab)).astype(np.float64))
    lib.llama_free(context)
    lib.llama_model_free(model)
    return np.stack(found)


def log_softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(row - np.logaddexp.reduce(row))


def expected(coarse: Path, exact: Path, tokens: list[int], bos: int | None) -> dict[str, float]:
    """The figures by their definitions, one position at a time."""
    contexts = [tokens[i : i + N_CTX] for i in range(0, len(tokens) // N_CTX * N_CTX, N_CTX)]
    fed = [[bos, *ids[1:]] if bos is not None else ids for ids in contexts]
    model, base = oracle_logits(coarse, fed), oracle_logits(exact, fed)
    nll, base_nll, kl, delta, same = [], [], [], [], []
    for c, ids in enumerate(contexts):
        for position in range(N_CTX // 2, N_CTX - 1):
            q, p = log_softmax(model[c, position]), log_softmax(base[c, position])
            token = ids[position + 1]
            nll.append(-q[token])
            base_nll.append(-p[token])
            kl.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            delta.append(math.exp(q[token]) - math.exp(p[token]))
            same.append(int(np.argmax(q)) == int(np.argmax(p)))
    n = len(nll)
    assert n == len(contexts) * (N_CTX // 2 - 1)

    def error(values: list[float]) -> float:  # of a mean, as llama-perplexity has it
        mean = sum(values) / n
        return math.sqrt((sum(v * v for v in values) / n - mean * mean) / (n - 1))

    perplexity = math.exp(sum(nll) / n)
    rms = math.sqrt(sum(d * d for d in delta) / n)
    share = sum(same) / n
    ordered = sorted(kl)
    at = 0.999 * (n - 1)
    low = int(at)
    high = ordered[min(low + 1, n - 1)]
    return {
        "tokens": n,
        "perplexity": perplexity,
        "perplexity_error": perplexity * error(nll),
        "mean_kl": sum(kl) / n,
        "mean_kl_error": error(kl),
        "median_kl": ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2,
        "p999_kl": ordered[low] + (at - low) * (high - ordered[low]),
        "top1_agreement": share,
        "top1_agreement_error": math.sqrt(share * (1 - share) / (n - 1)),
        "rms_delta_p": rms,
        "rms_delta_p_error": 0.5 / rms * error([d * d for d in delta]),
        "base_perplexity": math.exp(sum(base_nll) / n),
        "base_perplexity_error": math.exp(sum(base_nll) / n) * error(base_nll),
    }


def test_figures_are_those_of_the_definitions(paths: tuple[Path, Path]) -> None:
    coarse, exact = paths
    with load(coarse) as model, load(exact) as base:
        tokens = model.encode(TEXT, special=False)
        bos = 1 if coarse.parent.name.startswith("gemma2") else None
        assert model.encode("") == ([] if bos is None else [bos])
        found = evaluate(model, TEXT, base=base, n_ctx=N_CTX).to_dict()
        alone = evaluate(model, TEXT, n_ctx=N_CTX).to_dict()
    wanted = expected(coarse, exact, tokens, bos)
    assert set(found) == PLAIN_KEYS | KL_KEYS
    assert wanted["mean_kl"] > 1e-4
    assert 0 < wanted["top1_agreement"] < 1
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert found["perplexity"] == pytest.approx(wanted["perplexity"], rel=1e-6)
    assert set(alone) == PLAIN_KEYS
    assert alone == pytest.approx({name: found[name] for name in PLAIN_KEYS}, rel=1e-12)


def test_a_model_has_no_distance_from_itself(paths: tuple[Path, Path]) -> None:
    with load(paths[0]) as model, load(paths[0]) as base:
        found = evaluate(model, TEXT, base=base, n_ctx=N_CTX)
    assert (found.mean_kl, found.p999_kl, found.top1_agreement, found.rms_delta_p) == (0, 0, 1, 0)


def test_steps_add_up_and_stop(paths: tuple[Path, Path]) -> None:
    seen: list[Evaluation] = []
    with load(paths[0]) as model:
        last = evaluate(model, TEXT, n_ctx=N_CTX, chunks=3, progress=seen.append)
        found = list(evaluations(model, TEXT, n_ctx=N_CTX, chunks=3))
        assert [(step.done, step.chunks, step.tokens) for step in found] == [(1, 3, 31), (2, 3, 62), (3, 3, 93)]
        assert last == seen[-1]
        assert {step.done for step in seen} >= {1, 3}  # others only where a context takes longer than a look
        steps = evaluations(model, TEXT, n_ctx=N_CTX)
        assert next(steps).perplexity == pytest.approx(seen[0].perplexity)
        steps.close()

        def enough(_: Evaluation) -> None:
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            evaluate(model, TEXT, n_ctx=N_CTX, progress=enough)
        assert model.generate("hello", max_tokens=2).usage.completion_tokens == 2


def test_slices_of_different_sizes_are_aligned(paths: tuple[Path, Path]) -> None:
    with load(paths[0]) as model, load(paths[1], micro_batch=16) as base, load(paths[1]) as same:
        sizes = {len(rows) for rows in base.logits(list(range(3, 3 + N_CTX)), start=32)}
        assert sizes == {16}
        small = evaluate(model, TEXT, base=base, n_ctx=N_CTX).to_dict()
        assert small == pytest.approx(evaluate(model, TEXT, base=same, n_ctx=N_CTX).to_dict(), rel=1e-3)


def test_the_arguments_are_checked(paths: tuple[Path, Path], tmp_path: Path) -> None:
    with load(paths[0]) as model:
        with pytest.raises(InvalidParameter, match=r"2 contexts of 64 need 128"):
            evaluations(model, "short", n_ctx=N_CTX)
        with pytest.raises(InvalidParameter, match="chunks=0"):
            evaluations(model, TEXT, n_ctx=N_CTX, chunks=0)
        with pytest.raises(InvalidParameter, match="n_ctx=8"):
            evaluations(model, TEXT, n_ctx=8)
        with pytest.raises(ContextOverflow, match="ctx=128"):
            evaluations(model, TEXT, n_ctx=128)
        other = tiny("gemma2" if model.info.architecture == "llama" else "llama").write(tmp_path / "other.gguf")
        with load(other) as base, pytest.raises(InvalidParameter, match="vocabularies of"):
            evaluate(model, TEXT, base=base, n_ctx=N_CTX)


def test_other_vocabularies_of_the_same_size_are_refused(tmp_path: Path) -> None:
    plain = tiny().write(tmp_path / "plain.gguf")
    renamed, merged = tiny(), tiny()
    tokens = list(renamed.metadata["tokenizer.ggml.tokens"])
    tokens[-1] = "zz"
    renamed.metadata["tokenizer.ggml.tokens"] = tokens
    merged.metadata["tokenizer.ggml.merges"] = merged.metadata["tokenizer.ggml.merges"][::-1]
    for name, made, words in (
        ("merged", merged, "cut the text into different tokens"),
        ("renamed", renamed, "token 270 is 'er' and 'zz'"),
    ):
        other = made.write(tmp_path / f"{name}.gguf")
        with load(plain) as model, load(other) as base, pytest.raises(InvalidParameter, match=words):
            evaluate(model, TEXT, base=base, n_ctx=N_CTX)


def test_logits_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    broken = tiny()
    shape, kind, values = broken.tensors["output_norm.weight"]
    broken.tensors["output_norm.weight"] = (shape, kind, values * np.float32("nan"))
    with load(broken.write(tmp_path / "nan.gguf")) as model, pytest.raises(InvalidModelFile, match="not numbers"):
        evaluate(model, TEXT, n_ctx=N_CTX)


def test_scores_are_exact_where_float32_is_not() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((5, 3000)).astype(np.float32) * 20 + 500
    base = logits + rng.standard_normal(logits.shape).astype(np.float32) * np.float32(1e-3)
    targets = rng.integers(0, 3000, 5)
    scores = score_rows(logits, targets, base)
    for i, target in enumerate(targets):
        q, p = log_softmax(logits[i].astype(np.float64)), log_softmax(base[i].astype(np.float64))
        assert scores.nll[i] == pytest.approx(-q[target], rel=1e-12)
        assert scores.kl[i] == pytest.approx(math.fsum(np.exp(p) * (p - q)), rel=1e-6)
        assert scores.delta_p[i] == pytest.approx(math.exp(q[target]) - math.exp(p[target]), abs=1e-14)


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    nothing = np.zeros(0)
    found = summarize(Scores(np.full(4, 800.0), nothing, nothing, nothing, nothing), 1, 1)
    assert found.perplexity == math.inf


def test_logits_start_anywhere_and_are_those_of_the_whole(paths: tuple[Path, Path]) -> None:
    with load(paths[1]) as model:
        tokens = model.encode(TEXT)[:50]
        whole = np.concatenate(list(model.logits(tokens)))
        assert whole.shape == (50, model.info.n_vocab)
        assert whole.dtype == np.float32
        for start in (0, 1, 31, 45, 49):
            part = np.concatenate(list(model.logits(tokens, start=start)))
            assert part.shape == (50 - start, model.info.n_vocab)
            assert np.allclose(part, whole[start:], atol=1e-3)
        stream = model.logits(tokens)
        next(stream)
        stream.close()
        with pytest.raises(ContextOverflow):
            model.logits([5] * (N_CTX + 1))
        with pytest.raises(InvalidParameter, match="outside the vocabulary"):
            model.logits([model.info.n_vocab])
        for start in (-1, 50):
            with pytest.raises(InvalidParameter, match="start="):
                model.logits(tokens, start=start)
