"""The sampling steps, in numpy, against llama.cpp's own samplers; draws in native code against both, and against their
distribution."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
import sampling_numpy
from sampling_numpy import largest, packed
from sampling_oracle import OFF, ByteTokenizer, adjusted, oracle, rows, sampler

from edgellm.backends.base import SamplingPlan, Shift, Step
from edgellm.backends.echo import EchoBackend
from edgellm.engine.sampling import Sampler, choose
from edgellm.errors import BackendFailed, InvalidParameter
from edgellm.params import GenerateParams


def survivors(row: np.ndarray, exclude: bool = False, **options: Any) -> set[int]:
    """The ids that a sampler can still draw: those it keeps for a row."""
    it = sampler(row.size, **options)
    filters = it._filters + ((("xtc_threshold", it._params.xtc_threshold),) if exclude else ())
    left = sampling_numpy.survivors(row, float(row.max()), filters)
    ids, logits = left.sorted()
    assert list(zip(-logits, ids, strict=True)) == sorted(zip(-logits, ids, strict=True))
    return set(ids.tolist())


FILTERS: dict[str, tuple[Callable[[float], Any], list[float]]] = {
    "top_n_sigma": (lib.llama_sampler_init_top_n_sigma, [0.01, 0.3, 0.7, 0.99]),
    "top_p": (lambda value: lib.llama_sampler_init_top_p(value, 0), [0.0, 0.1, 0.5, 0.9, 0.95, 0.999]),
    "min_p": (lambda value: lib.llama_sampler_init_min_p(value, 0), [0.001, 0.05, 0.3, 1.0]),
    "typical_p": (lambda value: lib.llama_sampler_init_typical(value, 0), [0.05, 0.2, 0.5, 0.9, 0.99]),
    "xtc_threshold": (lambda value: lib.llama_sampler_init_xtc(1.0, value, 0, 0), [0.01, 0.05, 0.1, 0.3, 0.5]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_llama_cpp_keeps(name: str) -> None:
    make, values = FILTERS[name]
    exact = cases = 0
    for row in rows(700, 40):
        if np.unique(row).size < row.size:
            continue  # which of equal logits stay is arbitrary in llama.cpp
        for value in values:
            left = oracle(row, make(value))
            expected = set(left["id"][left["logit"] > -np.inf].tolist())
            # llama.cpp sums in float32: its set may be that of a value a little to one side.
            near = [value, value * (1 - 2e-5), min(1.0, value * (1 + 2e-5))]
            kept = [survivors(row, exclude=name.startswith("xtc"), **{name: other}) for other in near]
            fewest, most = sorted(kept[1:], key=len)
            assert fewest <= expected <= most
            cases += 1
            exact += expected == kept[0]
    assert cases > 100
    assert exact >= 0.97 * cases


@pytest.mark.parametrize("k", [1, 2, 40, 699, 700, 5000])
def test_top_k_keeps_the_largest(k: int) -> None:
    for row in rows(700, 20):
        kept = survivors(row, top_k=k)
        if np.unique(row).size == row.size:
            assert kept == set(oracle(row, lib.llama_sampler_init_top_k(k))["id"].tolist())
        assert sorted(kept) == sorted(sorted(range(700), key=lambda token: (-row[token], token))[:k])


@pytest.mark.parametrize("n_vocab", [1, 5, 1023, 1024, 1025, 1500, 30000])
def test_largest_agrees_with_a_full_sort(n_vocab: int) -> None:
    for row in rows(n_vocab, 10, seed=n_vocab):
        forbidden = row.copy()
        forbidden[::2] = -np.inf
        for values in (row, forbidden):
            order = sorted(np.flatnonzero(values > -np.inf).tolist(), key=lambda token: (-values[token], token))
            for k in (0, 1, 3, 40, 600, n_vocab):
                assert largest(values, k).tolist() == order[:k]


CHAINS: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.7, "min_p": 0.01, "typical_p": 0.8},
    {"temperature": 0.5, "top_k": 0, "top_p": 0.9, "min_p": 0.0},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.98, "min_p": 0.02},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1},
    {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9},
    {"temperature": 1.5, "top_n_sigma": 2.5},
    {"temperature": 2.0, "top_n_sigma": 3.0, "top_p": 0.9},
    {"temperature": 1.0, "top_n_sigma": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "top_n_sigma": 0.0, "top_k": 40},
    {"temperature": 0.9, "top_k": 200, "top_p": 1.0, "min_p": 0.0, "xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "xtc_probability": 1.0, "xtc_threshold": 0.05},
]


@pytest.mark.parametrize("options", CHAINS)
def test_the_token_drawn_follows_llama_cpps_distribution(options: dict[str, Any]) -> None:
    near_an_edge = 0
    for seed, row in enumerate(row for row in rows(2100, 75) if np.unique(row).size == row.size):
        p = GenerateParams(**{**OFF, **options})
        chain = [
            lib.llama_sampler_init_top_n_sigma(p.top_n_sigma),
            lib.llama_sampler_init_top_k(p.top_k),
            lib.llama_sampler_init_typical(p.typical_p, 0),
            lib.llama_sampler_init_top_p(p.top_p, 0),
            lib.llama_sampler_init_min_p(p.min_p, 0),
            lib.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 0, 0),
            lib.llama_sampler_init_temp(p.temperature),
            lib.llama_sampler_init_dist(0),
        ]
        candidates = np.sort(oracle(row, *chain), order="logit")[::-1]
        assert candidates["p"].sum() == pytest.approx(1, abs=1e-4)
        stream = np.random.PCG64(seed)
        if p.xtc_probability:
            stream.random_raw()
        point = (int(stream.random_raw()) >> 11) / 2**53
        edges = np.cumsum(candidates["p"].astype(np.float64)) / candidates["p"].sum(dtype=np.float64)
        expected = candidates["id"][bisect.bisect_right(edges, point)]
        if np.abs(edges - point).min() < 1e-5:  # float32 cannot tell
            near_an_edge += 1
            continue
        assert sampler(row.size, seed=seed, **options).sample(row) == expected
    assert near_an_edge <= 6


def draws(row: np.ndarray, n: int, **options: Any) -> np.ndarray:
    it = sampler(row.size, seed=12345, **options)
    return np.bincount([it.sample(row) for _ in range(n)], minlength=row.size)


@pytest.mark.parametrize("options", [{}, {"top_k": 16}, {"temperature": 2.0}, {"temperature": 0.5, "top_k": 12}])
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    row = np.linspace(0, 3, 16, dtype=np.float32)
    weights = np.exp(row.astype(np.float64) / options.get("temperature", 1.0))
    if options.get("top_k") == 12:
        weights[:4] = 0
    expected = 20000 * weights / weights.sum()
    counts = draws(row, 20000, **options)
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 37.7  # 15 degrees of freedom, one in a thousand


def test_xtc_happens_as_often_as_asked() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    counts = draws(row, 20000, xtc_probability=0.25, xtc_threshold=0.25)
    # A quarter of the draws leave out token 0, whose mass is shared by 0.3 and 0.2.
    expected = 20000 * (0.75 * np.array([0.5, 0.3, 0.2]) + 0.25 * np.array([0, 0.6, 0.4]))
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, one in a thousand


def test_bias_adds_and_forbids() -> None:
    row = np.zeros(256, np.float32)
    bias = {3: 2.5, 4: -math.inf, 255: -1e300, 7: 1e300}
    result = adjusted(sampler(logit_bias=bias), row)
    assert result[[3, 4, 5, 255]].tolist() == [2.5, -math.inf, 0, -math.inf]
    assert sampler(logit_bias=bias).sample(row) == 7
    counts = draws(np.zeros(3, np.float32), 300, logit_bias={1: -math.inf})
    assert counts[1] == 0
    assert counts.sum() == 300
    for token in (256, -1):
        with pytest.raises(InvalidParameter, match=f"{token}.*0 to 255"):
            sampler(logit_bias={token: 1.0})


def test_greedy_takes_the_first_of_the_largest() -> None:
    row = np.zeros(256, np.float32)
    row[[9, 200]] = 4
    assert sampler(temperature=0.0).sample(row) == 9
    assert sampler(temperature=0.0, logit_bias={200: 0.5}).sample(row) == 200
    assert sampler(temperature=0.0, top_k=1, typical_p=0.1, xtc_probability=1.0).sample(row) == 9


@pytest.mark.parametrize("options", [*CHAINS, {"temperature": 1e-300}, {"temperature": 5e-324, "top_k": 3}])
def test_a_seed_repeats_its_tokens_and_rows_are_not_changed(options: dict[str, Any]) -> None:
    options = {**options, "repeat_penalty": 1.2, "dry_multiplier": 0.5, "logit_bias": {3: -1.0}}
    answers = []
    for seed in (5, 5, 6):
        it = sampler(300, seed=seed, **options)
        answer = []
        for row in rows(300, 30):  # read-only rows
            answer.append(it.sample(row))
            it.accept(answer[-1])
        answers.append(answer)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1


def test_seeds_are_reported_and_differ() -> None:
    drawn = {Sampler(GenerateParams(), 256, ByteTokenizer(), []).seed for _ in range(8)}
    assert len(drawn) == 8
    it = sampler(seed=2**64 - 1)
    assert it.seed == 2**64 - 1
    row = next(rows(256, 1))
    counted = [sampler(seed=seed, temperature=3.0).sample(row) for seed in range(30)]
    assert len(set(counted)) > 10


def test_golden_tokens_of_a_seed() -> None:
    """The stream of a seed never changes: these draws follow from the PCG64 specification."""
    row = np.zeros(1000, np.float32)
    it = sampler(1000, seed=42)
    generator = np.random.Generator(np.random.PCG64(42))
    assert (
        [it.sample(row) for _ in range(5)] == [int(1000 * u) for u in generator.random(5)] == [773, 438, 858, 697, 94]
    )


def test_sample_alone_does_not_count_as_said() -> None:
    row = np.zeros(256, np.float32)
    row[7] = 1
    it = sampler(temperature=0.0, presence_penalty=2.0)
    assert [it.sample(row), it.sample(row)] == [7, 7]
    it.accept(7)
    assert it.sample(row) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(value: float, temperature: float) -> None:
    row = np.full(256, value, np.float32)
    if value != -math.inf:
        row[1:] = 0
    with pytest.raises(BackendFailed):
        sampler(temperature=temperature).sample(row)


def test_forbidding_everything_is_an_error() -> None:
    with pytest.raises(InvalidParameter, match="every token"):
        sampler(3, logit_bias=dict.fromkeys(range(3), -math.inf)).sample(np.zeros(3, np.float32))


@pytest.mark.parametrize("n_vocab", [5, 5000])
def test_logprobs_are_the_log_softmax_of_the_raw_row(n_vocab: int) -> None:
    it = sampler(n_vocab, repeat_penalty=1.5, temperature=0.3, top_k=2, prompt=[0, 1, 2])
    for row in rows(n_vocab, 10):
        offset = float(row.max()) + math.log(math.fsum(math.exp(float(x) - float(row.max())) for x in row))
        result = it.logprobs(row, 4, 3)
        assert (result.token, result.text) == (4, b"\x04")
        assert result.logprob == pytest.approx(float(row[4]) - offset, abs=2e-6)
        order = sorted(range(n_vocab), key=lambda token: (-row[token], token))[:3]
        assert [token for token, _, _ in result.top] == order
        assert [text for _, text, _ in result.top] == [ByteTokenizer().piece(token) for token in order]
        assert [p for _, _, p in result.top] == pytest.approx([float(row[t]) - offset for t in order], abs=2e-6)
    assert it.logprobs(row, 4, 0).top == ()


def test_large_logits_overflow_nothing() -> None:
    row = np.array([3e38, -3e38, 3e38, 0], np.float32)
    assert set(np.flatnonzero(draws(row, 50)).tolist()) == {0, 2}
    it = sampler(4, prompt=[0, 1, 3], repeat_penalty=1e300, frequency_penalty=-2.0, top_p=0.9)
    assert it.sample(row) == 2
    assert it.logprobs(row, 0, 0).logprob == pytest.approx(-math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    "filters", [(), (("top_k", 40), ("top_p", 0.9)), (("top_p", 0.8), ("min_p", 0.05)), (("top_k", 3),)]
)
def test_a_backend_that_chooses_takes_the_same_tokens(filters: tuple[tuple[str, float], ...]) -> None:
    """Echo sorts every row; its rows are seen by asking for them again."""
    rng = np.random.default_rng(len(filters))
    backend = EchoBackend()
    chooses, shows = backend.new_sequence(), backend.new_sequence()
    for turn in range(60):
        ids = rng.choice(512, 40, replace=False)
        shifts = (
            Shift(ids[:5], rng.normal(0, 2, 5)),
            Shift(ids, rng.uniform(-1, 1, 40), 1.3),
            Shift(ids[3:4], np.array([np.inf])),
        )
        mask = None if turn % 2 else packed(rng.random(512) < 0.5)
        temperature = float(rng.choice([0.0, 0.7, 2.0]))
        plan = SamplingPlan(shifts, mask, temperature, filters if temperature else (), float(rng.random()))
        assert backend.takes(plan)
        tokens = rng.integers(0, 256, 3).tolist()
        [row] = backend.forward([Step(shows, tokens, "last")])
        assert row is not None
        expected = choose(row[0], plan)
        assert backend.choose([Step(chooses, tokens, "last")], [plan]) == [expected]
    nothing = SamplingPlan((), np.zeros(16, np.uint32), 1.0)
    assert choose(np.zeros(512, np.float32), nothing) is None
    assert backend.choose([Step(chooses, [1], "last")], [nothing]) == [-1]
    assert not backend.takes(SamplingPlan((), None, 1.0, (("typical_p", 0.5),)))
