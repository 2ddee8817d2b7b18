"""The ONNX engine on tiny random graphs: one with GroupQueryAttention, one that joins its cache itself."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_onnx
from numpy.typing import NDArray
from tiny_onnx import KV_HEADS, LAYERS, N_VOCAB, PROMPT, write_decoder

import edgellm
from edgellm import budget
from edgellm.backends import open_backend
from edgellm.backends.base import Backend, Sequence, Step
from edgellm.backends.onnx.pool import FIRST_CAPACITY
from edgellm.errors import BackendFailed, Busy, Closed, ContextOverflow, Interrupted, InvalidParameter, Unsupported
from edgellm.params import LoadParams


@pytest.fixture(params=["shared", "copied", "plain"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def backend(folder: Path) -> Iterator[Backend]:
    backend = open_backend(folder, LoadParams(threads=2))
    yield backend
    backend.close()


@pytest.fixture
def shared(folders: dict[str, Path]) -> Iterator[Backend]:
    backend = open_backend(folders["shared"], LoadParams(threads=2))
    yield backend
    backend.close()


def rows(backend: Backend, sequence: Sequence, tokens: list[int], logits: Any = "all") -> NDArray[np.float32]:
    found = backend.forward([Step(sequence, tokens, logits)])[0]
    assert found is not None
    copied: NDArray[np.float32] = found.copy()
    return copied


def reference(folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Logits of every token, by a session that knows nothing of us and keeps nothing."""
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    shape = (1, KV_HEADS, 0, tiny_onnx.HEAD)
    names = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    feed: dict[str, Any] = {name: np.zeros(shape, np.float32) for name in names}
    feed["input_ids"] = np.array([tokens], np.int64)
    feed["attention_mask"] = np.ones((1, len(tokens)), np.int64)
    feed["position_ids"] = np.arange(len(tokens), dtype=np.int64)[None]
    wanted = {value.name for value in session.get_inputs()}
    logits: NDArray[np.float32] = session.run(["logits"], {k: v for k, v in feed.items() if k in wanted})[0][0]
    return logits


# What is computed


def test_logits_are_those_of_a_session_without_cache(backend: Backend, folder: Path) -> None:
    sequence = backend.new_sequence()
    found = [rows(backend, sequence, PROMPT[:20]), rows(backend, sequence, PROMPT[20:47])]
    found.append(rows(backend, sequence, PROMPT[47:], "last"))
    assert sequence.length == 48
    np.testing.assert_allclose(np.concatenate(found), reference(folder, PROMPT), atol=2e-4)


def test_the_two_layouts_agree(folders: dict[str, Path]) -> None:
    found = []
    for name in ("shared", "copied"):
        backend = open_backend(folders[name], LoadParams(threads=1))
        sequence = backend.new_sequence()
        rows(backend, sequence, PROMPT[:40])
        found.append(np.concatenate([rows(backend, sequence, [token]) for token in PROMPT[40:]]))
        backend.close()
    np.testing.assert_allclose(found[0], found[1], atol=2e-4)


def test_only_what_is_asked_for_is_given(backend: Backend) -> None:
    first, second, third = (backend.new_sequence() for _ in range(3))
    steps = [Step(first, PROMPT[:8], "none"), Step(second, PROMPT[:8], "last"), Step(third, PROMPT[:8], "all")]
    nothing, last, every = backend.forward(steps)
    assert nothing is None
    assert last is not None
    assert every is not None
    assert (last.shape, every.shape) == ((1, N_VOCAB), (8, N_VOCAB))
    assert last.dtype == np.float32
    assert np.array_equal(last[0], every[-1])
    assert not last.flags.writeable


# Reuse is exact


def test_truncated_and_fed_again_is_the_same(backend: Backend) -> None:
    sequence = backend.new_sequence()
    before = rows(backend, sequence, PROMPT[:32])
    after = rows(backend, sequence, PROMPT[32:])
    assert sequence.truncate(16)
    assert sequence.length == 16
    rows(backend, sequence, [7, 8, 9])
    sequence.truncate(16)
    assert np.array_equal(rows(backend, sequence, PROMPT[16:32]), before[16:])
    assert np.array_equal(rows(backend, sequence, PROMPT[32:]), after)


def test_a_fork_goes_on_alone(backend: Backend) -> None:
    sequence = backend.new_sequence()
    rows(backend, sequence, PROMPT[:32])
    twin, short = sequence.fork(), sequence.fork(16)
    expected = rows(backend, sequence, PROMPT[32:])
    rows(backend, short, [5] * 8)
    assert np.array_equal(rows(backend, twin, PROMPT[32:]), expected)
    assert (twin.length, short.length) == (48, 24)
    short.truncate(16)
    rows(backend, short, PROMPT[16:32])
    assert np.array_equal(rows(backend, short, PROMPT[32:]), expected)


def test_saved_state_goes_on_as_if_nothing_had_been(backend: Backend, folder: Path) -> None:
    sequence = backend.new_sequence()
    rows(backend, sequence, PROMPT[:32])
    blocks = [sequence.save(start, start + 8) for start in range(0, 32, 8)]
    expected = rows(backend, sequence, PROMPT[32:])
    other = open_backend(folder, LoadParams(threads=2))
    restored = other.new_sequence()
    restored.load(blocks)
    assert restored.length == 32
    assert np.array_equal(rows(other, restored, PROMPT[32:]), expected)
    assert restored.save(3, 29) == sequence.save(3, 29)
    assert other.state_key == backend.state_key
    other.close()


def test_another_process_goes_on_from_saved_state(shared: Backend, tmp_path: Path) -> None:
    sequence = shared.new_sequence()
    rows(shared, sequence, PROMPT[:32])
    (tmp_path / "block").write_bytes(sequence.save(0, 32))
    expected = rows(shared, sequence, PROMPT[32:], "last")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from edgellm.backends import open_backend\nfrom edgellm.backends.base import Step\n"
        "from edgellm.params import LoadParams\n"
        "backend = open_backend(Path(sys.argv[1]), LoadParams(threads=2))\n"
        "sequence = backend.new_sequence()\nsequence.load([Path(sys.argv[2]).read_bytes()])\n"
        f"row = backend.forward([Step(sequence, {PROMPT[32:]}, 'last')])[0]\n"
        "Path(sys.argv[3]).write_bytes(row.tobytes())\n"
    )
    arguments = [shared.info.path, str(tmp_path / "block"), str(tmp_path / "row")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")  # nothing native is said
    assert (tmp_path / "row").read_bytes() == expected.tobytes()


def test_decoding_together_is_decoding_alone(backend: Backend) -> None:
    lengths = [9, 40, 17, 30]
    alone = []
    for length in lengths:
        sequence = backend.new_sequence()
        rows(backend, sequence, PROMPT[:length], "last")
        alone.append([rows(backend, sequence, [token], "last") for token in (5, 6, 7)])
        sequence.close()
    others = [backend.new_sequence() for _ in range(4)]  # what is computed together need not lie together
    sequences = []
    for at, length in enumerate(lengths):
        others[at].close()
        sequences.append(backend.new_sequence())
        rows(backend, sequences[-1], PROMPT[:length], "last")
    for at, token in enumerate((5, 6, 7)):
        chosen = [0, 1, 2, 3] if at != 1 else [3, 0]
        found = backend.forward([Step(sequences[which], [token], "last") for which in chosen])
        for which, row in zip(chosen, found, strict=True):
            assert row is not None
            if at < 2 or which in (0, 3):
                assert np.array_equal(row, alone[which][at]), (at, which)


def test_rows_that_lie_apart_are_moved_and_stay_whole(shared: Backend) -> None:
    sequences = [shared.new_sequence() for _ in range(5)]
    for at, sequence in enumerate(sequences):
        rows(shared, sequence, PROMPT[: 10 + 4 * at], "last")
    states = [sequence.save(0, sequence.length) for sequence in sequences]
    chosen = [sequences[4], sequences[0], sequences[2]]
    shared.forward([Step(sequence, [9], "none") for sequence in chosen])
    for sequence, state, at in zip(sequences, states, range(5), strict=True):
        assert sequence.save(0, 10 + 4 * at) == state


def test_a_sequence_grows_past_its_first_cells(backend: Backend, folder: Path) -> None:
    tokens = [3 + at % (N_VOCAB - 3) for at in range(FIRST_CAPACITY + 120)]
    beside = backend.new_sequence()
    rows(backend, beside, PROMPT[:16])
    expected = rows(backend, beside, PROMPT[16:24])
    beside.truncate(16)
    sequence = backend.new_sequence()
    for at in range(0, len(tokens), 64):
        found = rows(backend, sequence, tokens[at : at + 64], "last")
    np.testing.assert_allclose(found[0], reference(folder, tokens)[-1], atol=1e-3)
    assert np.array_equal(rows(backend, beside, PROMPT[16:24]), expected)


def test_room_made_at_once_changes_nothing(backend: Backend) -> None:
    small, large = backend.new_sequence(), None
    expected = rows(backend, small, PROMPT)
    large = backend.new_sequence(4 * FIRST_CAPACITY)
    assert np.array_equal(rows(backend, large, PROMPT), expected)


# Limits and errors


def test_a_pass_that_is_refused_changes_nothing(backend: Backend) -> None:
    sequence, other = backend.new_sequence(), backend.new_sequence()
    rows(backend, sequence, PROMPT[:8])
    with pytest.raises(InvalidParameter, match="vocabulary"):
        backend.forward([Step(sequence, [1], "none"), Step(other, [N_VOCAB], "none")])
    with pytest.raises(InvalidParameter, match="vocabulary"):
        backend.forward([Step(sequence, [-1], "none")])
    with pytest.raises(BackendFailed, match="no tokens"):
        backend.forward([Step(sequence, [], "none")])
    with pytest.raises(BackendFailed, match="twice"):
        backend.forward([Step(sequence, [1], "none"), Step(sequence, [1], "none")])
    with pytest.raises(BackendFailed, match="512 tokens"):
        backend.forward([Step(sequence, [1] * 513, "none")])
    assert (sequence.length, other.length) == (8, 0)


def test_the_context_is_the_limit(folder: Path) -> None:
    backend = open_backend(folder, LoadParams(ctx=32))
    sequence = backend.new_sequence()
    rows(backend, sequence, PROMPT[:32])
    with pytest.raises(ContextOverflow):
        rows(backend, sequence, [5])
    block = sequence.save(0, 32)
    other = backend.new_sequence()
    rows(backend, other, PROMPT[:4])
    with pytest.raises(BackendFailed, match="does not continue"):
        other.load([block])
    backend.close()


def test_sequences_are_few_and_closed_ones_make_room(backend: Backend) -> None:
    sequences = [backend.new_sequence() for _ in range(backend.max_sequences)]
    with pytest.raises(Busy):
        backend.new_sequence()
    sequences[3].close()
    sequences[3].close()
    with pytest.raises(Closed):
        sequences[3].truncate(0)
    backend.new_sequence()
    backend.close()
    backend.close()
    with pytest.raises(Closed):
        backend.new_sequence()


@pytest.mark.parametrize("damage", ["short", "magic", "layout", "length", "place", "cut"])
def test_damaged_blocks_are_refused_as_a_whole(backend: Backend, damage: str) -> None:
    sequence = backend.new_sequence()
    rows(backend, sequence, PROMPT[:16])
    good, block = sequence.save(0, 8), bytearray(sequence.save(8, 16))
    if damage == "short":
        block = block[:10]
    elif damage == "cut":
        block = block[:-1]
    else:
        block[{"magic": 0, "layout": 12, "length": 8, "place": 4}[damage]] ^= 1
    other = backend.new_sequence()
    with pytest.raises(BackendFailed):
        other.load([good, bytes(block)])
    assert other.length == 0
    other.load([good, sequence.save(8, 16)])
    assert np.array_equal(rows(backend, other, PROMPT[16:24]), rows(backend, sequence, PROMPT[16:24]))


def test_interrupt_stops_a_pass_and_everything_works_afterwards(backend: Backend) -> None:
    sequence = backend.new_sequence()
    expected = rows(backend, sequence, PROMPT[:16])
    sequence.truncate(8)
    backend.interrupt()  # no pass: the next one is meant
    with pytest.raises(Interrupted):
        rows(backend, sequence, PROMPT[8:16])
    assert sequence.length == 8
    assert np.array_equal(rows(backend, sequence, PROMPT[8:16]), expected[8:])
    long = backend.new_sequence()
    tokens = [5] * backend.micro_batch
    stopped = 0
    for delay in (0.0, 0.0005, 0.002, 0.004):
        timer = threading.Timer(delay, backend.interrupt)
        timer.start()
        try:
            backend.forward([Step(long, tokens, "none")])
        except Interrupted:
            stopped += 1
            assert long.length == 0
        timer.join()
        try:  # one that came too late is meant for the next pass
            backend.forward([Step(backend.new_sequence(), [5], "none")])
        except Interrupted:
            stopped += 1
        long.truncate(0)
    assert stopped == 4
    assert np.array_equal(rows(backend, sequence, PROMPT[16:24]), rows(backend, sequence.fork(16), PROMPT[16:24]))


@pytest.mark.parametrize("name", ["shared", "copied"])
def test_what_fits_no_more_says_busy(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(budget, "SHARED_CONTEXTS", 1)
    backend = open_backend(folders[name], LoadParams(ctx=1024))
    sequence = backend.new_sequence(700)
    expected = rows(backend, sequence, PROMPT)
    other = backend.new_sequence(1024)  # as much as there is: the number is only a hint
    repeats = (rows(backend, other, PROMPT) for _ in range(20))
    with pytest.raises(Busy):
        list(repeats)
    assert (sequence.length, other.length % 48) == (48, 0)
    sequence.truncate(0)
    assert np.array_equal(rows(backend, sequence, PROMPT), expected)
    sequence.close()
    while other.length < 1024 - 64:
        rows(backend, other, PROMPT)
    other.truncate(0)
    assert np.array_equal(rows(backend, other, PROMPT), expected)
    backend.close()


def test_as_many_sequences_as_it_says(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SHARED_CONTEXTS", 1)
    for name in ("shared", "copied"):
        backend = open_backend(folders[name], LoadParams(ctx=512))
        held = [backend.new_sequence() for _ in range(backend.max_sequences)]
        found = [rows(backend, sequence, PROMPT) for sequence in held]
        assert all(np.array_equal(each, found[0]) for each in found)
        with pytest.raises(Busy):
            backend.new_sequence()
        backend.close()


def test_a_cache_of_8_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    """Keys and values lose what 8 bits lose, and no more."""
    small, whole = (
        open_backend(path, LoadParams(threads=1))
        for path in (write_decoder(tmp_path / "int8", "int8"), folders["shared"])
    )
    assert (small.info.kv_bytes_per_token, small.info.n_params) == (
        whole.info.kv_bytes_per_token // 4,
        whole.info.n_params,
    )
    found, expected = (rows(backend, backend.new_sequence(), PROMPT) for backend in (small, whole))
    lost = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < lost < 0.1, lost
    for backend in (small, whole):
        backend.close()
    with pytest.raises(Unsupported, match="int8"):
        open_backend(tmp_path / "int8", LoadParams(kv_type="q8_0"))


def test_a_run_given_another_token_returns_that_tokens_rows(folders: dict[str, Path]) -> None:
    """Blocks of 32 queries with heads of 16: the last of 33 is alone in its own."""
    tokens = PROMPT * 3
    for name in ("shared", "plain"):
        backend = open_backend(folders[name], LoadParams(threads=2, ctx=100))
        sequence = backend.new_sequence()
        expected = rows(backend, sequence, tokens[:98])
        for start, stop in ((0, 33), (0, 65), (0, 97), (8, 41), (12, 77)):
            for logits in ("all", "last", "none"):
                sequence.truncate(start)
                found = backend.forward([Step(sequence, tokens[start:stop], logits)])[0]  # type: ignore[arg-type]
                assert sequence.length == stop
                if found is not None:
                    assert np.array_equal(found, expected[start:stop] if logits == "all" else expected[stop - 1 : stop])
            assert np.array_equal(rows(backend, sequence, tokens[stop:98]), expected[stop:]) or stop == 97
        rows(backend, sequence, tokens[sequence.length : 100])
        assert sequence.length == 100
        backend.close()


# End to end


def test_a_folder_runs_like_any_model(folders: dict[str, Path], tmp_path: Path) -> None:
    with edgellm.load(folders["shared"]) as model:
        assert model.backend == "onnx"
        prompt = "hello world, " * 100
        first = model.generate(prompt, max_tokens=12, temperature=0)
        again = model.generate(prompt, max_tokens=12, temperature=0)
        assert again.tokens == first.tokens
        assert again.cache.computed < first.cache.computed
        chat = model.chat()
        assert str(chat.send("hello", max_tokens=4, temperature=0)) is not None
        scores = model.score("hello world")
        assert scores.shape == (model.count_tokens("hello world") - 1,)
    with edgellm.load(folders["shared"]) as model:  # as after a restart
        restored = model.generate(prompt, max_tokens=12, temperature=0)
        assert restored.tokens == first.tokens
        assert restored.cache.from_disk > 0
    with edgellm.load(folders["copied"]) as model:
        assert model.generate(prompt, max_tokens=12, temperature=0).tokens == first.tokens
